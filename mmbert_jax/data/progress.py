"""A line on the terminal that says how far a long job is, at what rate, and how much time is left."""

import sys
import time


class Progress:
    """Prints to stderr: over one line on a terminal, a line every ten seconds into a log."""

    def __init__(self, title: str, total: int | None):
        """`total` is what `advance` will have been told in the end; None where that is not known."""
        self._title = title
        self._total = None if total is None else max(total, 1)
        self._done = 0
        self._start = time.monotonic()
        self._on_terminal = sys.stderr.isatty()
        self._interval = 0.5 if self._on_terminal else 10.0
        self._next = self._start + self._interval

    def advance(self, done: int, amounts: dict[str, int]) -> None:
        """Adds `done` to the share that is done; `amounts` are totals so far, shown as rates, by unit."""
        self._done += done
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self._interval
            self._print(amounts, end="\r" if self._on_terminal else "\n")

    def finish(self, amounts: dict[str, int]) -> None:
        """Prints the last line."""
        self._total = self._done = 1
        self._print(amounts, end="\n")

    def _print(self, amounts: dict[str, int], end: str) -> None:
        seconds = max(time.monotonic() - self._start, 1e-6)
        rates = ", ".join(f"{_short(n / seconds)} {unit}/s" for unit, n in amounts.items())
        if self._total is None:
            counts = ", ".join(f"{_short(n)} {unit}" for unit, n in amounts.items())
            line = f"{self._title} {counts}  {rates}  after {_clock(seconds)}"
        else:
            share = min(self._done / self._total, 1.0)
            left = seconds * (1 - share) / share if share else 0
            when = f"{_clock(left)} left" if share < 1 else f"took {_clock(seconds)}"
            line = f"{self._title} {share:6.1%}  {rates}  {when}"
        print(f"{line:<79}" if self._on_terminal else line, end=end, file=sys.stderr, flush=True)


def _short(n: float) -> str:
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= size:
            return f"{n / size:.2f}{suffix}"
    return f"{n:.0f}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
