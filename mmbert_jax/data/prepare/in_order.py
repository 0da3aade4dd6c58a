"""Jobs that are under way at the same time, and their results in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any


def in_order(
    start: Callable[[Any], Any], wait: Callable[[Any], Any], jobs: Iterable[Any], at_once: int
) -> Iterator[Any]:
    """The jobs' results, in order, of which so many are under way at a time."""
    running: deque[Any] = deque()
    for job in jobs:
        running.append(start(job))
        if len(running) > at_once:
            yield wait(running.popleft())
    while running:
        yield wait(running.popleft())
