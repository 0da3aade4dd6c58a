"""What a run says of itself: one JSON object a line, TensorBoard events, and a line worth reading in the terminal."""

import json
import os
import socket
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from mmbert_jax.errors import UserError
from mmbert_jax.files import atomic_file, nan_for_null, to_json
from mmbert_jax.growing import GrowingFile, JsonLines
from mmbert_jax.places import Place
from mmbert_jax.run import METRICS, METRICS_SET_ASIDE

# tensorboardX imports these where they are installed, for types and places that it is never given here: seconds at each
# start, and a second set of CUDA libraries in a training process. It does without where there are no such modules.
_hidden = {"torch", "boto3", "google.cloud.storage"} - sys.modules.keys()
sys.modules.update(dict.fromkeys(_hidden))
from tensorboardX.proto.event_pb2 import Event, SessionLog  # noqa: E402
from tensorboardX.proto.summary_pb2 import Summary  # noqa: E402
from tensorboardX.record_writer import masked_crc32c  # noqa: E402

for _name in _hidden:
    del sys.modules[_name]


class MetricsWriter:
    """Writes `metrics.jsonl` and TensorBoard events into a run folder.

    Lines of steps after `step` belong to work that was lost with a killed process; the run does those steps again, so
    they are set aside, see `set_aside`. A half-written last line is dropped.
    """

    def __init__(self, run: Place, step: int):
        set_aside(run, step, "lost: the process ended before these steps were saved")
        self._lines = JsonLines(run / METRICS)
        self._events = _EventFile(run, purge_step=step + 1)

    def write(self, record: Mapping[str, Any]) -> None:
        """Writes one record; `step` is required, and every number in it becomes a TensorBoard scalar.

        A number that is not finite, such as the loss of a skipped step, becomes null in JSON, which has no other word
        for it.

        Raises:
          OSError: names the file that cannot be written.
        """
        self._lines.append(record)
        scalars = ((name, x) for name, x in _scalars(record) if name not in ("step", "tokens"))
        self._events.write(record["step"], dict(scalars))

    def flush(self) -> None:
        """To be called before a checkpoint is written: what it says is then there, whatever ends the process."""
        self._lines.flush()
        self._events.flush()

    def close(self) -> None:
        self._lines.close()
        self._events.close()


class _EventFile:
    """An event file for TensorBoard: a sequence of length, its checksum, an `Event`, its checksum.

    Not tensorboardX's own writer: its thread dies on a full disk without a word, and then holds up the run for ever.
    """

    def __init__(self, run: Place, purge_step: int):
        """TensorBoard discards what older files say of steps from `purge_step` on."""
        now = int(time.time())
        name = f"events.out.tfevents.{now}.{socket.gethostname()}.{os.getpid()}"
        self._file = GrowingFile(run / name)
        self._append(Event(wall_time=now, file_version="brain.Event:2"))
        mark = SessionLog(status=SessionLog.START)
        self._append(Event(wall_time=now, step=purge_step, session_log=mark))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        values = [Summary.Value(tag=name, simple_value=x) for name, x in scalars.items()]
        self._append(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _append(self, event: Event) -> None:
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        sums = (struct.pack("<I", masked_crc32c(x)) for x in (length, data))
        self._file.append(b"".join((length, next(sums), data, next(sums))))


def set_aside(run: Place, step: int, why: str) -> None:
    """Moves the lines of steps after `step` from `metrics.jsonl` to the end of `metrics_set_aside.jsonl`.

    There each says in "set_aside" when that was, to which step the run went back, and why. A process that is killed
    between the two files is not noticed: asked again, what was set aside already is not set aside twice.
    """
    path, aside = run / METRICS, run / METRICS_SET_ASIDE
    if not path.exists():
        return
    records = list(_records(path))
    kept = [record for record in records if record["step"] <= step]
    gone = [record for record in records if record["step"] > step]
    if not gone:
        return
    before = aside.read_text(encoding="utf-8") if aside.exists() else ""
    newest = [record for record, _ in read_set_aside(run)][-len(gone) :]
    if [to_json(record) for record in newest] != [to_json(record) for record in gone]:
        note = {"time": time.time(), "back_to_step": step, "why": why}
        with atomic_file(aside) as file:
            file.write(before)
            file.writelines(to_json({**record, "set_aside": note}) + "\n" for record in gone)
    with atomic_file(path) as file:
        file.writelines(to_json(record) + "\n" for record in kept)


def read_set_aside(run: Place) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Records of steps that a run went back behind, in the order in which it did, with their notes; see `set_aside`."""
    path = run / METRICS_SET_ASIDE
    if not path.exists():
        return []
    found = []
    for record in _records(path):
        note = record.pop("set_aside")
        found.append((record, note))
    return found


def read_metrics(run: Place) -> list[dict[str, Any]]:
    """All records of a run, oldest first; a last line that is only half written is left out. null is read as nan.

    Raises:
      UserError: no metrics there.
    """
    path = run / METRICS
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


def data_size(count: float) -> str:
    """72_100_000_000 -> '72.1 GB'."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(count) >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count:.0f} bytes"


def duration(seconds: float) -> str:
    """3725 -> '1h02m'."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours / 24:.1f} days"
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"


def _records(path: Place) -> Iterator[dict[str, Any]]:
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # the line that was being written when the process was killed, or the machine
        yield nan_for_null(record)


def _scalars(record: Mapping[str, Any], prefix: str = ""):
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value
