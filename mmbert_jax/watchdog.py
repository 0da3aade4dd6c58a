"""Ends a program that waits for too long."""

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator


def end_at_once(message: str, status: int) -> None:
    """Ends the process, without cleaning up: whatever hangs would hang there, too."""
    print(f"error: {message}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


# In a job of several processes, `parallel.processes` puts a function here that tells the others first.
end_program: Callable[[str, int], None] = end_at_once


@contextlib.contextmanager
def deadline(seconds: float, message: str, status: int) -> Iterator[None]:
    """Ends the program with `message` and this exit status when what stands inside takes longer than `seconds`."""
    timer = threading.Timer(seconds, lambda: end_program(message, status))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def watched[Item](
    items: Iterable[Item], in_time: Callable[[], contextlib.AbstractContextManager]
) -> Iterator[Item]:
    """The items; each has to come before the deadline that `in_time` sets."""
    iterator = iter(items)
    while True:
        with in_time():
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item
