"""MDS: what mosaicml-streaming's own writer leaves, and shards that are damaged or ask for more than is there."""

import json
import pickle
import resource
import struct

import numpy as np
import pytest
import zstandard
from mds_writer import folder as to_write
from mds_writer import write_mds

from mmbert_jax.data.sources import mds
from mmbert_jax.errors import UserError

SAMPLES = [
    {
        "id": f"doc-{i}",
        "text": "Zeile\n𠮷" * i,
        "n": -i,
        "raw": bytes(range(i)).hex(),
        "meta": {"a": [i]},
        "ids": list(range(i + 1)),
        "any": list(range(i + 1)),
        "fixed": [i, i + 1],
        "small": i,
        "digits": 10**i,
    }
    for i in range(30)
]
COLUMNS = {
    "id": "str",
    "text": "str",
    "n": "int",
    "raw": "bytes",
    "meta": "json",
    "ids": "ndarray:uint32",
    "any": "ndarray",
    "fixed": "ndarray:int64:2",
    "small": "uint16",
    "digits": "str_int",
}


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """plain, zstd: SAMPLES in several shards; root: two folders with a merged index; pickled: one column of pickles."""
    folder = tmp_path_factory.mktemp("mds")

    short = [{"text": f"text {i}"} for i in range(5)]
    text = {"text": "str"}
    folders = [
        to_write(folder / "plain", COLUMNS, SAMPLES, size_limit=1500),
        to_write(folder / "zstd", COLUMNS, SAMPLES, "zstd:7", 1500),
        to_write(folder / "root/a", text, short[:2], "zstd"),
        to_write(folder / "root/a-dup", text, short[2:]),
        to_write(folder / "pickled", text | {"x": "pkl"}, [{"text": "a", "x": [1]}]),
        to_write(folder / "gzip", text, short, "gz"),
    ]
    write_mds(folder / "recipe.json", folders, merge=[folder / "root"])
    return folder


def read(folder, columns=tuple(COLUMNS)):
    return [
        sample
        for shard in mds.read_index(folder / mds.INDEX)
        for _, sample in mds.read_samples(shard, 0, shard.samples, columns)
    ]


def plain(sample):
    """Arrays as lists, text as it is stored."""
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in sample.items()}


@pytest.mark.parametrize("name", ["plain", "zstd"])
def test_every_column_of_the_librarys_own_shards(written, name):
    shards = mds.read_index(written / name / mds.INDEX)
    assert len(shards) > 3
    assert {shard.compressed for shard in shards} == {name == "zstd"}
    expected = [
        {**s, "id": s["id"].encode(), "text": s["text"].encode(), "raw": bytes.fromhex(s["raw"])}
        for s in SAMPLES
    ]
    assert [plain(s) for s in read(written / name)] == expected
    assert sorted(mds.column_names(shards[0])) == sorted(COLUMNS)
    assert [plain(s) for s in read(written / name, ["n", "none"])] == [
        {"n": s["n"]} for s in SAMPLES
    ]


@pytest.mark.parametrize("name", ["plain", "zstd"])
def test_a_range_of_samples(written, name):
    shard = mds.read_index(written / name / mds.INDEX)[1]
    whole = list(mds.read_samples(shard, 0, shard.samples, ["id"]))
    assert [number for number, _ in whole] == list(range(1, shard.samples + 1))
    for start, stop in ((0, 0), (0, 1), (1, 3), (shard.samples - 1, shard.samples)):
        assert list(mds.read_samples(shard, start, stop, ["id"])) == whole[start:stop]


def test_a_merged_index(written):
    assert sorted(s["text"] for s in read(written / "root", ["text"])) == [
        f"text {i}".encode() for i in range(5)
    ]


def test_pickles_are_passed_over_but_never_read(written, monkeypatch):
    monkeypatch.setattr(pickle, "loads", None)
    assert read(written / "pickled", ["text"]) == [{"text": b"a"}]
    with pytest.raises(UserError, match="shard.00000.mds: column 'x' is pickled; reading it could"):
        read(written / "pickled", ["text", "x"])


def test_other_compressions_are_named(written):
    with pytest.raises(UserError, match="index.json, shard 0: compressed by 'gz'; only zstd"):
        read(written / "gzip")


# --- damaged, or made to do harm ---


def shard_bytes(samples=(b"\1\0\0\0a",), config=None, first=None, count=None, offsets=None):
    config = json.dumps(
        config or {"column_names": ["text"], "column_encodings": ["str"], "column_sizes": [None]}
    ).encode()
    start = 8 + 4 * len(samples) + len(config) if first is None else first
    ends = start + np.cumsum([len(s) for s in samples])
    ends = [start, *ends.tolist()] if offsets is None else offsets
    n = len(samples) if count is None else count
    return struct.pack(f"<I{len(ends)}I", n, *ends) + config + b"".join(samples)


def write(folder, data=None, **changes):
    data = shard_bytes() if data is None else data
    entry = {
        "format": "mds",
        "version": 2,
        "samples": 1,
        "compression": None,
        "hashes": [],
        "raw_data": {"basename": "s.mds", "bytes": len(data), "hashes": {}},
        "zip_data": None,
        **changes,
    }
    (folder / "s.mds").write_bytes(data)
    (folder / mds.INDEX).write_text(json.dumps({"version": 2, "shards": [entry]}))
    return folder


def test_the_bytes_of_these_tests_are_a_shard(tmp_path):
    assert read(write(tmp_path), ["text"]) == [{"text": b"a"}]


@pytest.mark.parametrize(
    "basename", ["../s.mds", "/etc/passwd", "a/../../s.mds", "..\\s.mds", "", "a\0b"]
)
def test_files_outside_of_the_folder_are_not_read(tmp_path, basename):
    folder = write(tmp_path, raw_data={"basename": basename, "bytes": 100, "hashes": {}})
    with pytest.raises(UserError, match="index.json, shard 0: .* is no file within the index's"):
        mds.read_index(folder / mds.INDEX)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 1 << 31}, "2147483648 samples cannot be in"),
        ({"samples": -1}, "-1 samples cannot"),
        ({"samples": "1"}, "'1' samples cannot"),
        ({"samples": True}, "True samples cannot"),
        ({"raw_data": {"basename": "s.mds", "bytes": 1 << 60}}, "at most 4 GiB"),
        ({"raw_data": {"basename": 3, "bytes": 1}}, "'raw_data' names no file"),
        ({"raw_data": None}, "'raw_data' is missing"),
        ({"version": 1}, "version 1 where 2 is read"),
        ({"raw_data": {"basename": "s.mds", "bytes": 99}}, "s.mds: has 96 bytes where .* says 99"),
        ({"samples": 3}, "s.mds: has 1 samples where its index says 3"),
    ],
)
def test_an_index_that_is_not_true(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        read(write(tmp_path, **changes), ["text"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (shard_bytes(first=1 << 31), "a header of"),
        (shard_bytes(offsets=[96 - 5, 1 << 31]), "samples lie outside"),
        (shard_bytes(offsets=[96 - 5, 4]), "samples lie outside"),
        (shard_bytes(config={"column_names": []}), "no JSON of MDS"),
        (shard_bytes(samples=[b"\xff\xff\xff\xff"]), "reaches beyond its end"),
        (shard_bytes(samples=[b"\1"]), "1 bytes are too few"),
        (
            shard_bytes(
                config={
                    "column_names": ["text"],
                    "column_encodings": ["str"],
                    "column_sizes": [1 << 70],
                }
            ),
            "column 'text' has a size of",
        ),
        (
            shard_bytes(
                config={
                    "column_names": ["text"],
                    "column_encodings": ["jpeg"],
                    "column_sizes": [None],
                }
            ),
            "column 'text' is encoded as 'jpeg'",
        ),
        (
            shard_bytes(
                samples=[struct.pack("<IBBQ", 10, 32, (1 << 2) | 3, 1 << 62)],
                config={
                    "column_names": ["text"],
                    "column_encodings": ["ndarray"],
                    "column_sizes": [None],
                },
            ),
            "column 'text' is no 'ndarray'",
        ),
    ],
)
def test_a_shard_that_is_not_true(tmp_path, data, message):
    with pytest.raises(UserError, match=f"s.mds.*{message}"):
        read(write(tmp_path, data), ["text"])


@pytest.mark.parametrize("name", ["plain", "zstd"])
def test_truncated_anywhere(written, tmp_path, name):
    """Whatever is left of a shard, the reading ends in an error that names it, or in what was there."""
    shard = mds.read_index(written / name / mds.INDEX)[0]
    data = shard.path.read_bytes()
    whole = [plain(s) for s in read(written / name)][: shard.samples]
    for size in range(0, len(data), 37):
        cut = tmp_path / f"{size}.mds"
        cut.write_bytes(data[:size])
        left = mds.Shard(cut, shard.compressed, shard.samples, shard.size)
        got = []
        samples = mds.read_samples(left, 0, shard.samples, list(COLUMNS))
        with pytest.raises(UserError, match=f"^{cut}: "):
            got.extend(plain(sample) for _, sample in samples)
        assert len(got) < len(whole)


def test_flipped_bytes_never_do_more_than_raise(written, tmp_path):
    shard = mds.read_index(written / "plain" / mds.INDEX)[0]
    data = shard.path.read_bytes()
    draw = np.random.default_rng(0)
    faults = 0
    for _ in range(400):
        changed = bytearray(data)
        for at in draw.integers(0, len(data), 3):
            changed[at] = draw.integers(256)
        (tmp_path / "s.mds").write_bytes(changed)
        damaged = mds.Shard(tmp_path / "s.mds", False, shard.samples, shard.size)
        fault = None
        try:
            list(mds.read_samples(damaged, 0, shard.samples, list(COLUMNS)))
        except UserError as error:
            fault = str(error)
        assert fault is None or fault.startswith(f"{tmp_path}/s.mds")
        faults += fault is not None
    assert faults > 100


def test_a_size_in_an_index_takes_no_memory(tmp_path):
    """A compressed shard of a few bytes that is said to have 4 GiB and 2^26 samples."""
    data = zstandard.ZstdCompressor().compress(struct.pack("<II", 1 << 26, 8))
    (tmp_path / "s.mds.zstd").write_bytes(data)
    shard = mds.Shard(tmp_path / "s.mds.zstd", True, 1 << 26, (1 << 32) - 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="ends after 8 of 4294967295 bytes"):
        mds.column_names(shard)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB
