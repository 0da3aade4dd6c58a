"""The record format read with struct, both kinds of shards, and what damage to a corpus is called."""

import json
import pickle
import struct

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tiny_corpus import write_corpus

from mmbert_jax.data import corpus
from mmbert_jax.errors import UserError

ROWS = {"deu": 30, "eng": 90}


@pytest.fixture(params=["new", "old"])
def folder(tmp_path, request):
    """120 rows in three shards, as they are written now and as version 1 had them."""
    return write_corpus(
        tmp_path / "corpus",
        ROWS,
        rows_per_shard=50,
        held_out={"eng": 2},
        old=request.param == "old",
    )


def rows_of(folder, split="train"):
    return corpus.rows_source(folder, corpus.read_manifest(folder), 16, split)


def raw_records(folder):
    """The training records in order, without the project's readers."""
    records = []
    for shard in sorted(folder.glob("train_*")):
        if shard.suffix == ".arrayrecord":
            reader = ArrayRecordReader(str(shard))
            records += reader.read_all()
            reader.close()
            continue
        for _, length, *slot in np.load(shard).tolist():
            records.append(np.array(slot, "<u4").tobytes()[:length])
    return records


# --- one row ---


@st.composite
def rows(draw):
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=8))
    n, s = sum(lengths), len(lengths)
    return (
        draw(hnp.arrays(np.uint32, n)),
        np.cumsum(lengths),
        draw(hnp.arrays(np.uint64, s)),
    )


@given(rows())
def test_a_record_is_as_the_module_says(row):
    tokens, ends, ids = row
    n, s = len(tokens), len(ends)
    record = corpus.encode_row(tokens, ends, ids)
    unpacked = struct.unpack(f"<II{n}I{s}I{s}Q", record)
    assert unpacked == (n, s, *tokens.tolist(), *ends.tolist(), *ids.tolist())
    decoded = corpus.decode_row(record)
    for ours, expected, dtype in zip(decoded, row, (np.uint32, np.uint32, np.uint64), strict=True):
        assert ours.dtype == dtype
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize(
    "change", [lambda r: b"", lambda r: r[:5], lambda r: r[:-1], lambda r: r + b"0"]
)
def test_a_record_of_another_length_is_refused(change):
    record = corpus.encode_row(np.arange(6), np.array([6]), np.array([1]))
    with pytest.raises(UserError, match="bytes is not a packed row: prepare the corpus again"):
        corpus.decode_row(change(record))


@given(
    st.lists(rows(), max_size=4),
    st.integers(0, 5),
    st.integers(0, 2),
    st.sampled_from([np.uint32, np.int64, np.uint64]),
)
def test_arrays_of_rows_are_what_the_model_is_told(found, padding, more, dtype):
    row_length = max((len(tokens) for tokens, _, _ in found), default=7) + padding
    empty = np.zeros(0, np.uint32), np.zeros(0, np.int64)
    given_rows = [(tokens % 1000, ends.astype(dtype)) for tokens, ends, _ in found]
    given_rows += [empty] * more
    arrays = corpus.rows_to_arrays(given_rows, row_length, pad=0)
    for slot, (tokens, ends) in enumerate(given_rows):
        segment, position, expected = 1, 0, []
        for i, token in enumerate(tokens.tolist()):
            expected.append((token, segment, position))
            position += 1
            if i + 1 == ends[segment - 1]:
                segment, position = segment + 1, 0
        expected += [(0, 0, 0)] * (row_length - len(tokens))
        for name, column in zip(
            ("tokens", "segment_ids", "positions"), zip(*expected, strict=True), strict=True
        ):
            assert arrays[name].dtype == np.int32
            assert arrays[name].shape == (len(found) + more, row_length)
            assert arrays[name][slot].tolist() == list(column)


@given(st.integers(0, 2**24 - 1), st.integers(1, 2**40 - 1))
def test_a_document_id_says_file_and_line(index, line):
    class Inputs(dict):
        """As long a list as there are ids for."""

        def __missing__(self, key):
            return f"file {key}"

    identity = corpus.document_id(index, line)
    assert np.uint64(identity) == identity
    manifest = {"inputs": Inputs()}
    assert corpus.locate_document(manifest, identity) == (f"file {index}", line)
    assert corpus.locate_document(manifest, np.uint64(identity)) == (f"file {index}", line)


# --- all rows ---


def test_rows_are_the_records_of_the_shards_laid_end_to_end(folder):
    raw = raw_records(folder)
    source = rows_of(folder)
    assert len(source) == len(raw) == 120
    assert list(source) == raw
    wanted = [77, 3, 119, 3, 50, 49, 0]
    assert source.__getitems__(wanted) == [raw[row] for row in wanted]
    assert source.__getitems__([]) == []
    for row in (120, -1):
        with pytest.raises(IndexError):
            source[row]


def test_rows_can_be_sent_to_a_worker_process(folder):
    source = rows_of(folder)
    expected = source[77]
    assert pickle.loads(pickle.dumps(source))[77] == expected


def test_a_split_without_rows_is_empty(tmp_path):
    assert len(rows_of(write_corpus(tmp_path / "c", {"eng": 3}), "held_out")) == 0


# --- damage ---


def test_array_record_opens_a_truncated_shard_without_complaint(tmp_path):
    """The reason for counting the records of one that is opened: it has none, and only closing it tells."""
    folder = write_corpus(tmp_path / "corpus", ROWS, rows_per_shard=50, old=True)
    shard = sorted(folder.glob("train_*"))[1]
    shard.write_bytes(shard.read_bytes()[:-1000])
    reader = ArrayRecordReader(str(shard))
    assert reader.num_records() == 0
    with pytest.raises(RuntimeError):
        reader.close()
    with pytest.raises(UserError):
        rows_of(folder)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[: len(data) // 3],
        lambda data: data[:100],
        lambda data: b"not a shard at all" * 1000,
    ],
    ids=["empty", "last byte", "a third", "head", "text"],
)
def test_a_shard_of_another_size_is_named_before_anything_is_read(folder, damage):
    shard = sorted(folder.glob("train_*"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(damage(whole))
    with pytest.raises(UserError) as caught:
        rows_of(folder)
    what = (
        f"{shard.stat().st_size} bytes where the corpus has {len(whole)}: truncated or changed"
        if shard.suffix == ".npy"
        else "shard is truncated or damaged"
    )
    assert str(caught.value) == f"{shard}: {what}; copy it again or prepare the corpus again"


@pytest.mark.parametrize("damage", [lambda data: bytes(len(data)), lambda data: data[:100] * 1000])
def test_other_content_of_the_same_size_is_named_when_it_is_read(folder, damage):
    shard = sorted(folder.glob("train_*"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(damage(whole)[: len(whole)].ljust(len(whole), b"x"))
    source = rows_of(folder)
    assert source.__getitems__([0, 49, 100])
    for row in (50, 99):
        with pytest.raises(
            UserError, match=f"^{shard}: .* damaged; copy .* prepare the corpus again"
        ):
            source[row]


def test_a_missing_shard_is_named(folder):
    shard = sorted(folder.glob("train_*"))[2]
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard}: shard is missing; copy it again or prepare"):
        rows_of(folder)


def test_a_shard_of_another_corpus_is_noticed(folder):
    first, _, last = sorted(folder.glob("train_*"))
    first.write_bytes(last.read_bytes())  # 20 rows instead of 50
    with pytest.raises(UserError, match=f"{first}: .* truncated or changed; copy it again"):
        rows_of(folder)[0]


def test_rows_of_another_shard_of_the_same_size_are_noticed(tmp_path):
    """Row 3 of a shard is not taken for its row 4, whatever program has moved it."""
    folder = write_corpus(tmp_path / "corpus", {"eng": 10})
    (shard,) = folder.glob("train_*")
    slots = np.load(shard)
    np.save(shard, slots[[0, 1, 2, 4, 3, *range(5, 10)]])
    source = rows_of(folder)
    assert all(source[row] for row in (2, 5))
    for row in (3, 4):
        with pytest.raises(UserError, match=f"{shard}: row {row} is damaged"):
            source[row]


@pytest.mark.parametrize("shard_number", [0, 1, 2])
def test_flipped_bytes_are_found_when_their_row_is_read(folder, shard_number):
    """No row comes back other than it was written, and the shard of the one that cannot is named."""
    expected = list(rows_of(folder))
    shard = sorted(folder.glob("train_*"))[shard_number]
    data = shard.read_bytes()
    used = len(data.rstrip(b"\0"))
    messages = []
    for at in range(100, min(used, 10_000), 97):
        shard.write_bytes(data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :])
        try:
            source = rows_of(folder)
        except UserError as error:  # the shard's index was hit
            messages.append(f"{shard_number} {error}")
            continue
        for row, record in enumerate(expected):
            try:
                assert source[row] == record
            except UserError as error:
                messages.append(f"{row // 50} {error}")
    assert len(messages) > 15
    for message in messages:
        assert message.startswith(f"{shard_number} {shard}: ")
        assert "damaged" in message
        assert message.endswith("again or prepare the corpus again")


# --- the manifest ---


def test_no_corpus_there(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match=f"{folder}: no corpus here .*tools/prepare_corpus.py"):
            corpus.read_manifest(folder)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UserError, match="file: no corpus here"):
        corpus.read_manifest(file)


@pytest.mark.parametrize("content", [b"", b'{"format": "mmbert_jax co', b"\xff\xfe{}"])
def test_a_damaged_manifest(folder, content):
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match="manifest.json: damaged .*; prepare the corpus again"):
        corpus.read_manifest(folder)


@pytest.mark.parametrize("content", ["[]", "{}", '{"format": "another"}', "3"])
def test_the_manifest_of_something_else(folder, content):
    (folder / "manifest.json").write_text(content)
    with pytest.raises(UserError, match="manifest.json: not the manifest of a mmbert_jax corpus"):
        corpus.read_manifest(folder)


@pytest.mark.parametrize("version", [0, 3, None])
def test_another_version(folder, version):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["version"] = version
    if version is None:
        del manifest["version"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        UserError, match=f"version {version}, but this program reads versions 1 and 2; prepare"
    ):
        corpus.read_manifest(folder)


def test_another_row_length_says_how_to_get_it(folder):
    with pytest.raises(UserError, match="no rows of 1024 tokens, only of 16; .* --row_length 1024"):
        corpus.rows_source(folder, corpus.read_manifest(folder), 1024, "train")
