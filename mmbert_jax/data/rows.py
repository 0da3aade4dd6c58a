"""The rows of a corpus's shards laid end to end, read in batches from wherever the shards lie.

Nothing is open before it is needed. Where a row is follows from the manifest alone, so memory and start-up do not grow
with the rows of a corpus, and hardly with its shards.
"""

import itertools
import os
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from mmbert_jax.data import object_rows, shards
from mmbert_jax.data.open_files import OPEN, Descriptor, OpenArrayRecord, most_open
from mmbert_jax.errors import UserError
from mmbert_jax.places import Place, is_remote

# A disk across a network takes its time for each question.
_STATS_AT_ONCE = 32


@dataclass(frozen=True)
class Shard:
    """A shard that is where the manifest says.

    Attributes:
      path: as text, with its scheme if it has one.
      rows, size: records and bytes.
      version: changes when the file is replaced.
    """

    path: str
    rows: int
    size: int
    version: int = 0


class Rows(Sequence[bytes]):
    """Records addressed by their number over all shards; can be pickled for worker processes.

    Attributes:
      shards: in order.
      in_flight: reads that have to be under way at a time for the storage to give what it can.
    """

    def __init__(self, of_corpus: Sequence[Shard]):
        self.shards = tuple(of_corpus)
        self._ends = list(itertools.accumulate(shard.rows for shard in of_corpus))
        remote = is_remote(self.shards[0].path)
        self.in_flight = object_rows.REQUESTS_AT_ONCE if remote else 1

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, row: int) -> bytes:
        return read_records([self.locate(row)])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[bytes]:
        """The records of these rows; see `read_records`."""
        return read_records([self.locate(row) for row in rows])

    def locate(self, row: int) -> tuple[Shard, int]:
        """The shard that has a row, and the row's number in it."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        index = bisect_right(self._ends, row)
        shard = self.shards[index]
        return shard, row - self._ends[index] + shard.rows


def read_records(wanted: Sequence[tuple[Shard, int]]) -> list[bytes]:
    """The records of (shard, row), read together, each shard's in one go.

    Raises:
      UserError: a shard is gone, was changed, may not or cannot be read, or holds other bytes than were written.
    """
    if wanted and is_remote(wanted[0][0].path):
        return object_rows.read(wanted)
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i][0].path, wanted[i][1]))
    records: list[bytes] = [b""] * len(wanted)
    for i, record in zip(order, _read_local([wanted[i] for i in order]), strict=True):
        records[i] = record
    return records


def find_shards(folder: Place, entries: Sequence[dict]) -> list[Shard]:
    """The shards of a corpus, none of them opened: each is asked for its size, many at a time.

    Args:
      entries: of the manifest: "file", "rows" and, but for older corpora, "bytes".

    Raises:
      UserError: one is missing, or has another size than it was written with.
    """
    paths = [f"{folder}/{entry['file']}" for entry in entries]
    if is_remote(folder):
        old = [path for path in paths if path.endswith(shards.OLD_SUFFIX)]
        if old:
            raise UserError(
                f"{old[0]}: ArrayRecord files are not read from a bucket; "
                "prepare the corpus again, or copy it to a disk"
            )
        sizes = object_rows.sizes(folder)
        found = [(sizes.get(entry["file"]), 0) for entry in entries]
    else:
        with ThreadPoolExecutor(_STATS_AT_ONCE) as pool:
            found = list(pool.map(_stat, paths))
    of_corpus = []
    for entry, path, (size, version) in zip(entries, paths, found, strict=True):
        if size is None:
            raise UserError(f"{path}: shard is missing; {shards.COPY_AGAIN}")
        if size != entry.get("bytes", size):
            raise shards.resized(path, size, entry["bytes"])
        if not shards.size_fits(entry["file"], entry["rows"], size):
            raise shards.damaged(path)
        of_corpus.append(Shard(path, entry["rows"], size, version))
    return of_corpus


def _stat(path: str) -> tuple[int | None, int]:
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None, 0
    except OSError as error:
        raise shards.unreadable(path, error) from None
    return status.st_size, status.st_mtime_ns


# --- from a disk ---


def _read_local(wanted: Sequence[tuple[Shard, int]]) -> list[bytes]:
    """The records of (shard, row), ordered by shard."""
    by_shard = [
        (shard, [row for _, row in of_shard])
        for shard, of_shard in itertools.groupby(wanted, key=lambda item: item[0])
    ]
    records: list[bytes] = []
    # Several threads read at a time, and each holds what it reads from.
    at_once = max(1, most_open() // 8)
    for start in range(0, len(by_shard), at_once):
        part = by_shard[start : start + at_once]
        files = [_opened(shard) for shard, _ in part]
        for file, (shard, rows) in zip(files, part, strict=True):
            if isinstance(file, Descriptor):
                _announce(file, shard, rows)
        for file, (shard, rows) in zip(files, part, strict=True):
            read = _read_slots if isinstance(file, Descriptor) else _read_array_record
            records += read(file, shard, rows)
    return records


def _opened(shard: Shard) -> Descriptor | OpenArrayRecord:
    opener = _open_array_record if shard.path.endswith(shards.OLD_SUFFIX) else _open_slots
    return OPEN.get(shard, lambda: opener(shard))


def _open_slots(shard: Shard) -> Descriptor:
    try:
        file = Descriptor(shard.path)
        size = os.fstat(file.number).st_size
    except OSError as error:
        raise shards.unreadable(shard.path, error) from None
    if size != shard.size:
        raise shards.resized(shard.path, size, shard.size)
    return file


def _announce(file: Descriptor, shard: Shard, rows: Sequence[int]) -> None:
    """Lets the system fetch all slots at once, since they are then waited for one by one."""
    for row in rows:
        start, stop = shards.slot_range(shard.size, shard.rows, row)
        os.posix_fadvise(file.number, start, stop - start, os.POSIX_FADV_WILLNEED)


def _read_slots(file: Descriptor, shard: Shard, rows: Sequence[int]) -> list[bytes]:
    records = []
    for row in rows:
        start, stop = shards.slot_range(shard.size, shard.rows, row)
        try:
            slot = os.pread(file.number, stop - start, start)
        except OSError as error:
            raise shards.unreadable(shard.path, error) from None
        records.append(shards.record_of(slot, row))
        if records[-1] is None:
            raise shards.damaged(shard.path, row)
    return records


def _open_array_record(shard: Shard) -> OpenArrayRecord:
    reader = shards.open_array_record(shard.path)
    rows = reader.num_records()
    if rows != shard.rows:
        reader.close()
        raise UserError(
            f"{shard.path}: {rows} rows where the manifest says {shard.rows}: truncated or changed; {shards.COPY_AGAIN}"
        )
    return OpenArrayRecord(reader)


def _read_array_record(file: OpenArrayRecord, shard: Shard, rows: Sequence[int]) -> list[bytes]:
    try:
        return file.reader.read(rows)
    except RuntimeError as error:  # its checksums do not match, or the disk does not answer
        raise shards.unreadable_array_record(shard.path, error) from None
