"""The guides say what works: every command and all Python of theirs, in their order, on a small model."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from other_tokenizers import sentences
from programs import ROOT, call, module
from small_tokenizer import write_small_tokenizer

from mmbert_jax.files import to_json

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# What makes the training of the guide a matter of seconds.
SMALL = [
    "--config.train.tokens=8192",
    "--config.train.batch_rows=2",
    "--config.train.microbatch_rows=1",
    "--config.optimizer.warmup_tokens=2048",
    "--config.mesh.data=1",
    "--config.dtype=float32",
    "--config.data.loader_workers=0",
]


def blocks(guide: str):
    """(language, text) of the blocks of a guide that are for a shell or for Python."""
    text = (ROOT / "docs" / "guides" / f"{guide}.md").read_text()
    return re.findall(r"^```(bash|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def downloaded(tmp_path, monkeypatch):
    """A working folder as the guide has it: `downloads`, `my.jsonl`, and the programs."""
    torch.manual_seed(0)
    ids = {
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        "cls_token_id": 2,
        "sep_token_id": 1,
    }
    config = transformers.ModernBertConfig(
        vocab_size=332,
        hidden_size=128,
        num_attention_heads=2,
        num_hidden_layers=3,
        intermediate_size=64,
        max_position_embeddings=1024,
        **ids,
    )
    for name, kind in (
        ("model", transformers.ModernBertForMaskedLM),
        ("classifier", transformers.ModernBertForSequenceClassification),
    ):
        folder = tmp_path / "downloads" / name
        kind(config).save_pretrained(folder)
        tokenizer = write_small_tokenizer(tmp_path / "tokenizer" / name)
        shutil.copytree(tokenizer, folder, dirs_exist_ok=True)
    lines = (to_json({"text": text, "language": "eng"}) + "\n" for text in sentences(200))
    (tmp_path / "my.jsonl").write_text("".join(lines))
    for name in ("tools", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("guide", ["hugging_face"])
def test_all_of_it_works(guide, downloaded, monkeypatch):
    names: dict = {}
    for language, text in blocks(guide):
        if language == "python":
            exec(compile(text, guide, "exec"), names)
            continue
        for command in text.replace("\\\n", " ").splitlines():
            python, *words = shlex.split(command)
            assert python == "python"
            if words[0] == "-m":
                words = words[1:]
            if words[0] == "mmbert_jax.train":  # has absl's flags, of which a process has one set
                train = [sys.executable, "-m", *words, *SMALL]
                subprocess.run(train, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
                continue
            program = module(words[0].removesuffix(".py"))
            assert call(program.main, words, monkeypatch) == 0, command
