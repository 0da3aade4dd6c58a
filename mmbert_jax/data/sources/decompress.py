"""Files as streams of text, whatever compresses them: gzip, zstd, bzip2, xz or nothing, on a disk or elsewhere.

Which it is the first bytes say, not the name: files are renamed, and servers unpack what they send.
"""

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import zstandard

from mmbert_jax.errors import UserError, brief
from mmbert_jax.places import Place, is_remote

COMPRESSION_SUFFIXES = ("", ".gz", ".zst", ".zstd", ".bz2", ".xz")
# zstd's largest, that of `zstd --long=31`. A file takes as much memory while it is read as the window it was written
# with, if it has so much text: 8 MB as a rule, 2 GiB with --long=31; one file at a time, in the reading process alone.
LARGEST_WINDOW = 1 << 31
_BUFFER = 1 << 17
# zstd makes up to 32 kB out of a byte, all at once: so much is given to it at a time that it makes at most 256 MB.
_AT_ONCE = 1 << 13
_LONGEST_MAGIC = 10


def is_named_compressed(path: Place) -> bool:
    return path.suffix in COMPRESSION_SUFFIXES[1:]


def compression(head: bytes) -> str | None:
    """What a file that begins with these 10 bytes, or all of its bytes if it has fewer, is compressed by; or None."""
    if head.startswith(b"\x1f\x8b\x08"):
        return "gzip"
    # A frame, or one of the sixteen kinds of frames that are to be skipped, as pzstd and seekable files have them.
    if head.startswith(b"\x28\xb5\x2f\xfd") or (
        head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F
    ):
        return "zstd"
    # Of bzip2 also the first block's mark, or that of a file without any: text can begin with "BZh9".
    if head[:3] == b"BZh" and head[4:10] in (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90"):
        return "bzip2"
    return "xz" if head.startswith(b"\xfd7zXZ\0") else None


def found_compression(path: Place, stream: io.BufferedReader) -> str | None:
    """What an open file is compressed by, by its first bytes, which stay to be read.

    Raises:
      EOFError: an empty file of a compressed kind: gzip takes it for a file of no text, but the shortest has a header.
      UserError: named as compressed, but neither that nor text.
    """
    head = stream.peek(_LONGEST_MAGIC)
    found = compression(head)
    if found is None and is_named_compressed(path):
        if not head:
            raise EOFError("the file is empty")
        if not _is_text(head):
            raise _damaged(path, f"it begins with {head[:4].hex(' ')}")
    return found


def _is_text(head: bytes) -> bool:
    """Whether this is the beginning of text in UTF-8: without control characters, which damaged headers have."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return not any(byte < 9 or 13 < byte < 27 for byte in head)


def _damaged(path: Place, reason: object) -> UserError:
    return UserError(
        f"{path}: damaged or not compressed as its name says ({reason}); copy or compress it again"
    )


def buffered(raw: BinaryIO) -> io.BufferedReader:
    """The same stream; a bucket's look for the ends of lines in Python, and cannot look ahead."""
    return raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(raw, _BUFFER)


def open_decompressed(path: Place, raw: BinaryIO) -> BinaryIO:
    """The content of an open file, decompressed as its first bytes say; `raw` keeps the position in it as it is stored.

    Raises:
      EOFError, UserError: as `found_compression`.
    """
    stream = buffered(raw)
    found = found_compression(path, stream)
    if found == "gzip":
        return io.BufferedReader(gzip.GzipFile(fileobj=stream), _BUFFER)
    if found == "zstd":
        return open_zstd(stream)
    if found == "bzip2":
        return io.BufferedReader(_Frames(stream, bz2.BZ2Decompressor, _BUFFER), _BUFFER)
    if found == "xz":
        return io.BufferedReader(_Frames(stream, _new_xz, _BUFFER), _BUFFER)
    return stream


def open_zstd(raw: BinaryIO) -> BinaryIO:
    """What an open file of zstd frames holds."""
    return io.BufferedReader(_Frames(raw, _new_zstd), _BUFFER)


class _Frames(io.RawIOBase):
    """Compressed frames one after another, as parallel compressors and `cat` leave them.

    The libraries' own readers take the end of a truncated zstd file, and what cannot be read behind a frame of bzip2 or
    xz, for the end of the text.
    """

    def __init__(self, raw: BinaryIO, new_frame: Callable[[], Any], *limit: int):
        """`limit` is what a frame makes at most of what it is given, if it can keep to that."""
        self._raw, self._new_frame, self._limit = raw, new_frame, limit
        self._frame = new_frame()
        self._pending = b""  # compressed, behind the end of a frame
        self._text = memoryview(b"")
        self._within_frame = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._text:
            compressed = b""
            if not self._limit or self._frame.needs_input:
                compressed = self._pending or self._raw.read(_AT_ONCE)
                self._pending = b""
                if not compressed:
                    if self._within_frame:
                        raise EOFError("the compressed data end within a frame")
                    return 0
            self._text = memoryview(self._frame.decompress(compressed, *self._limit))
            self._within_frame = not self._frame.eof
            if self._frame.eof:
                self._pending = self._frame.unused_data
                self._frame = self._new_frame()
        n = min(len(buffer), len(self._text))
        buffer[:n] = self._text[:n]
        self._text = self._text[n:]
        return n


def _new_zstd() -> "zstandard.ZstdDecompressionObj":
    return zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW).decompressobj()


def _new_xz() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=LARGEST_WINDOW)


@contextmanager
def readable(path: Place) -> Iterator[None]:
    """Errors that arise within, of reading and of decompressing `path`, become a `UserError` that names it."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError, lzma.LZMAError) as error:
        raise _damaged(path, error) from None
    except OSError as error:
        if str(error) == "Invalid data stream":  # all that bz2 ever says
            raise _damaged(path, error) from None
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UserError:
        raise
    except Exception as error:
        # What a bucket's client raises when its own retries have come to an end need not be an OSError.
        if not is_remote(path):
            raise
        raise UserError(f"{path}: cannot be read ({brief(error)}); try again later") from None
