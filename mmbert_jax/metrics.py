"""What a run says of itself: one JSON object a line, TensorBoard events, and a line worth reading in the terminal."""

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmbert_jax.errors import UserError

# tensorboardX imports torch where that is installed, for types that are never given to it here: seconds at each start,
# and a second set of CUDA libraries in a training process. It does without where there is no such module.
_hide_torch = "torch" not in sys.modules
if _hide_torch:
    sys.modules["torch"] = None
from tensorboardX import SummaryWriter  # noqa: E402

if _hide_torch:
    del sys.modules["torch"]


class MetricsWriter:
    """Writes `metrics.jsonl` and TensorBoard events into a run folder.

    Lines of steps after `step` belong to work that was lost with a killed process; the run does those steps again, so
    they are dropped, and so is a half-written last line.
    """

    def __init__(self, run: Path, step: int):
        path = run / "metrics.jsonl"
        _keep_lines_until(path, step)
        self._lines = path.open("a")
        self._events = SummaryWriter(str(run), purge_step=step + 1)

    def write(self, record: Mapping[str, Any]) -> None:
        """Writes one record; `step` is required, and every number in it becomes a TensorBoard scalar.

        A number that is not finite, such as the loss of a skipped step, becomes null in JSON, which has no other word
        for it.
        """
        self._lines.write(_line(record))
        self._lines.flush()
        for name, value in _scalars(record):
            if name not in ("step", "tokens"):
                self._events.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self._lines.close()
        self._events.close()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All records of a run, oldest first; a last line that is only half written is left out. null is read as nan.

    Raises:
      UserError: no metrics there.
    """
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{path} is missing: {run} is not the folder of a run")
    return list(_records(path))


def progress_line(record: Mapping[str, Any], total_steps: int, total_tokens: int) -> str:
    """One log line for people: how far, how well, how fast, how long still."""
    left = (total_tokens - record["tokens"]) / record["tokens_per_second"]
    mfu = f"  MFU {record['mfu']:.1%}" if "mfu" in record else ""
    return (
        f"step {record['step']}/{total_steps} ({record['tokens'] / total_tokens:.0%})"
        f"  loss {record['loss']:.4f}  accuracy {record['masked_accuracy']:.3f}  lr {record['learning_rate']:.2e}"
        f"  grad {record['grad_norm']:.2f}  {si(record['tokens_per_second'])} tokens/s{mfu}"
        f"  data wait {record['data_wait']:.1%}  left {duration(left)}"
    )


def si(number: float) -> str:
    """12345 -> '12.3k'."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= unit:
            return f"{number / unit:.1f}{name}"
    return f"{number:.0f}"


def duration(seconds: float) -> str:
    """3725 -> '1h02m'."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours / 24:.1f} days"
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"


def _keep_lines_until(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = [_line(record) for record in _records(path) if record["step"] <= step]
    partial = path.with_suffix(".partial")
    partial.write_text("".join(kept))
    os.replace(partial, path)


def _line(record: Mapping[str, Any]) -> str:
    def null(x):
        return None if isinstance(x, float) and not math.isfinite(x) else x

    return json.dumps(_each(record, null), allow_nan=False) + "\n"


def _each(record, function):
    """The record with `function` applied to every value that is not a record itself."""
    return {
        name: _each(x, function) if isinstance(x, Mapping) else function(x)
        for name, x in record.items()
    }


def _records(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            return  # the line that was being written when the process was killed
        yield _each(record, lambda x: math.nan if x is None else x)


def _scalars(record: Mapping[str, Any], prefix: str = ""):
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value
