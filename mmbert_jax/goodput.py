"""Where the wall time of a run went, over all its restarts, from a file that the run writes: RUN/timeline.jsonl.

The first process appends to it. A start writes one record, a running one a record whenever it logs, evaluates or saves:

    {"event": "start",    "time": 1000.0, "step": 0,  "seconds": {"start_up": 9.0}}
    {"event": "progress", "time": 1021.0, "step": 10, "seconds": {"compile": 5.0, "step": 15.5, "data_wait": 0.5}}

`time` is in Unix seconds, `step` the steps that are done (at a start: those that its checkpoint holds), and `seconds`
divides the time since the record before, at a start the time since its process began. So the time of a killed process
is known up to its last record; what it did after that counts as time between its death and the next start.
"""

import json
import os
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmbert_jax.errors import UserError
from mmbert_jax.growing import JsonLines
from mmbert_jax.places import Place
from mmbert_jax.run import TIMELINE

# What a second of wall time can be. The first is the good one.
KINDS = {
    "step": "training steps",
    "lost": "steps that were done again later",
    "start_up": "start-up: imports, data, restoring",
    "compile": "compiling the training step",
    "data_wait": "waiting for data, the device idle",
    "checkpoint": "saving checkpoints, steps held up",
    "evaluation": "evaluation, its compiling included",
    "down": "between a death and the next start",
}

Record = dict[str, Any]


class Timeline:
    """Divides a process's time among kinds, and writes it down.

    Every moment belongs to a kind: `book` gives it all the time since the last booking.

    Args:
      started: Unix time at which the process began; None: now.
    """

    def __init__(self, started: float | None = None):
        self._file: JsonLines | None = None
        # Unix time that no adjustment of the clock can turn back.
        self._offset = time.time() - time.perf_counter()
        self._booked = self._now() if started is None else started
        self._unwritten: dict[str, float] = defaultdict(float)
        self._lap: dict[str, float] = defaultdict(float)

    def _now(self) -> float:
        return time.perf_counter() + self._offset

    def book(self, kind: str) -> float:
        """The time since the last booking was of this kind, one of `KINDS`; returns it in seconds."""
        now = self._now()
        seconds = now - self._booked
        self._unwritten[kind] += seconds
        self._lap[kind] += seconds
        self._booked = now
        return seconds

    def open(self, run: Place, step: int) -> None:
        """Writes the record of a start at `step` into a run folder, and records from then on.

        An OSError, here and in `record`, names the file.
        """
        self._file = JsonLines(run / TIMELINE)
        self._write("start", step)

    def record(self, step: int) -> None:
        """Writes down all that was booked since the last record; `step` steps are done."""
        self._write("progress", step)

    def flush(self) -> None:
        """See `GrowingFile.flush`."""
        if self._file:
            self._file.flush()

    def lap(self) -> tuple[float, float]:
        """Seconds of training (steps and waiting for data) since the last lap, and the share of them spent waiting."""
        waited = self._lap["data_wait"]
        seconds = max(self._lap["step"] + waited, 1e-9)
        self._lap.clear()
        return seconds, waited / seconds

    def close(self) -> None:
        if self._file:
            self._file.close()
            self._file = None

    def _write(self, event: str, step: int) -> None:
        if self._file:
            seconds = dict(self._unwritten)
            record = {"event": event, "time": self._booked, "step": step, "seconds": seconds}
            self._file.append(record)
        self._unwritten.clear()


@dataclass(frozen=True)
class Start:
    """One process of a run.

    Attributes:
      began, ended: Unix time of its beginning and of its last record.
      first_step, last_step: what its checkpoint held, and the last step that it recorded.
      lost_steps: how many of its steps another process, or itself after a rollback, did again.
      seconds: kind -> seconds; together ended - began.
    """

    began: float
    ended: float
    first_step: int
    last_step: int
    lost_steps: int
    seconds: dict[str, float]


@dataclass(frozen=True)
class Goodput:
    """Seconds of each of `KINDS` in a run; together its wall time."""

    seconds: dict[str, float]
    starts: tuple[Start, ...]

    @property
    def wall(self) -> float:
        return sum(self.seconds.values())

    @property
    def share(self) -> float:
        """The share of the wall time that went into steps that count."""
        return self.seconds["step"] / self.wall if self.wall else 0.0


def read_timeline(run: Place) -> list[Record]:
    """The records of a run, oldest first, without a last line that is only half written.

    Raises:
      UserError: there are none, or a line is no record.
    """
    path = run / TIMELINE
    if not path.is_file():
        raise UserError(
            f"{path} is missing: {run} is not the folder of a run that recorded its time"
        )
    records = []
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines[:-1], 1):  # the last one has no end
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: {error}; remove the line") from None
    if not records or records[0]["event"] != "start":
        raise UserError(
            f"{path} does not begin with a start: move it away, and a restart begins anew"
        )
    return records


def goodput(records: Sequence[Mapping[str, Any]]) -> Goodput:
    """Divides a run's wall time among `KINDS`.

    Seconds of steps are lost where a later record stands at an earlier step: a restart from an older checkpoint, or a
    rollback. Of a record whose steps were lost in part, that part of its seconds is. Between two processes lies time
    down, 0 at least: clocks of different machines may not agree.

    Args:
      records: as `read_timeline` gives them; the first is a start.
    """
    # The earliest step at which the run stood at or after each record.
    back_to = [record["step"] for record in records]
    for i in reversed(range(len(records) - 1)):
        back_to[i] = min(back_to[i], back_to[i + 1])

    starts: list[Start] = []
    down = 0.0
    for i, record in enumerate(records):
        seconds = dict(record["seconds"])
        if record["event"] == "start":
            began = record["time"] - sum(seconds.values())
            if starts:
                down += max(0.0, began - starts[-1].ended)
            starts.append(Start(began, record["time"], record["step"], record["step"], 0, seconds))
            continue
        current, before = starts[-1], starts[-1].last_step
        steps = record["step"] - before
        lost = min(max(record["step"] - back_to[i], 0), max(steps, 0))
        if lost:
            seconds["lost"] = seconds.get("step", 0.0) * lost / steps
            seconds["step"] = seconds.get("step", 0.0) - seconds["lost"]
        starts[-1] = Start(
            current.began,
            record["time"],
            current.first_step,
            record["step"],
            current.lost_steps + lost,
            _sum(current.seconds, seconds),
        )
    total = _sum(dict.fromkeys(KINDS, 0.0), {"down": down}, *(s.seconds for s in starts))
    return Goodput(total, tuple(starts))


def describe_goodput(result: Goodput) -> str:
    """One line: the goodput, and the seconds of every kind that took any, the longest first."""
    ordered = sorted(result.seconds.items(), key=lambda item: -item[1])
    kinds = ", ".join(f"{kind} {seconds:.1f} s" for kind, seconds in ordered if seconds)
    return (
        f"goodput {result.share:.1%} of {result.wall:.1f} s in {len(result.starts)} starts: {kinds}"
    )


def summary(run: Place) -> str:
    """The line for the end of a run; what is wrong with the file, where something is: no reason for a run to fail."""
    try:
        return describe_goodput(goodput(read_timeline(run)))
    except UserError as error:
        return f"no goodput: {error}"


def process_start() -> float:
    """Unix time at which this process began, imports and all; where the system does not tell, now."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return time.time()
    ticks = int(fields[19])  # since the machine started; field 22 of proc(5), counted from 1
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - age


def _sum(*parts: Mapping[str, float]) -> dict[str, float]:
    total: dict[str, float] = defaultdict(float)
    for part in parts:
        for kind, seconds in part.items():
            total[kind] += seconds
    return dict(total)
