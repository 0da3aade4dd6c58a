"""What fills a mask: the likeliest tokens of `transformers` for each text alone, however texts share rows."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from small_tokenizer import write_small_tokenizer

from mmbert_jax.checkpoint import save_params
from mmbert_jax.data.tokenizer import load_tokenizer
from mmbert_jax.errors import UserError
from mmbert_jax.inference import rows
from mmbert_jax.inference.masks import fill_mask

TEXTS = [
    "the cat <mask> and the dog",
    "<mask>",
    "is <mask> an <mask> and a<mask>.",
    "the end is " + "a long way from here and " * 3 + "<mask> " + "the rest is not " * 4,
    "東京 <mask> é",
]


def test_equals_transformers_text_by_text(model, hf_folder):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    reference = transformers.AutoModelForMaskedLM.from_pretrained(hf_folder)
    theirs = transformers.AutoTokenizer.from_pretrained(hf_folder)

    results = fill_mask(model, TEXTS, top_k=4)
    assert [len(masks) for masks in results] == [1, 1, 3, 1, 1]
    for text, masks in zip(TEXTS, results, strict=True):
        ids = torch.tensor([theirs(text)["input_ids"]])
        with torch.no_grad():
            probabilities = reference(ids).logits[0].softmax(-1)[ids[0] == theirs.mask_token_id]
        expected = probabilities.topk(4)
        found = [[p.token_id for p in candidates] for candidates in masks]
        assert found == expected.indices.tolist()
        found = [[p.probability for p in candidates] for candidates in masks]
        np.testing.assert_allclose(found, expected.values.numpy(), atol=1e-5)
        for candidates in masks:
            assert [p.token for p in candidates] == [
                model.tokenizer.decode([p.token_id]) for p in candidates
            ]


@pytest.mark.parametrize("row_lengths", [(32, 40, 256), (256,)])
def test_how_texts_share_rows_does_not_matter(model, monkeypatch, row_lengths):
    """Many short rows, or one with all texts: the same predictions as for each text by itself."""
    alone = [fill_mask(model, [text])[0] for text in TEXTS]
    monkeypatch.setattr(rows, "ROW_LENGTHS", row_lengths)
    together = fill_mask(model, TEXTS)
    for masks, expected in zip(together, alone, strict=True):
        for candidates, wanted in zip(masks, expected, strict=True):
            assert [p.token_id for p in candidates] == [p.token_id for p in wanted]
            np.testing.assert_allclose(
                [p.probability for p in candidates], [p.probability for p in wanted], atol=1e-6
            )


def test_more_masks_than_go_through_the_head_at_once(model):
    one = fill_mask(model, ["a <mask>"], top_k=2)[0][0]
    for masks in fill_mask(model, ["a <mask>"] * 70, top_k=2, batch_tokens=512):
        assert [p.token_id for p in masks[0]] == [p.token_id for p in one]
        np.testing.assert_allclose(
            [p.probability for p in masks[0]], [p.probability for p in one], atol=1e-6
        )


def test_no_texts(model):
    assert fill_mask(model, []) == []


def test_refuses_a_text_without_mask(model):
    with pytest.raises(UserError, match=r"text 2 \('nothing here'\) has no <mask>"):
        fill_mask(model, ["a <mask>", "nothing here"])


def test_refuses_a_mask_that_would_be_cut_off(model):
    short = dataclasses.replace(model, max_length=8)
    assert len(fill_mask(short, ["a <mask>" + " and" * 20])[0]) == 1
    with pytest.raises(UserError, match="has a <mask> beyond the 8 tokens"):
        fill_mask(short, ["a <mask>" + " and" * 20 + "<mask>"])


def test_refuses_masks_of_which_the_tokeniser_finds_more_or_fewer(model, tmp_path):
    """One that lowers letters finds "<MASK>" too: predictions could not be told whose they are."""
    file = write_small_tokenizer(tmp_path / "t") / "tokenizer.json"
    description = json.loads(file.read_text())
    description["added_tokens"][4]["content"] = "<MASK>"
    description["added_tokens"][4]["normalized"] = True
    vocabulary = description["model"]["vocab"]
    vocabulary["<MASK>"] = vocabulary.pop("<mask>")
    description["normalizer"] = {"type": "Lowercase"}
    names = {"pad": "<pad>", "sep": "<eos>", "cls": "<bos>", "mask": "<MASK>"}
    (tmp_path / "t" / "tokenizer_config.json").write_text(
        json.dumps({f"{role}_token": piece for role, piece in names.items()})
    )
    file.write_text(json.dumps(description))
    lowering = dataclasses.replace(model, tokenizer=load_tokenizer(tmp_path / "t"))
    assert len(fill_mask(lowering, ["the <MASK>"])[0]) == 1
    with pytest.raises(UserError, match="has <MASK> 1 times, of which the tokeniser .* finds 2"):
        fill_mask(lowering, ["the <MASK> or the <mask>"])


@pytest.mark.parametrize("top_k", [0, 333])
def test_refuses_an_impossible_top_k(model, top_k):
    with pytest.raises(UserError, match="top_k"):
        fill_mask(model, ["<mask>"], top_k=top_k)


def run(environment, *arguments):
    command = [sys.executable, "-m", "mmbert_jax.inference.fill_mask", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_command_line(model, run_folder, params, meta, tokenizer, environment, tmp_path):
    """Finds the checkpoint's own tokeniser; says what is wrong with a text or a place where there is none."""
    result = run(
        environment, "--checkpoint", run_folder, "--text", TEXTS[0], TEXTS[2], "--top_k", 2
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == TEXTS[0]
    (best, second), *_ = fill_mask(model, [TEXTS[0]], top_k=2)[0]
    assert lines[1] == "  mask 1: " + "  ".join(
        f"{p.token!r} {100 * p.probability:.1f}%" for p in (best, second)
    )
    assert len(lines) == 6

    lost = meta | {
        "config": meta["config"]
        | {
            "data": meta["config"]["data"]
            | {"corpus": str(tmp_path / "gone"), "sources": {"web": {}}}
        }
    }
    save_params(tmp_path / "lost", params, lost)
    result = run(environment, "--checkpoint", tmp_path / "lost", "--text", "<mask>")
    assert (result.returncode, result.stdout) == (2, "")
    assert "gone/web/tokenizer" in result.stderr
    assert "--tokenizer DIR" in result.stderr


def test_command_line_on_files(model, hf_folder, environment, tmp_path):
    """One line for each record until the first that has no mask, which is named."""
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    words = ["--checkpoint", hf_folder, "--input", source, "--top_k", 2]
    result = run(environment, *words, "--output", output)
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["id"] for line in lines] == list(range(len(TEXTS)))
    for line, masks in zip(lines, fill_mask(model, TEXTS, top_k=2), strict=True):
        found = [[p["token_id"] for p in mask] for mask in line["masks"]]
        assert found == [[p.token_id for p in mask] for mask in masks]
        assert line["masks"][0][0].keys() == {"token_id", "token", "probability"}

    source.write_text('{"text": "<mask>"}\n{"text": "nothing here"}\n')
    result = run(environment, *words, "--output", tmp_path / "other.jsonl")
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {source}, line 2 has no <mask>")
