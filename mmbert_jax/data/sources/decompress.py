"""Files as streams of text: plain, .gz, .zst, on a disk or in a bucket."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import zstandard

from mmbert_jax.errors import UserError, brief
from mmbert_jax.places import Place, is_remote

COMPRESSION_SUFFIXES = ("", ".gz", ".zst")
# zstd's largest, that of `zstd --long=31`. A file takes as much memory while it is read as the window it was written
# with, if it has so much text: 8 MB as a rule, 2 GiB with --long=31; one file at a time, in the reading process alone.
LARGEST_WINDOW = 1 << 31
_BUFFER = 1 << 17


def is_compressed(path: Place) -> bool:
    return path.suffix in COMPRESSION_SUFFIXES[1:]


def open_decompressed(path: Place, raw: BinaryIO) -> BinaryIO:
    """The content of an open file, decompressed as its name says; `raw` keeps the position in the file as it is stored.

    Raises:
      EOFError: an empty file of a compressed kind: gzip takes it for a file of no text, but the shortest has a header.
    """
    if is_compressed(path):
        if not raw.read(1):
            raise EOFError("the file is empty")
        raw.seek(0)
    if path.suffix == ".gz":
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), _BUFFER)
    if path.suffix == ".zst":
        return open_zstd(raw)
    # A bucket's streams look for the ends of lines in Python.
    return raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(raw, _BUFFER)


def open_zstd(raw: BinaryIO) -> BinaryIO:
    """What an open file of zstd frames holds."""
    return io.BufferedReader(_ZstdReader(raw), _BUFFER)


class _ZstdReader(io.RawIOBase):
    """zstd frames one after another, as parallel compressors and `cat` leave them.

    zstandard's own stream reader takes the end of a truncated file for the end of the text.
    """

    def __init__(self, raw: BinaryIO):
        self._raw = raw
        self._frame = _new_frame()
        self._pending = b""  # compressed, behind the end of a frame
        self._text = memoryview(b"")
        self._within_frame = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._text:
            compressed = self._pending or self._raw.read(_BUFFER)
            self._pending = b""
            if not compressed:
                if self._within_frame:
                    raise EOFError("the compressed data end within a frame")
                return 0
            self._text = memoryview(self._frame.decompress(compressed))
            self._within_frame = not self._frame.eof
            if self._frame.eof:
                self._pending = self._frame.unused_data
                self._frame = _new_frame()
        n = min(len(buffer), len(self._text))
        buffer[:n] = self._text[:n]
        self._text = self._text[n:]
        return n


def _new_frame() -> "zstandard.ZstdDecompressionObj":
    return zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW).decompressobj()


@contextmanager
def readable(path: Place) -> Iterator[None]:
    """Errors that arise within, of reading and of decompressing `path`, become a `UserError` that names it."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise UserError(
            f"{path}: damaged or not compressed as its name says ({error}); copy or compress it again"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UserError:
        raise
    except Exception as error:
        # What a bucket's client raises when its own retries have come to an end need not be an OSError.
        if not is_remote(path):
            raise
        raise UserError(f"{path}: cannot be read ({brief(error)}); try again later") from None
