"""What is said and decided when a step is done: its line in the log, and whether its gradients were finite."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mmbert_jax.goodput import Timeline
from mmbert_jax.metrics import MetricsWriter, progress_line

# A step's number, tokens, learning rate and metrics, the last still on the devices until they are asked for.
Record = dict[str, Any]


@dataclasses.dataclass
class SkippedSteps:
    """Steps without a finite gradient, which changed nothing.

    Attributes:
      limit: in a row, after which the run goes back (config.train.max_skipped_steps).
      in_a_row: up to the last step that was seen.
    """

    limit: int
    in_a_row: int = 0

    def see(self, record: Mapping[str, Any]) -> bool:
        """Counts a step; whether there were too many in a row."""
        self.in_a_row = self.in_a_row + 1 if record["skipped"] else 0
        return self.in_a_row >= self.limit


class StepLog:
    """Writes every n-th step, and the last, with the rate since the line before.

    Args:
      writer: None in all processes but the first.
      clock: says how much of the time went into steps.
      every_steps: config.log_every_steps.
      steps, tokens: of the phase.
      tokens_done: at the start.
      flops_per_second_and_token: FLOPs of a token by the peak of all devices, for the MFU; None where the peak is not
        known.
    """

    def __init__(
        self,
        writer: MetricsWriter | None,
        clock: Timeline,
        *,
        every_steps: int,
        steps: int,
        tokens: int,
        tokens_done: int,
        seconds_of_a_token: float | None,
    ):
        self._writer, self._clock = writer, clock
        self._every, self._steps, self._tokens = every_steps, steps, tokens
        self._logged_tokens, self._skipped = tokens_done, 0
        self._seconds_of_a_token = seconds_of_a_token

    def add(self, record: Record) -> str | None:
        """Takes a step; the line to be printed if it is one that is logged. Waits for its metrics."""
        self._skipped += bool(record["skipped"])
        if record["step"] % self._every and record["tokens"] < self._tokens:
            return None
        self._clock.book("step")
        self._clock.record(record["step"])
        seconds, data_wait = self._clock.lap()
        rate = (record["tokens"] - self._logged_tokens) / seconds
        record |= {"tokens_per_second": rate, "data_wait": data_wait, "skipped": self._skipped}
        if self._seconds_of_a_token:
            record["mfu"] = rate * self._seconds_of_a_token
        self._logged_tokens, self._skipped = record["tokens"], 0
        if self._writer:
            self._writer.write(record)
        return progress_line(record, self._steps, self._tokens)


def read(record: Record) -> Record:
    """The record with its metrics as numbers; waits until the devices have them."""
    metrics = record.pop("metrics")
    return record | {name: float(x) for name, x in metrics.items()}
