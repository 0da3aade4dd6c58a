"""A tokeniser's content: the same for every way of writing it down, another for whatever gives a text other ids."""

import copy
import json
import shutil

import pytest
import tokenizers
from small_tokenizer import write_small_tokenizer

from mmbert_jax.data.tokenizer import load_tokenizer
from mmbert_jax.data.tokenizer_identity import (
    content,
    describe_tokenizer,
    is_recorded,
    same_tokenizer,
)
from mmbert_jax.hf.tokenizer import to_hf_files


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Folder of a small tokenizer.json, and what is in it."""
    folder = write_small_tokenizer(tmp_path_factory.mktemp("small") / "tokenizer")
    return folder, json.loads((folder / "tokenizer.json").read_text())


def mask_of(description):
    return next(token for token in description["added_tokens"] if token["content"] == "<mask>")


def set_in(*path, value):
    def change(description):
        for name in path[:-1]:
            description = description[name]
        description[path[-1]] = value

    return change


def exchange_pieces(description):
    vocabulary = description["model"]["vocab"]
    vocabulary["x"], vocabulary["y"] = vocabulary["y"], vocabulary["x"]


def as_unigram(description):
    pieces = description["model"]["vocab"]
    scores = [[piece, -float(i)] for i, piece in enumerate(pieces)]
    description["model"] = {"type": "Unigram", "unk_id": 3, "vocab": scores, "byte_fallback": True}


# Ways of writing the same tokeniser: changes to the description.
SAME = {
    "a post-processor": set_in("post_processor", value={"type": "ByteLevel"}),
    "padding and truncation": set_in("padding", value={"pad_id": 0}),
    "another decoder": set_in("decoder", value={"type": "Fuse"}),
    "merges as strings": lambda d: set_in("model", "merges", value=[*map(" ".join, d["model"]["merges"])])(d),
    "defaults spelled out": lambda d: d["model"].update(dropout=None, ignore_merges=False, end_of_word_suffix=""),
    "flags of the mask that are set on loading": lambda d: mask_of(d).update(special=True, lstrip=True),
    "another order of keys": lambda d: d.update(model=dict(reversed(d["model"].items()))),
    "another order of added tokens": lambda d: d["added_tokens"].reverse(),
}  # fmt: skip
OTHER = {
    "two pieces exchanged": exchange_pieces,
    "merges in another order": lambda d: d["model"]["merges"].reverse(),
    "a merge less": lambda d: d["model"]["merges"].pop(),
    "another normaliser": set_in("normalizer", value={"type": "NFC"}),
    "a pre-tokeniser": set_in("pre_tokenizer", value={"type": "Whitespace"}),
    "words taken whole": set_in("model", "ignore_merges", value=True),
    "bytes left out": set_in("model", "byte_fallback", value=False),
    "an added token that strips": set_in("added_tokens", 1, "rstrip", value=True),
    "a mask that is a word": lambda d: mask_of(d).update(single_word=True),
    "another kind of model": as_unigram,
}


def written(description, folder):
    (folder / "tokenizer.json").write_text(json.dumps(description, indent=3))
    return folder / "tokenizer.json"


@pytest.mark.parametrize("way", [*SAME, *OTHER])
def test_what_counts_and_what_does_not(small, tmp_path, way):
    folder, description = small
    description = copy.deepcopy(description)
    (SAME | OTHER)[way](description)
    same = content(written(description, tmp_path)) == content(folder / "tokenizer.json")
    assert same == (way in SAME)


def test_scores_of_a_unigram_count(small, tmp_path):
    description = copy.deepcopy(small[1])
    as_unigram(description)
    before = content(written(description, tmp_path))
    description["model"]["vocab"][300][1] -= 0.5
    assert content(written(description, tmp_path)) != before


def test_what_tokenizers_and_our_export_write_again_is_the_same(small, tmp_path):
    folder, _ = small
    tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).save(
        str(tmp_path / "again.json")
    )
    (tmp_path / "hf").mkdir()
    to_hf_files(load_tokenizer(folder), tmp_path / "hf", 64)
    expected = describe_tokenizer(load_tokenizer(folder))
    for path in (tmp_path / "again.json", tmp_path / "hf" / "tokenizer.json"):
        found = describe_tokenizer(load_tokenizer(path))
        assert found["sha256"] != expected["sha256"]
        assert same_tokenizer(found, expected)
        assert is_recorded(path, found["sha256"], expected)


def test_a_sentencepiece_model_is_the_same_as_the_tokenizer_json_made_from_it(trained, tmp_path):
    model, exported = (
        describe_tokenizer(load_tokenizer(trained / f"tokenizer.{x}")) for x in ("model", "json")
    )
    assert model["file"] == "tokenizer.model"
    assert same_tokenizer(model, exported)

    data = (trained / "tokenizer.model").read_bytes()
    assert data.count(b"\n\x01q") == data.count(b"\n\x01z") == 1  # pieces of one letter
    exchanged = (
        data.replace(b"\n\x01q", b"\n\x01Q")
        .replace(b"\n\x01z", b"\n\x01q")
        .replace(b"\n\x01Q", b"\n\x01z")
    )
    changes = {
        "pieces": exchanged,
        # NormalizerSpec once more, with add_dummy_prefix; the later one counts.
        "prefix": data + bytes([3 << 3 | 2, 2, 3 << 3, 1]),
    }
    for name, changed in changes.items():
        (tmp_path / f"{name}.model").write_bytes(changed)
        assert content(tmp_path / f"{name}.model") != model["content"], name
    shutil.copy(trained / "tokenizer.model", tmp_path / "copy.model")
    assert content(tmp_path / "copy.model") == model["content"]


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ({"sha256": "a"}, {"sha256": "a"}, True),
        ({"sha256": "a"}, {"sha256": "b"}, False),
        ({"sha256": "a", "content": "c"}, {"sha256": "b", "content": "c"}, True),
        ({"sha256": "a", "content": "c"}, {"sha256": "b", "content": "d"}, False),
        ({"sha256": "a", "content": "c"}, {"sha256": "a"}, True),
        ({"sha256": "a", "content": "c"}, {"sha256": "b"}, False),
        ({"sha256": "a", "content": "c"}, None, True),
        ({}, {"sha256": "a"}, True),
    ],
)
def test_records(a, b, same):
    """By bytes, else by content; what a record does not say refuses nothing."""
    assert same_tokenizer(a, b) == same_tokenizer(b, a) == same
