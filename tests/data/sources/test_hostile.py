"""Files that are damaged, or made to do harm: a clear error or a counted record, bounded memory, nothing executed."""

import bz2
import gzip
import json
import lzma
import struct
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from mds_writer import folder as to_write
from mds_writer import write_mds

from mmbert_jax.data.sources import Fields, find_inputs, read_documents, read_slice, split
from mmbert_jax.errors import UserError

LINES = b"".join(b'{"language": "eng", "text": "line %d"}\n' % i for i in range(300))
ENDS = (2, 1)  # <bos>, <eos>


def read(path, skip=False, language=None):
    """(texts, why records were passed over)"""
    inputs, _ = find_inputs([path], language)
    batches = list(read_documents(inputs, Fields(ends=ENDS, skip_faults=skip)))
    reasons: dict[str, int] = {}
    for batch in batches:
        for reason, count in batch.faults.counts.items():
            reasons[reason] = reasons.get(reason, 0) + count
    return [document.text for batch in batches for document in batch.documents], reasons


@pytest.mark.parametrize(
    "compress", [bytes, gzip.compress, zstandard.compress, bz2.compress, lzma.compress]
)
def test_flipped_bytes_never_do_more_than_raise(tmp_path, compress):
    """The error names the file; where records are passed over, those that come through are the file's own kind."""
    data = compress(LINES)
    draw = np.random.default_rng(0)
    path = tmp_path / "a.jsonl"
    raised = 0
    for i in range(60):
        changed = bytearray(data)
        for at in draw.integers(len(data), size=1 + i % 8):
            changed[at] = draw.integers(256)
        path.write_bytes(changed[: draw.integers(1, len(data) + 1)] if i % 3 == 0 else changed)
        for skip in (False, True):
            try:
                texts, _ = read(path, skip)
                assert all(isinstance(text, str) for text in texts)
            except UserError as error:
                assert str(error).startswith(str(path))  # noqa: PT017
                raised += 1
    assert raised > 20


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_a_line_of_50_megabytes(tmp_path, compress):
    """It is read once, by the slice in which it begins, though others begin within it."""
    long = "words " * (50_000_000 // 6)
    records = [{"language": "eng", "text": text} for text in ("a", long, "b")]
    path = tmp_path / "a.jsonl"
    path.write_bytes(compress("".join(json.dumps(x) + "\n" for x in records).encode()))
    inputs, _ = find_inputs([path], None)
    parts = [part for piece in split(inputs) for part in piece]
    assert compress is not bytes or len(parts) > 1
    batches = [batch for part in parts for batch in read_slice(part, Fields())]
    assert [x.text for batch in batches for x in batch.documents] == ["a", long, "b"]


# A header that promises 2^60 bytes; one that wants a window of 3.75 GB, beyond what zstd itself writes.
PROMISES = struct.pack("<IBQ", 0xFD2FB528, 0b11100000, 1 << 60)
WINDOW = struct.pack("<IBB", 0xFD2FB528, 0, (21 << 3) | 7)
READ = """
import resource, sys
from mmbert_jax.data.sources import Fields, find_inputs, read_documents
from mmbert_jax.errors import UserError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    inputs, _ = find_inputs([sys.argv[1]], "eng")
    list(read_documents(inputs, Fields()))
except UserError as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def parquet_with_footer_size(size):
    return b"PAR1" + bytes(100) + struct.pack("<I", size) + b"PAR1"


ABSURD = {
    "zstd, content": ("a.jsonl.zst", PROMISES + bytes(20), "damaged or not compressed as its"),
    "zstd, window": ("a.jsonl.zst", WINDOW + bytes(20), "damaged or not compressed as its name"),
    "parquet, footer": ("a.parquet", parquet_with_footer_size(0xFFFFFFF0), "damaged, or no Parq"),
    "parquet, empty footer": ("a.parquet", parquet_with_footer_size(0), "damaged, or no Parquet"),
    "gzip, extra field": ("a.jsonl.gz", b"\x1f\x8b\x08\4" + bytes(6) + b"\xff\xff", "damaged or"),
}


@pytest.mark.parametrize(("name", "data", "message"), ABSURD.values(), ids=ABSURD)
def test_absurd_sizes_in_headers_take_no_memory(tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data)
    command = [sys.executable, "-c", READ, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said, memory = done.stdout.splitlines()
    assert said.startswith(f"{path}: {message}")
    assert int(memory) < 60_000  # kB


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        (pa.array([1, 2, 3]), "field 'text' is a int"),
        (pa.array([["a"], ["b"], []]), "field 'text' is a list"),
        (pa.array([None, None, None], pa.string()), "field 'text' is a NoneType"),
        (pa.array([b"\xff", b"\xed\xa0\x80", b"\x80"]), "invalid UTF-8"),
    ],
)
def test_columns_of_other_types_are_counted(tmp_path, column, reason):
    path = tmp_path / "a.parquet"
    table = {"text": pa.chunked_array([column, column.slice(0, 0)]), "language": ["eng"] * 3}
    pq.write_table(pa.table(table), path)
    with pytest.raises(UserError, match=f"^{path}, row 1: .*{reason.removeprefix('field ')}"):
        read(path)
    assert read(path, skip=True) == ([], {reason: 3})


NO_TOKENS = [
    ("ndarray:float32", [1.0, 2.0], "holds no list of token ids"),
    ("ndarray:int64", [[5, 6], [7, 8]], "holds no list of token ids"),
    ("ndarray:int64", [5, -1], "holds -1 to 5, no ids"),
    ("ndarray:int64", [5, 1 << 40], "holds 5 to 1099511627776, no ids"),
    ("str", "words", "holds no list of token ids"),
    ("json", {"a": 1}, "holds no list of token ids"),
    ("pkl", [5, 6], "is pickled; reading it could run anything"),
]


def test_tokens_that_are_none(tmp_path):
    folders = [
        to_write(tmp_path / str(i), {"input_ids": encoding}, [{"input_ids": value}])
        for i, (encoding, value, _) in enumerate(NO_TOKENS)
    ]
    write_mds(tmp_path / "recipe.json", folders)
    for i, (_, _, message) in enumerate(NO_TOKENS):
        with pytest.raises(UserError, match=f"^{tmp_path}/{i}/.*column 'input_ids' {message}"):
            read(tmp_path / str(i), language="eng")
