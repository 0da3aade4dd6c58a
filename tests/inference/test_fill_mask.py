"""What fills a mask: the likeliest tokens of `transformers` for each text alone, however texts share rows."""

import dataclasses
import subprocess
import sys

import jax
import numpy as np
import pytest
from small_tokenizer import write_small_tokenizer

from mmbert_jax.checkpoint import save_params
from mmbert_jax.data.tokenizer import load_tokenizer
from mmbert_jax.errors import UserError
from mmbert_jax.hf.export import export_hf
from mmbert_jax.inference import fill_mask as module
from mmbert_jax.inference.fill_mask import fill_mask
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.model.heads import init_params

CONFIG = ModelConfig(
    vocab_size=332, hidden_size=64, num_layers=4, num_heads=1, intermediate_size=48
)
TEXTS = [
    "the cat <mask> and the dog",
    "<mask>",
    "is <mask> an <mask> and a<mask>.",
    "the end is " + "a long way from here and " * 3 + "<mask> " + "the rest is not " * 4,
    "東京 <mask> é",
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(write_small_tokenizer(tmp_path_factory.mktemp("corpus") / "tokenizer"))


@pytest.fixture(scope="module")
def params():
    """Weights ten times those of the initialisation, so that tokens get clearly different probabilities."""
    return jax.tree.map(lambda x: np.asarray(x) * (10 if x.ndim > 1 else 1), init_params(CONFIG, 0))


@pytest.fixture(scope="module")
def meta(tokenizer):
    data = {"corpus": str(tokenizer.path.parents[1]), "row_length": 256, "sources": {}}
    config = {"model": dataclasses.asdict(CONFIG), "data": data}
    return {
        "phase": "demo",
        "step": 3,
        "tokens": 5,
        "tokenizer": {"sha256": tokenizer.sha256},
        "config": config,
    }


def test_equals_transformers_text_by_text(params, meta, tokenizer, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    export_hf(tmp_path / "model", params, meta, tokenizer)
    model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "model")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")

    results = fill_mask(params, CONFIG, tokenizer, TEXTS, top_k=4)
    assert [len(masks) for masks in results] == [1, 1, 3, 1, 1]
    for text, masks in zip(TEXTS, results, strict=True):
        ids = torch.tensor([theirs(text)["input_ids"]])
        with torch.no_grad():
            probabilities = model(ids).logits[0].softmax(-1)[ids[0] == theirs.mask_token_id]
        expected = probabilities.topk(4)
        found = [[p.token_id for p in candidates] for candidates in masks]
        assert found == expected.indices.tolist()
        found = [[p.probability for p in candidates] for candidates in masks]
        np.testing.assert_allclose(found, expected.values.numpy(), atol=1e-5)
        for candidates in masks:
            assert [p.token for p in candidates] == [
                tokenizer.decode([p.token_id]) for p in candidates
            ]


@pytest.mark.parametrize("row_multiple", [8, 40])
def test_how_texts_share_rows_does_not_matter(params, tokenizer, monkeypatch, row_multiple):
    """Many short rows, or few with several texts: the same predictions as for each text by itself."""
    alone = [fill_mask(params, CONFIG, tokenizer, [text])[0] for text in TEXTS]
    monkeypatch.setattr(module, "ROW_MULTIPLE", row_multiple)
    together = fill_mask(params, CONFIG, tokenizer, TEXTS)
    for masks, expected in zip(together, alone, strict=True):
        for candidates, wanted in zip(masks, expected, strict=True):
            assert [p.token_id for p in candidates] == [p.token_id for p in wanted]
            np.testing.assert_allclose(
                [p.probability for p in candidates], [p.probability for p in wanted], atol=1e-6
            )


def test_no_texts():
    assert fill_mask({}, CONFIG, None, []) == []


def test_refuses_a_text_without_mask(params, tokenizer):
    with pytest.raises(UserError, match=r"text 2 \('nothing here'\) has no <mask>"):
        fill_mask(params, CONFIG, tokenizer, ["a <mask>", "nothing here"])


@pytest.mark.parametrize("top_k", [0, 333])
def test_refuses_an_impossible_top_k(params, tokenizer, top_k):
    with pytest.raises(UserError, match="top_k"):
        fill_mask(params, CONFIG, tokenizer, ["<mask>"], top_k=top_k)


def run(*arguments):
    command = [sys.executable, "-m", "mmbert_jax.inference.fill_mask", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_command_line(params, meta, tokenizer, tmp_path):
    """Finds the checkpoint's own tokeniser; says what is wrong with a text or a place where there is none."""
    save_params(tmp_path / "run", params, meta)
    result = run("--checkpoint", tmp_path / "run", "--text", TEXTS[0], TEXTS[2], "--top_k", 2)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == TEXTS[0]
    (best, second), *_ = fill_mask(params, CONFIG, tokenizer, [TEXTS[0]], top_k=2)[0]
    assert lines[1] == "  mask 1: " + "  ".join(
        f"{p.token!r} {100 * p.probability:.1f}%" for p in (best, second)
    )
    assert len(lines) == 6

    result = run("--checkpoint", tmp_path / "run", "--text", "no mask")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: text 1 ('no mask') has no <mask>")
    lost = meta | {
        "config": meta["config"]
        | {"data": {"corpus": str(tmp_path / "gone"), "sources": {"web": {}}}}
    }
    save_params(tmp_path / "lost", params, lost)
    result = run("--checkpoint", tmp_path / "lost", "--text", "<mask>")
    assert result.returncode == 2
    assert "gone/web/tokenizer" in result.stderr
    assert "--tokenizer DIR" in result.stderr
    result = run(
        "--checkpoint", tmp_path / "lost", "--text", "<mask>", "--tokenizer", tokenizer.path
    )
    assert result.returncode == 0, result.stderr
