"""Compressed streams that are unusual, though right: long windows, and byte streams that are not files."""

import gzip
import io
import json
import subprocess
import sys

import pytest
import zstandard

from mmbert_jax.data.sources import open_decompressed, readable
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
