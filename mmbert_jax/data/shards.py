"""The file of a shard: packed rows in a NumPy array, so that row i is one range of bytes, found by arithmetic.

Rows are read in random order and one by one. A file that has to be searched for a row would cost a table of places in
memory, 2.2 thousand million of them in a large corpus, or a second request for every row of one in a bucket. So a shard
is what `numpy.load` reads (and maps): uint32 [rows, slot], little-endian, of which each row is

  CRC-32 of the rest of the slot, begun with the row's number; length of the record in bytes; the record; zeros

A slot takes the longest record of its shard. What differs between records is their number of segments, 12 bytes each,
so zeros are some percent of a shard of common documents.

Older corpora have ArrayRecord files instead, one record a chunk.
"""

import array
import errno
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from mmbert_jax.errors import UserError
from mmbert_jax.files import naming

SUFFIX, OLD_SUFFIX = ".npy", ".arrayrecord"
_SLOT = struct.Struct("<II")
# NumPy fills up its header, which is less than half as long, to a multiple of 64.
HEADER_BYTES = 128
# An ArrayRecord file is padded to whole blocks.
OLD_BLOCK = 1 << 16

COPY_AGAIN = "copy it again or prepare the corpus again"


class ShardWriter:
    """Writes records, of any multiple of four bytes, to a new shard, which is whole once it is closed.

    Until then the records wait beside it, since the size of a slot is that of the longest.
    """

    def __init__(self, path: str | Path):
        self._path = Path(path)
        self._waiting = self._path.with_name(f".{self._path.name}.waiting")
        self._lengths = array.array("I")
        with naming(self._path):
            self._file = self._waiting.open("wb", buffering=1 << 20)

    def write(self, record: bytes) -> None:
        with naming(self._path):
            self._file.write(record)
        self._lengths.append(len(record))

    def close(self) -> None:
        with naming(self._path):
            self._file.close()
            size = _SLOT.size + max(self._lengths, default=0)
            with (
                self._waiting.open("rb", buffering=1 << 20) as records,
                self._path.open("wb", buffering=1 << 20) as shard,
            ):
                shard.write(_header(len(self._lengths), size))
                for row, length in enumerate(self._lengths):
                    rest = length.to_bytes(4, "little") + records.read(length)
                    rest = rest.ljust(size - 4, b"\0")
                    shard.write(zlib.crc32(rest, row).to_bytes(4, "little") + rest)
            self._waiting.unlink()


def _header(rows: int, slot: int) -> bytes:
    """What NumPy writes before so many rows of `slot` bytes each."""
    header = io.BytesIO()
    described = {"descr": "<u4", "fortran_order": False, "shape": (rows, slot // 4)}
    np.lib.format.write_array_header_1_0(header, described)
    return header.getvalue()


def slot_range(size_of_shard: int, rows: int, row: int) -> tuple[int, int]:
    """Where the slot of a row begins and ends in a shard of so many bytes and rows."""
    size = (size_of_shard - HEADER_BYTES) // rows
    return HEADER_BYTES + row * size, HEADER_BYTES + (row + 1) * size


def record_of(slot: bytes, row: int) -> bytes | None:
    """The record in the slot of a row; None where it is damaged, or another row's."""
    if len(slot) < _SLOT.size:
        return None
    checksum, length = _SLOT.unpack_from(slot)
    view = memoryview(slot)
    if zlib.crc32(view[4:], row) != checksum or length > len(slot) - _SLOT.size:
        return None
    return slot[_SLOT.size : _SLOT.size + length]


def size_fits(file: str, rows: int, size: int) -> bool:
    """Whether a shard of so many rows can have this size: what a listing can tell without opening it."""
    if file.endswith(SUFFIX):
        slots = size - HEADER_BYTES
        return slots == 0 if rows == 0 else slots >= rows * _SLOT.size and slots % rows == 0
    return size > 0 and size % OLD_BLOCK == 0


def count_rows(shard: str | Path) -> int:
    """The number of records of a shard on a disk; UserError if it is missing or damaged, or cannot be opened."""
    shard = Path(shard)
    if shard.suffix == OLD_SUFFIX:
        reader = open_array_record(str(shard))
        try:
            return reader.num_records()
        finally:
            reader.close()
    try:
        with shard.open("rb") as file:
            header, size = file.read(HEADER_BYTES), os.fstat(file.fileno()).st_size
    except OSError as error:
        raise unreadable(shard, error) from None
    file = io.BytesIO(header)
    try:
        np.lib.format.read_magic(file)
        (rows, numbers), _, _ = np.lib.format.read_array_header_1_0(file)
    except ValueError:
        raise damaged(shard) from None
    if header != _header(rows, 4 * numbers) or size != HEADER_BYTES + 4 * rows * numbers:
        raise damaged(shard)
    return rows


def open_array_record(shard: str) -> ArrayRecordReader:
    """A reader of a shard of the older kind, to be closed; UserError if it is missing, damaged or cannot be opened."""
    # As ArrayRecord's own data source opens them, for rows in random order.
    reader = ArrayRecordReader(
        shard, options="readahead_buffer_size:0", file_reader_buffer_size=1 << 15
    )
    # What cannot be opened, or is truncated, is opened without complaint as one of no records; only closing it tells.
    if reader.ok() and reader.num_records():
        return reader
    try:
        reader.close()
    except RuntimeError as error:
        raise unreadable_array_record(shard, error) from None
    raise damaged(shard)


# --- what a shard that cannot be read is called ---

_GONE = "shard is missing; " + COPY_AGAIN
_WORDS = {
    errno.ENOENT: _GONE,
    errno.ENOTDIR: _GONE,
    errno.ESTALE: "shard was replaced, or its disk mounted anew, while it was open (stale file handle); run the same"
    " command again",
    errno.EIO: "the disk cannot read this shard (input/output error); look into the system's log, and copy the corpus"
    " to a sound disk",
    errno.EMFILE: "too many open files: raise `ulimit -n`",
    errno.ENFILE: "too many open files on this machine: raise the system's limit (sysctl fs.file-max)",
    errno.EACCES: "shard may not be read: see to its permissions",
    errno.EPERM: "shard may not be read: see to its permissions",
}


def unreadable(shard: str | Path, error: OSError) -> UserError:
    """What kept a shard from being read, by the system's word: a matter of the disk, not of what is in the shard."""
    reason = _WORDS.get(error.errno) or f"shard cannot be read: {error.strerror or error}"
    return UserError(f"{shard}: {reason}")


def unreadable_array_record(shard: str | Path, error: RuntimeError) -> UserError:
    """The same of what ArrayRecord throws: the system's words stand in the middle of its own."""
    for number in _WORDS:
        if os.strerror(number) in str(error):
            return unreadable(shard, OSError(number, os.strerror(number)))
    return damaged(shard)


def damaged(shard: str | Path, row: int | None = None) -> UserError:
    if row is None:
        return UserError(f"{shard}: shard is truncated or damaged; {COPY_AGAIN}")
    return UserError(
        f"{shard}: row {row} is damaged; copy the shard again or prepare the corpus again"
    )


def resized(shard: str | Path, size: int, expected: int) -> UserError:
    return UserError(
        f"{shard}: {size} bytes where the corpus has {expected}: truncated or changed; {COPY_AGAIN}"
    )
