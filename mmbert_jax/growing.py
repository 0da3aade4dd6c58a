"""Files that grow while a run goes on: whole after every part on a disk, and after every `flush` in a bucket.

Nothing is appended to an object, so it is written anew: seldom enough that this takes a fiftieth of the time, before
every checkpoint, and at the end. What a killed process had not written yet belongs to steps that are done again.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from mmbert_jax import buckets
from mmbert_jax.files import naming, to_json, write_whole
from mmbert_jax.places import Place, is_remote

FLUSH_SECONDS = 30.0


class GrowingFile:
    """A file to which bytes are appended, all of a part or nothing.

    Not through a buffer on a disk: what a full disk refuses is reported once, and not again when the file is closed.
    """

    def __init__(self, path: Place, keep: Callable[[bytes], int] = len):
        """Opens the file, new or to go on with.

        Args:
          keep: how much of what is there stays; the rest is cut off.
        """
        self._path = path
        self._descriptor: int | None = None
        with naming(path):
            if is_remote(path):
                self._data = bytearray(path.read_bytes() if path.exists() else b"")
                del self._data[keep(bytes(self._data)) :]
                self._flushed, self._flushed_at, self._pause = (
                    len(self._data),
                    time.monotonic(),
                    FLUSH_SECONDS,
                )
                return
            self._descriptor = os.open(
                path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666
            )
            os.ftruncate(self._descriptor, keep(path.read_bytes()))

    def append(self, data: bytes) -> None:
        """Raises an OSError that names the file where it cannot be written; it is then as it was before."""
        if self._descriptor is not None:
            write_whole(self._descriptor, data, self._path)
            return
        self._data += data
        if time.monotonic() > self._flushed_at + self._pause:
            self.flush()

    def flush(self) -> None:
        """Sees to it that all that was appended is there for others, and after the end of this process."""
        if self._descriptor is not None or len(self._data) == self._flushed:
            return
        start = time.monotonic()
        with naming(self._path):
            buckets.write(self._path, bytes(self._data))
        self._flushed, self._flushed_at = len(self._data), time.monotonic()
        self._pause = max(FLUSH_SECONDS, 50 * (self._flushed_at - start))

    def close(self) -> None:
        self.flush()
        if self._descriptor is not None:
            os.close(self._descriptor)


class JsonLines(GrowingFile):
    """A file of JSON objects, one a line; a line that a killed process has left half written is cut off."""

    def __init__(self, path: Place):
        super().__init__(path, _whole_lines)

    def append(self, record: Mapping[str, Any]) -> None:
        """See `GrowingFile.append`."""
        super().append((to_json(record) + "\n").encode())


def _whole_lines(data: bytes) -> int:
    """How many bytes the lines have, without those at the end that hold no record."""
    lines = data.splitlines(keepends=True)
    while lines and not _is_record(lines[-1]):
        lines.pop()
    return sum(map(len, lines))


def _is_record(line: bytes) -> bool:
    try:
        return line.endswith(b"\n") and isinstance(json.loads(line), dict)
    except ValueError:  # also bytes that are no UTF-8
        return False
