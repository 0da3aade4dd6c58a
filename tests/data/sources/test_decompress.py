"""Compressed streams that are unusual, though right: long windows, and byte streams that are not files."""

import bz2
import gzip
import io
import json
import lzma
import random
import shutil
import struct
import subprocess
import sys
import zlib

import pytest
import zstandard

from mmbert_jax.data.sources import (
    Fields,
    find,
    find_inputs,
    open_decompressed,
    pieces,
    read_slice,
    readable,
    records,
    split,
)
from mmbert_jax.data.sources.pieces import whole
from mmbert_jax.errors import UserError

TEXT = "".join(json.dumps({"text": f"line {i}"}) + "\n" for i in range(3000)).encode()


def with_window(log: int) -> bytes:
    """As `zstd --long=LOG` writes text that comes through a pipe, so that its size is not known."""
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=log, enable_ldm=True)
    frame = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = frame.compress(TEXT) + frame.flush()
    assert zstandard.get_frame_parameters(data).window_size == 1 << log
    return data


@pytest.mark.parametrize("log", [23, 27, 28, 31])
def test_every_window_of_zstd_is_read(tmp_path, log):
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(with_window(log))
    with path.open("rb") as raw:
        assert open_decompressed(path, raw).read() == TEXT


def test_a_long_window_takes_no_memory_for_text_that_is_not_there(tmp_path):
    """It is reserved, but what is not written to is not used."""
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(with_window(31))
    program = f"""
import resource, pathlib
from mmbert_jax.data.sources import open_decompressed
path = pathlib.Path({str(path)!r})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with path.open("rb") as raw:
    open_decompressed(path, raw).read()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 50_000  # kB


COMMANDS = {
    "zstd": ["zstd", "-q", "-c"],
    "zstd --long": ["zstd", "-q", "-c", "--long=31"],
    "zstd -T2": ["zstd", "-q", "-c", "-T2", "-B524288"],
    "gzip": ["gzip", "-c"],
    "pigz": ["pigz", "-c", "-b", "128"],
    "pigz -i": ["pigz", "-c", "-i", "-b", "128"],
    "bgzip": ["bgzip", "-c"],
    "bzip2": ["bzip2", "-c"],
    "xz": ["xz", "-c", "-T2", "--block-size=100000"],
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("times", [1, 2])
def test_what_the_tools_themselves_write(tmp_path, command, times):
    """From a pipe, whole and put together by `cat`, whatever the name says."""
    if not shutil.which(command[0]):
        pytest.skip(f"there is no {command[0]} here")
    made = subprocess.run(command, input=TEXT * 10, capture_output=True, check=True).stdout
    path = tmp_path / "a.jsonl"
    path.write_bytes(made * times)
    with path.open("rb") as raw:
        assert open_decompressed(path, raw).read() == TEXT * 10 * times


def blocks_of_bgzip(text: bytes) -> bytes:
    """Members of at most 64 kB with a field of their own each, and an empty one (SAM's specification, 4.1)."""
    found = []
    for at in range(0, len(text) + 30_000, 30_000):
        deflate = zlib.compressobj(wbits=-15)
        part = text[at : at + 30_000]
        data = deflate.compress(part) + deflate.flush()
        head = struct.pack("<4BI2BH2BHH", 31, 139, 8, 4, 0, 0, 255, 6, 66, 67, 2, len(data) + 25)
        found.append(head + data + struct.pack("<II", zlib.crc32(part), len(part)))
    return b"".join(found)


def flushed_as_by_pigz(text: bytes) -> bytes:
    """One member, put together from what several threads have made of the text."""
    deflate = zlib.compressobj(wbits=31)
    blocks = [text[at : at + 30_000] for at in range(0, len(text), 30_000)]
    parts = [deflate.compress(x) + deflate.flush(zlib.Z_SYNC_FLUSH) for x in blocks]
    return b"".join(parts) + deflate.flush()


@pytest.mark.parametrize(
    "compress",
    [
        *(blocks_of_bgzip, flushed_as_by_pigz, gzip.compress),
        *(zstandard.compress, bz2.compress, lzma.compress),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "b"])
def test_a_large_file_is_cut_by_what_is_in_it(tmp_path, compress, name, monkeypatch):
    """One that is compressed cannot be cut at its lines, whatever it is called."""
    for module in (find, pieces):
        monkeypatch.setattr(module, "LEAST", 1 << 15)
    monkeypatch.setattr(pieces, "_STRIPED", 1 << 16)
    monkeypatch.setattr(records, "BATCH_BYTES", 10_000)
    draw = random.Random(0)
    texts = [draw.randbytes(1500).hex() for _ in range(100)]
    path = tmp_path / name
    path.write_bytes(compress("".join(json.dumps({"text": x}) + "\n" for x in texts).encode()))
    inputs, _ = find_inputs([path], "eng")
    parts = split(inputs)
    assert len(parts) > 1
    found = [
        document.text
        for piece in parts
        for part in piece
        for batch in read_slice(part, Fields())
        for document in batch.documents
    ]
    assert sorted(found) == sorted(texts)


def test_large_plain_files_are_cut_at_their_lines_unless_they_are_named_otherwise(tmp_path):
    for name, sequential in (("a.jsonl", False), ("a.jsonl.gz", True)):
        path = tmp_path / name
        path.write_bytes(TEXT * 40)
        (source,), _ = find_inputs([path], "eng")
        assert source.sequential == sequential
        if not sequential:
            assert len(split([source])) > 1


def test_text_files_that_are_compressed(tmp_path):
    for i, compress in enumerate((gzip.compress, zstandard.compress, bytes)):
        folder = tmp_path / "deu" / str(i)
        folder.mkdir(parents=True)
        (folder / "a.txt.gz").write_bytes(compress("Wörter".encode()))
    inputs, notes = find_inputs([tmp_path], None)
    batches = [batch for i in inputs for batch in read_slice(whole(0, i), Fields())]
    assert notes == []
    assert [d[2:4] for batch in batches for d in batch.documents] == [("deu", "Wörter")] * 3


BOMB = """
import resource, pathlib
from mmbert_jax.data.sources import Fields, find_inputs, read_documents
from mmbert_jax.errors import UserError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
inputs, _ = find_inputs([{path!r}], "eng")
try:
    list(read_documents(inputs, Fields()))
except UserError as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("compress", [gzip, zstandard], ids=lambda x: x.__name__)
def test_a_file_that_grows_without_end_takes_bounded_memory(tmp_path, compress):
    """800 MB of spaces, which are 27 kB of zstd and 3.5 MB of gzip: the beginning of a line that never ends."""
    path = tmp_path / "a.jsonl"
    zstd = zstandard.ZstdCompressor().compressobj()
    one = zstd if compress is zstandard else zlib.compressobj(1, wbits=31)
    frame = b"".join(one.compress(b" " * (1 << 20)) for _ in range(200)) + one.flush()
    path.write_bytes(frame * 4)
    done = subprocess.run(
        [sys.executable, "-c", BOMB.format(path=str(path))],
        capture_output=True,
        text=True,
        check=True,
    )
    message, memory = done.stdout.splitlines()
    assert message.startswith(f"{path}, line 1: longer than 268,435,456 bytes; is this one JSON")
    assert int(memory) < 700_000  # kB


class Unbuffered(io.RawIOBase):
    """As the streams of buckets are: one that looks for the ends of lines by itself, slowly."""

    def __init__(self, data: bytes):
        self._data = io.BytesIO(data)

    def readable(self):
        return True

    def readinto(self, buffer):
        return self._data.readinto(buffer)

    def seek(self, offset, whence=0):
        return self._data.seek(offset, whence)

    def tell(self):
        return self._data.tell()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", TEXT),
        ("a.jsonl.gz", gzip.compress(TEXT, mtime=0)),
        ("a.jsonl.zst", zstandard.compress(TEXT)),
    ],
    ids=["plain", "gz", "zst"],
)
def test_streams_that_are_no_files(tmp_path, name, data):
    stream = open_decompressed(tmp_path / name, Unbuffered(data))
    assert list(stream) == TEXT.splitlines(keepends=True)


def test_errors_of_the_disk_name_the_file(tmp_path):
    with pytest.raises(UserError, match="a.jsonl: cannot be read "), readable(tmp_path / "a.jsonl"):
        raise OSError(5, "Input/output error")


def test_faults_of_the_program_are_not_hidden(tmp_path):
    with pytest.raises(ZeroDivisionError), readable(tmp_path / "a.jsonl"):
        _ = 1 // 0
