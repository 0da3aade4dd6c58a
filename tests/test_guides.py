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
from tiny import tiny_config

from mmbert_jax.checkpoint import restore_params, save_params
from mmbert_jax.data.tokenizer import load_tokenizer
from mmbert_jax.data.tokenizer_identity import describe_tokenizer
from mmbert_jax.files import read_json, to_json
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.model.heads import init_params

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


@pytest.fixture
def started(tmp_path, monkeypatch):
    """A working folder as the guide to languages has it: `runs/start`, `old.jsonl`, `new.jsonl`, and the programs."""
    tokenizer = load_tokenizer(write_small_tokenizer(tmp_path / "tokenizer"))
    config = tiny_config(model__vocab_size=tokenizer.vocab_size, data__row_length=1024)
    meta = {"phase": "tiny", "step": 3, "tokens": 5, "config": config.to_dict()}
    meta["tokenizer"] = describe_tokenizer(tokenizer) | {"path": str(tmp_path / "tokenizer")}
    params = init_params(ModelConfig.from_config(config.model), 0)
    save_params(tmp_path / "runs" / "start", params, meta)
    khmer = ["ភាសាខ្មែរ ជា ភាសា ដែលមាន អក្សរ របស់ខ្លួន " * 5 + str(i) for i in range(200)]
    for name, language, texts in (("old", "eng", sentences(200)), ("new", "khm", khmer)):
        lines = (to_json({"text": text, "language": language}) + "\n" for text in texts)
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    for name in ("tools", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_all_of(guide, monkeypatch):
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


def test_all_of_it_works(downloaded, monkeypatch):
    run_all_of("hugging_face", monkeypatch)


def test_a_language_of_your_own(started, monkeypatch):
    """The steps hand on: shares of the two corpora, the lineage, a line for each language, files for `transformers`."""
    pytest.importorskip("matplotlib")
    run_all_of("own_language", monkeypatch)
    report = read_json(started / "report" / "languages.json")
    assert {name: entry["new"] for name, entry in report["languages"].items()} == {
        "eng": False,
        "khm": True,
    }
    assert set(report["languages"]["khm"]["loss"]) == {"before", "after", "merged"}
    _, meta = restore_params(started / "runs" / "merged")
    assert meta["merge"]["base"]["phase"] == "extended"
    assert meta["extend"]["path"] == "runs/start"
    tokenizer = transformers.AutoTokenizer.from_pretrained("my-model")
    text = "ភាសា and the"
    found = tokenizer(text, add_special_tokens=False).input_ids
    assert len(found) < 8
    assert tokenizer.decode(found) == text
    transformers.AutoModelForMaskedLM.from_pretrained("my-model")
