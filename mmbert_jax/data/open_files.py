"""Files that stay open between reads: few at a time, however many a corpus has."""

import contextlib
import os
import resource
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader

# Beyond what a program's other files need; opening a shard anew costs some 10 us, and 0.3 MB and 5 ms an older one.
MOST_OPEN = 256


class Descriptor:
    """A file open for reading, closed when nothing refers to it any more."""

    def __init__(self, path: str):
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self.number)


class OpenArrayRecord:
    """A reader of ArrayRecord, closed when nothing refers to it any more: of itself it never is."""

    def __init__(self, reader: ArrayRecordReader):
        self.reader = reader
        weakref.finalize(self, _close, reader)


def _close(reader: ArrayRecordReader) -> None:
    with contextlib.suppress(RuntimeError):  # what it read was checked when it was read
        reader.close()


class OpenFiles:
    """What was opened last, by key; what was not asked for longest makes room. What is in use lives on until let go."""

    def __init__(self, most: Callable[[], int]):
        self._most = most
        self._open: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, opener: Callable[[], Any]) -> Any:
        """What is open under this key; `opener` opens it, perhaps in two threads at once."""
        with self._lock:
            if key in self._open:
                self._open.move_to_end(key)
                return self._open[key]
        opened = opener()
        with self._lock:
            opened = self._open.setdefault(key, opened)
            while len(self._open) > self._most():
                self._open.popitem(last=False)
        return opened


def most_open() -> int:
    """Shards that this process keeps open: a quarter of what it may open, for all its corpora together."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_OPEN if soft == resource.RLIM_INFINITY else max(1, min(MOST_OPEN, soft // 4))


OPEN = OpenFiles(most_open)
