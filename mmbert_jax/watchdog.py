"""Ends a program that waits for too long."""

import contextlib
import os
import sys
import threading
from collections.abc import Iterable, Iterator


@contextlib.contextmanager
def deadline(seconds: float, message: str, status: int) -> Iterator[None]:
    """Ends the process with `message` and this exit status when what stands inside takes longer than `seconds`.

    At once, without cleaning up: whatever hangs would hang there, too.
    """

    def end() -> None:
        print(f"error: {message}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def watched[Item](
    items: Iterable[Item], seconds: float, message: str, status: int
) -> Iterator[Item]:
    """The items; one that takes longer than `seconds` to come ends the process, see `deadline`."""
    iterator = iter(items)
    while True:
        with deadline(seconds, message, status):
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item
