"""tools/prepare_corpus.py, from files to a corpus whose raw records are counted here once more."""

import hashlib
import itertools
import json
import struct
from collections import defaultdict

import numpy as np
import pytest
import sentencepiece
from prepared import BOS, EOS, HELD_OUT, is_held_out, read_rows

from mmbert_jax.data import prepare as preparation
from mmbert_jax.data import tokenizer_identity
from mmbert_jax.data.corpus import rows_source
from mmbert_jax.data.prepare import deal, pack
from mmbert_jax.data.sources import Fields, find_inputs, pieces

# --- what is in a corpus ---


@pytest.mark.parametrize("row_length", [64, 256])
def test_every_token_of_every_document_is_there_once(corpus, records, model, row_length):
    """The documents, tokenised by sentencepiece itself, cut by hand, against the pieces found in all rows."""
    bare = sentencepiece.SentencePieceProcessor(model_file=str(model / "tokenizer.model"))
    expected = defaultdict(list)
    for line, (_, text) in enumerate(records, 1):
        if text.strip():
            rest = [*bare.encode(text), EOS]
            split = "held_out" if is_held_out(text) else "train"
            while rest:
                expected[split, line].append([BOS, *rest[: row_length - 1]])
                rest = rest[row_length - 1 :]
    assert max(map(len, expected.values())) > 3
    found = defaultdict(list)
    for split in ("train", "held_out"):
        for segments, ids in read_rows(corpus[0], row_length, split):
            assert 0 < sum(map(len, segments)) <= row_length
            for segment, identity in zip(segments, ids, strict=True):
                found[split, identity].append(
                    segment
                )  # the only input is file 0, so an id is a line
    assert {key: sorted(pieces) for key, pieces in found.items()} == {
        key: sorted(pieces) for key, pieces in expected.items()
    }


@pytest.mark.parametrize("row_length", [64, 256])
@pytest.mark.parametrize("split", ["train", "held_out"])
def test_counts_of_the_manifest_are_those_of_the_records(corpus, records, row_length, split):
    manifest = json.loads((corpus[0] / "manifest.json").read_text())
    entry = manifest["row_lengths"][str(row_length)][split]
    rows = read_rows(corpus[0], row_length, split)
    assert list(entry["languages"]) == sorted(entry["languages"])
    assert sum(shard["rows"] for shard in entry["shards"]) == len(rows)
    at = filled = 0
    for language, counts in entry["languages"].items():
        assert counts["first_row"] == at
        of_language = rows[at : at + counts["rows"]]
        at += counts["rows"]
        ids = {identity for _, found in of_language for identity in found}
        assert {records[identity - 1][0] for identity in ids} == {language}
        texts = [records[identity - 1][1] for identity in ids]
        assert counts["documents"] == len(ids)
        assert counts["bytes"] == sum(len(text.encode()) for text in texts)
        tokens = sum(len(segment) for segments, _ in of_language for segment in segments)
        assert counts["tokens"] == tokens
        filled += tokens
    assert at == len(rows)
    assert entry["fill"] == pytest.approx(filled / len(rows) / row_length, abs=1e-6)


def test_totals_of_the_manifest(corpus, records, model):
    manifest = json.loads((corpus[0] / "manifest.json").read_text())
    texts = [text for _, text in records if text.strip()]
    bare = sentencepiece.SentencePieceProcessor(model_file=str(model / "tokenizer.model"))
    assert manifest["documents"] == len(texts) == len(records) - 2
    assert manifest["empty_documents"] == 2
    assert manifest["tokens"] == sum(map(len, bare.encode(texts)))
    assert manifest["bytes"] == sum(len(text.encode()) for text in texts)
    assert manifest["inputs"] == [str(corpus[1])]
    assert manifest["source"] == "test"
    assert (manifest["held_out_fraction"], manifest["held_out_documents"]) == (HELD_OUT, 0)
    copied = (corpus[0] / "tokenizer" / "tokenizer.model").read_bytes()
    assert copied == (model / "tokenizer.model").read_bytes()
    assert manifest["tokenizer"] == {
        "special_ids": {"pad": 0, "eos": 1, "bos": 2, "unk": 3, "mask": 4},
        "sha256": hashlib.sha256(copied).hexdigest(),
        "content": tokenizer_identity.content(model / "tokenizer.model"),
        "vocab_size": bare.get_piece_size(),
        "file": "tokenizer.model",
    }


def test_every_shard_has_a_digest_of_what_is_trained_on(corpus):
    """The records without their document ids, which depend on where the input lay."""
    folder, manifest = corpus[0], json.loads((corpus[0] / "manifest.json").read_text())
    for row_length, splits in manifest["row_lengths"].items():
        for split, entry in splits.items():
            rows = iter(rows_source(folder, manifest, int(row_length), split))
            for shard in entry["shards"]:
                digest = hashlib.blake2b(digest_size=8)
                for record in itertools.islice(rows, shard["rows"]):
                    tokens, segments = struct.unpack_from("<II", record)
                    digest.update(record[: 8 + 4 * tokens + 4 * segments])
                assert shard["digest"] == digest.hexdigest()


def test_large_languages_have_shards_of_their_own_and_small_ones_share(corpus):
    manifest = json.loads((corpus[0] / "manifest.json").read_text())
    train = manifest["row_lengths"]["64"]["train"]
    ends = np.cumsum([shard["rows"] for shard in train["shards"]])
    of = {
        name: np.searchsorted(ends, [x["first_row"], x["first_row"] + x["rows"] - 1], "right")
        for name, x in train["languages"].items()
    }
    assert of["de"][1] - of["de"][0] >= 2  # de has some 8,000 tokens, a shard about 3,000
    shared = [name for name in of if any(of[name][1] == of[o][0] for o in of if o != name)]
    assert shared
    assert max(shard["rows"] for shard in train["shards"]) * 64 < 6000


def test_a_small_corpus_has_shards_for_many_processes(tmp_path, corpus, model, monkeypatch):
    monkeypatch.setattr(deal, "LEAST_SHARED", 64)
    settings = preparation.Settings(model, Fields(), (64,), held_out=0.0)
    inputs, _ = find_inputs([corpus[1]], None)
    manifest = preparation.prepare_corpus(inputs, settings, tmp_path / "c", 1, "test")
    shards = manifest["row_lengths"]["64"]["train"]["shards"]
    rows = sum(shard["rows"] for shard in shards)
    assert 50 <= len(shards) <= 100
    assert max(shard["rows"] for shard in shards) < rows / 10


def test_rows_are_in_random_order(corpus):
    """Documents, long ones too, do not stand in the order of the input, nor together."""
    ids = [found[0] for _, found in read_rows(corpus[0], 64, "train")]
    assert ids != sorted(ids)
    assert np.mean(np.diff(ids) > 0) < 0.7


def test_a_large_language_is_dealt_in_runs_of_parts(tmp_path, corpus, records, model, monkeypatch):
    """A deal reads of few parts, however many the language has; every document is there once."""
    read_of = []
    read = pack.read_deal
    monkeypatch.setattr(
        pack,
        "read_deal",
        lambda dealt, *rest: read_of.append(dealt) or read(dealt, *rest),
    )
    monkeypatch.setattr(pieces, "LEAST", 4000)
    monkeypatch.setattr(deal, "PART_TOKENS", 500)
    monkeypatch.setattr(deal, "DEALT_TOGETHER", 2000)
    settings = preparation.Settings(model, Fields(), (64,), held_out=0.0)
    inputs, _ = find_inputs([corpus[1]], None)
    preparation.prepare_corpus(inputs, settings, tmp_path / "c", 1, "test")
    parts_of = {}
    for dealt in read_of:
        parts = {cut.share.block.part for cut in dealt.cuts}
        parts_of.setdefault(dealt.language, []).append(parts)
    large = max(parts_of.values(), key=lambda found: len(set.union(*found)))
    assert max(map(len, large)) < len(set.union(*large)) / 2
    found = sorted(i for _, ids in read_rows(tmp_path / "c", 64, "train") for i in set(ids))
    assert set(found) == {i for i, (_, text) in enumerate(records, 1) if text.strip()}


def test_a_shard_takes_many_parts_of_a_language(tmp_path, corpus, records, model, monkeypatch):
    """Memory is for a part, however large a shard is: every document once, a language's rows in one range."""
    sizes = []
    read = pack.read_deal
    monkeypatch.setattr(
        pack,
        "read_deal",
        lambda dealt, *rest: sizes.append(dealt.size.tokens) or read(dealt, *rest),
    )
    monkeypatch.setattr(deal, "PART_TOKENS", 500)
    settings = preparation.Settings(model, Fields(), (64,), held_out=0.0)
    inputs, _ = find_inputs([corpus[1]], None)
    manifest = preparation.prepare_corpus(inputs, settings, tmp_path / "c", 1, "test")
    train = manifest["row_lengths"]["64"]["train"]
    assert len(train["shards"]) == 1
    assert len(sizes) > 10
    # A document stays whole, and two are long.
    assert sorted(sizes)[-3] < 1500
    rows = read_rows(tmp_path / "c", 64, "train")
    for language, counts in train["languages"].items():
        of_language = rows[counts["first_row"] : counts["first_row"] + counts["rows"]]
        found = {identity for _, ids in of_language for identity in ids}
        assert found == {
            line
            for line, record in enumerate(records, 1)
            if record[0] == language and record[1].strip()
        }
