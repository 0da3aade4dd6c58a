"""metrics.jsonl and TensorBoard events, read without the library that wrote them; what a resumed run keeps."""

import errno
import json
import math
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from mmbert_jax.errors import UserError
from mmbert_jax.metrics import (
    MetricsWriter,
    data_size,
    duration,
    progress_line,
    read_metrics,
    read_set_aside,
    set_aside,
    si,
)


def crc32c(data: bytes) -> int:
    """Castagnoli's CRC, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(crc: int) -> int:
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_events(file) -> list[Event]:
    """The events of a TFRecord file, whose format is: length, its CRC, data, its CRC."""
    data, events = file.read_bytes(), []
    while data:
        (length,) = struct.unpack_from("<Q", data)
        content = data[12 : 12 + length]
        assert struct.unpack_from("<I", data, 8) == (masked(crc32c(data[:8])),)
        assert struct.unpack_from("<I", data, 12 + length) == (masked(crc32c(content)),)
        events.append(Event.FromString(content))
        data = data[16 + length :]
    return events


def scalars(events):
    return [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]


RECORDS = [
    {"step": 1, "tokens": 512, "loss": 6.25, "learning_rate": 0.001},
    {"step": 2, "tokens": 1024, "loss": 5.5, "learning_rate": 0.002},
    {"step": 2, "tokens": 1024, "held_out": {"eng": {"loss": 5.75, "targets": 7}}},
]


@pytest.fixture
def run(tmp_path):
    writer = MetricsWriter(tmp_path, 0)
    for record in RECORDS:
        writer.write(record)
    writer.close()
    return tmp_path


def test_crc_is_the_published_one():
    assert crc32c(b"123456789") == 0xE3069283


def test_a_training_process_does_not_import_what_it_does_not_need():
    """It still can, for whoever wants it."""
    pytest.importorskip("torch")
    code = (
        "import sys, mmbert_jax.train; assert not {'torch', 'boto3', 'gcsfs'} & sys.modules.keys()"
    )
    code += "; import torch, boto3, google.cloud.storage"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_events_hold_every_number(run):
    (file,) = run.glob("events.out.tfevents.*")
    events = read_events(file)
    assert events[0].file_version == "brain.Event:2"
    assert scalars(events) == [
        (1, "loss", 6.25),
        (1, "learning_rate", pytest.approx(0.001)),
        (2, "loss", 5.5),
        (2, "learning_rate", pytest.approx(0.002)),
        (2, "held_out/eng/loss", 5.75),
        (2, "held_out/eng/targets", 7.0),
    ]


def test_lines_are_the_records(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == RECORDS == read_metrics(run)


def test_lines_are_there_before_the_run_ends(tmp_path):
    writer = MetricsWriter(tmp_path, 0)
    writer.write(RECORDS[0])
    assert read_metrics(tmp_path) == RECORDS[:1]
    writer.close()


def test_a_resumed_run_drops_what_it_does_again(run):
    """Also a line that was half written, and for TensorBoard, whose files only grow, by a mark."""
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "tokens": 15')
    old = set(run.glob("events.*"))
    time.sleep(1.1)  # event files are named by the second
    writer = MetricsWriter(run, 1)
    assert read_metrics(run) == RECORDS[:1]
    writer.write(RECORDS[1] | {"loss": 5.0})
    writer.close()
    assert read_metrics(run) == [RECORDS[0], RECORDS[1] | {"loss": 5.0}]
    (new,) = set(run.glob("events.*")) - old
    events = read_events(new)
    (mark,) = [event for event in events if event.HasField("session_log")]
    assert mark.session_log.status == mark.session_log.START
    assert mark.step == 2  # TensorBoard discards older events from there on
    assert (2, "loss", 5.0) in scalars(events)


def set_aside_records(run):
    return [record for record, _ in read_set_aside(run)]


def test_what_was_lost_stays_on_record(run):
    """Each time with when, how far back and why; the half-written line alone is dropped."""
    spike = {"step": 3, "tokens": 1536, "loss": math.nan, "learning_rate": 0.003}
    writer = MetricsWriter(run, 2)
    writer.write(spike)
    writer.close()
    before = time.time()
    set_aside(run, 2, "rolled back: by hand")
    assert read_metrics(run) == RECORDS
    ((record, note),) = read_set_aside(run)
    assert math.isnan(record["loss"])
    assert record | {"loss": 0} == spike | {"loss": 0}
    assert (note["back_to_step"], note["why"]) == (2, "rolled back: by hand")
    assert before <= note["time"] <= time.time()
    MetricsWriter(run, 1).close()
    assert read_metrics(run) == RECORDS[:1]
    assert set_aside_records(run)[1:] == RECORDS[1:]
    assert read_set_aside(run)[1][1]["why"].startswith("lost: ")
    MetricsWriter(run, 1).close()
    assert len(read_set_aside(run)) == 3


@pytest.mark.parametrize("written", range(3))
def test_killed_while_lines_were_set_aside(run, monkeypatch, written):
    """Before, between and after the two files are written: no line is lost, and none is there twice."""

    class Killed(BaseException):
        pass

    renamed, replace = [], os.replace

    def killed(source, target):
        if len(renamed) == written:
            raise Killed
        renamed.append(target)
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        try:
            set_aside(run, 1, "lost")
        except Killed:
            assert written < 2
    set_aside(run, 1, "lost")
    assert read_metrics(run) == RECORDS[:1]
    assert set_aside_records(run) == RECORDS[1:]


@pytest.mark.parametrize("name", ["metrics.jsonl", "events"])
def test_a_full_disk_is_named_and_holds_nothing_up(tmp_path, monkeypatch, name):
    """Also where the events' file is the one that has no room: a thread of its own would die, and training wait."""
    writer, write = MetricsWriter(tmp_path, 0), os.write

    def full(descriptor, data):
        if name in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    for _ in range(20):
        with pytest.raises(OSError, match="No space left on device") as raised:
            writer.write(RECORDS[0])
        assert Path(raised.value.filename).name.startswith(name)
    monkeypatch.undo()
    writer.close()
    (file,) = tmp_path.glob("events.*")
    assert not scalars(read_events(file))  # and it is whole
    assert len(read_metrics(tmp_path)) == (20 if name == "events" else 0)


def test_what_is_not_finite_is_null_and_read_as_nan(tmp_path):
    """JSON has no NaN: browsers and jq stumble over what Python writes for it."""
    held_out = {"eng": {"loss": math.inf, "targets": 7}}
    writer = MetricsWriter(tmp_path, 0)
    writer.write({"step": 1, "tokens": 1, "loss": math.nan, "held_out": held_out})
    writer.close()
    MetricsWriter(tmp_path, 1).close()  # a resumed run writes the lines again
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=pytest.fail)["loss"] is None
    assert json.loads(line)["held_out"]["eng"] == {"loss": None, "targets": 7}
    (record,) = read_metrics(tmp_path)
    assert math.isnan(record["loss"])
    assert math.isnan(record["held_out"]["eng"]["loss"])


def test_a_half_written_last_line_is_left_out(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    assert read_metrics(run) == RECORDS


def test_no_run_there(tmp_path):
    with pytest.raises(UserError, match="metrics.jsonl is missing: .* is not the folder of a run"):
        read_metrics(tmp_path)


# --- the terminal ---


def test_progress_line():
    record = {
        "step": 250,
        "tokens": 1_000_000,
        "loss": 2.34567,
        "masked_accuracy": 0.5129,
        "learning_rate": 8e-4,
        "grad_norm": 1.234,
        "tokens_per_second": 1000.0,
        "data_wait": 0.0123,
    }
    # A quarter is done; three million tokens are left at a thousand a second: fifty minutes.
    assert progress_line(record, 1000, 4_000_000) == (
        "step 250/1000 (25%)  loss 2.3457  accuracy 0.513  lr 8.00e-04  grad 1.23  1.0k tokens/s"
        "  data wait 1.2%  left 50m00s"
    )
    assert "  1.0k tokens/s  MFU 41.2%  data" in progress_line(
        record | {"mfu": 0.4123}, 1000, 4_000_000
    )


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (12345, "12.3k"),
        (4.72e6, "4.7M"),
        (6e11, "600.0B"),
        (2.3e12, "2.3T"),
    ],
)
def test_numbers(number, text):
    assert si(number) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (12_345, "12.3 kB"),
        (4.72e6, "4.7 MB"),
        (72.1e9, "72.1 GB"),
        (2.3e12, "2.3 TB"),
    ],
)
def test_sizes(count, text):
    assert data_size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0m00s"),
        (59.6, "1m00s"),
        (3725, "1h02m"),
        (172_799, "47h59m"),
        (172_800, "2.0 days"),
        (864_000, "10.0 days"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
