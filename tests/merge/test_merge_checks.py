"""What is checked before and while models are merged: whatever a merge mixes has to agree, and to be numbers."""

import dataclasses
import json

import numpy as np
import pytest
from stored_models import CONFIG, write_checkpoint, write_folder

from mmbert_jax.checkpoint import read_meta
from mmbert_jax.checksums import sha256
from mmbert_jax.errors import UserError
from mmbert_jax.hf.load import load_model
from mmbert_jax.hf.model_card import model_card
from mmbert_jax.hf.weights import load_weights, save_weights
from mmbert_jax.merge.checks import check_alike
from mmbert_jax.merge.merge import merge
from mmbert_jax.merge.models import open_model
from mmbert_jax.merge.output import write_merged
from mmbert_jax.merge.recipe import make_recipe
from mmbert_jax.model.heads import SEQUENCES, HeadConfig
from mmbert_jax.run import SUMS, checkpoint

HEAD = HeadConfig(SEQUENCES, labels=("neg", "pos"), pooling="mean")
EMBEDDING, DECODER = "model.embeddings.tok_embeddings.weight", "decoder.weight"


def rewrite(folder, change):
    """Changes a folder's tensors."""
    tensors = {name: x.copy() for name, x in load_weights(folder).items()}
    for file in folder.glob("model*"):
        file.unlink()
    change(tensors)
    save_weights(folder, tensors, 10**9)


@pytest.mark.parametrize("write", [write_checkpoint, write_folder])
@pytest.mark.parametrize(
    ("changed", "fields"),
    [
        ({"labels": ("pos", "neg")}, ("id2label", "head.labels")),
        ({"pooling": "cls"}, ("classifier_pooling", "head.pooling")),
        ({"activation": "relu"}, ("classifier_activation", "head.activation")),
        ({"problem_type": "regression"}, ("problem_type", "head.problem_type")),
    ],
)
def test_heads_have_to_agree(write, changed, fields, tmp_path):
    first = dataclasses.replace(HEAD, problem_type="single_label_classification")
    write(tmp_path / "a", 1, 0.1, head=first)
    write(tmp_path / "b", 2, 0.1, head=dataclasses.replace(first, **changed))
    a, b = open_model(tmp_path / "a"), open_model(tmp_path / "b")
    check_alike(a, [a])
    field = fields[write is write_checkpoint]
    with pytest.raises(UserError, match=rf"/b: config\S* ?\S*{field} is .*, that of .*/a is "):
        check_alike(a, [b])


def test_what_concerns_training_alone_may_differ(tmp_path):
    write_checkpoint(tmp_path / "a", 1, 0.1, head=HEAD)
    other = dataclasses.replace(HEAD, dropout=0.2, problem_type="single_label_classification")
    write_checkpoint(tmp_path / "b", 2, 0.1, head=other)
    check_alike(open_model(tmp_path / "a"), [open_model(tmp_path / "b")])


def test_special_ids_have_to_agree(tmp_path):
    write_checkpoint(tmp_path / "a", 1, 0.1)
    ids = {"pad_token_id": 9, "eos_token_id": 1, "bos_token_id": 2, "cls_token_id": 2}
    write_checkpoint(tmp_path / "b", 2, 0.1, special_ids=ids | {"sep_token_id": 1})
    with pytest.raises(UserError, match="config.pad_token_id is 9, that of .*/a is 0"):
        check_alike(open_model(tmp_path / "a"), [open_model(tmp_path / "b")])


def test_vocabularies_are_compared_by_content(tmp_path):
    for name in ("a", "b"):
        write_folder(tmp_path / name, 1, 0.1)
    # Unigram's vocabulary is a list of pieces with scores; a scores' change is no other vocabulary.
    pieces = [["<pad>", 0.0], ["a", -1.0], ["b", -2.0]]
    for name, vocab in (("a", pieces), ("b", [[piece, -3.0] for piece, _ in pieces])):
        tokenizer = {"model": {"type": "Unigram", "vocab": vocab}, "added_tokens": []}
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(tokenizer))
    a = open_model(tmp_path / "a")
    check_alike(a, [open_model(tmp_path / "b")])
    tokenizer["model"]["vocab"] = [pieces[0], pieces[2], pieces[1]]
    (tmp_path / "b" / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="has another tokeniser than"):
        check_alike(a, [open_model(tmp_path / "b")])
    for text in ("{", '{"model": {"vocab": 3}}', "[]"):
        (tmp_path / "b" / "tokenizer.json").write_text(text)
        with pytest.raises(UserError, match=r"b/tokenizer\.json"):
            open_model(tmp_path / "b")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_entry_that_is_no_number_is_named(bad, tmp_path):
    name = "model.layers.1.mlp.Wi.weight"
    for folder in ("base", "a"):
        write_folder(tmp_path / folder, 1, 0.1)
    rewrite(tmp_path / "a", lambda tensors: tensors[name].__setitem__((0, 0), bad))
    base, a = open_model(tmp_path / "base"), open_model(tmp_path / "a")
    for method, has_base in (("ties", True), ("karcher", False)):
        recipe = make_recipe(method, 1, None, {})
        with pytest.raises(UserError, match=rf"a/model\.safetensors: 1 of .* entries of {name}"):
            write_merged(
                tmp_path / "out",
                recipe,
                base if has_base else None,
                [a],
                merge(recipe, base if has_base else None, [a]),
            )
    assert not (tmp_path / "out").exists()


def test_what_float16_cannot_hold_is_refused_and_stored_wider_when_asked(tmp_path):
    for folder in ("base", "a"):
        write_folder(tmp_path / folder, 1, 0.1, dtype="float16")
    rewrite(tmp_path / "a", lambda tensors: tensors["decoder.bias"].__setitem__(3, 60000))
    base, a = open_model(tmp_path / "base"), open_model(tmp_path / "a")
    recipe = make_recipe("task_arithmetic", 1, [2.0], {})
    with pytest.raises(
        UserError, match=r"decoder.bias reaches 1\.2e\+05 .* beyond float16.*float32"
    ):
        list(merge(recipe, base, [a]))
    recipe = make_recipe("task_arithmetic", 1, [2.0], {}, "float32")
    write_merged(tmp_path / "out", recipe, base, [a], merge(recipe, base, [a]))
    merged = load_weights(tmp_path / "out")
    assert {x.dtype.name for x in merged.values()} == {"float32"}
    assert merged["decoder.bias"][3] == pytest.approx(120000, rel=1e-4)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["torch_dtype"] == "float32"


def test_a_decoder_stored_twice_is_merged_once(tmp_path):
    for i, folder in enumerate(("base", "a", "b")):
        write_folder(tmp_path / folder, i, 0.1)
    rewrite(tmp_path / "a", lambda tensors: tensors.update({DECODER: tensors[EMBEDDING].copy()}))
    base, a, b = (open_model(tmp_path / folder) for folder in ("base", "a", "b"))
    check_alike(base, [a, b])
    recipe = make_recipe("dare_ties", 2, None, {})
    write_merged(tmp_path / "out", recipe, base, [a, b], merge(recipe, base, [a, b]))
    assert load_model(tmp_path / "out").config.model.vocab_size == CONFIG.vocab_size
    rewrite(tmp_path / "a", lambda tensors: tensors.update({DECODER: tensors[EMBEDDING] + 1}))
    with pytest.raises(UserError, match=f"/a: {DECODER} differs from {EMBEDDING}"):
        open_model(tmp_path / "a")


def test_merged_models_say_what_they_were_made_of(tmp_path):
    """By run, step and sums in a checkpoint's meta and in its card; by the files' sums in a folder's."""
    for i, name in enumerate(("base", "a", "b")):
        write_checkpoint(tmp_path / name, i, 0.1)
    base, a, b = (open_model(tmp_path / name) for name in ("base", "a", "b"))
    recipe = make_recipe("model_stock", 2, None, {})
    write_merged(tmp_path / "out", recipe, base, [a, b], merge(recipe, base, [a, b]))
    meta = read_meta(tmp_path / "out")
    assert meta["merge"]["by"].startswith("mmbert_jax ")
    digests = []
    for parent, name, step in zip(
        (meta["merge"]["base"], *meta["merge"]["models"]), ("base", "a", "b"), range(3), strict=True
    ):
        assert (parent["run"], parent["step"]) == (str(tmp_path / name), step)
        digests.append(sha256(checkpoint(tmp_path / name, step) / SUMS))
        assert parent["sums"] == digests[-1]
    report = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert report["models"] == meta["merge"]["models"]
    write_folder(tmp_path / "folder", 1, 0.1, head=HEAD, shard_bytes=10**9)
    fields = json.loads((tmp_path / "folder" / "config.json").read_text())
    card = model_card("out", meta, fields, 10**6, {})
    for name, digest in zip(("base", "a", "b"), digests, strict=True):
        assert f"| {name} | {digest[:12]} |" in card

    folder = open_model(tmp_path / "folder")
    recipe = make_recipe("linear", 1, None, {})
    write_merged(tmp_path / "both", recipe, None, [folder], merge(recipe, None, [folder]))
    card = (tmp_path / "both" / "README.md").read_text()
    digest = sha256(tmp_path / "folder" / "model.safetensors")
    assert f"model.safetensors {digest[:12]}" in card
    # The head decides what the hub and the reader are told.
    assert "pipeline_tag: text-classification" in card
    assert "AutoModelForSequenceClassification.from_pretrained" in card
    assert "<mask>" not in card
