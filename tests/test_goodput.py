"""Where the time of a run went: timelines written by hand, with sums done by hand."""

import json
import subprocess
import sys
import time

import pytest

from mmbert_jax.errors import UserError
from mmbert_jax.goodput import (
    TIMELINE,
    Timeline,
    describe_goodput,
    goodput,
    process_start,
    read_timeline,
    summary,
)


def start(time, step, /, **seconds):
    return {"event": "start", "time": time, "step": step, "seconds": seconds}


def progress(time, step, /, **seconds):
    return {"event": "progress", "time": time, "step": step, "seconds": seconds}


# A run that begins at 1000. Its first process saves at step 10 and dies some time after step 25; the second resumes at
# 10 and dies after 20; the third has a checkpoint of step 14, in the middle of a record of the second.
TWICE_KILLED = [
    start(1010, 0, start_up=10),
    progress(1036, 10, compile=5, step=20, data_wait=1),
    progress(1038, 10, checkpoint=2),
    progress(1058, 20, step=20),  # lost
    progress(1073, 25, step=12, evaluation=3),  # lost, but for the evaluation
    start(1108, 10, start_up=8),  # began at 1100: 27 s after the last sign of life
    progress(1129, 20, compile=1, step=18, data_wait=2),  # 6 of 10 steps lost: 10.8 s
    start(1145, 14, start_up=5),  # began at 1140: 11 s down
    progress(1161, 24, step=15, checkpoint=1),
]


def test_every_second_of_a_killed_run_has_its_kind():
    result = goodput(TWICE_KILLED)
    assert result.seconds == pytest.approx(
        {
            "step": 20 + 7.2 + 15,
            "lost": 20 + 12 + 10.8,
            "start_up": 23,
            "compile": 6,
            "data_wait": 3,
            "checkpoint": 3,
            "evaluation": 3,
            "down": 38,
        }
    )
    assert result.wall == pytest.approx(1161 - 1000)
    assert result.share == pytest.approx(42.2 / 161)
    assert [(s.began, s.ended, s.first_step, s.last_step, s.lost_steps) for s in result.starts] == [
        (1000, 1073, 0, 25, 15),
        (1100, 1129, 10, 20, 6),
        (1140, 1161, 14, 24, 0),
    ]


@pytest.mark.parametrize("records", range(1, len(TWICE_KILLED) + 1))
def test_the_kinds_add_up_to_the_wall_time_whenever_it_was_killed(records):
    result = goodput(TWICE_KILLED[:records])
    last = TWICE_KILLED[records - 1]["time"]
    assert sum(result.seconds.values()) == pytest.approx(last - 1000, abs=1e-9)
    assert sum(sum(s.seconds.values()) for s in result.starts) == pytest.approx(
        last - 1000 - result.seconds["down"], abs=1e-9
    )


def test_steps_before_a_rollback_are_lost():
    """At step 30 the run goes back to 20 without a restart; the first record afterwards stands at 25."""
    records = [
        start(100, 0),
        progress(120, 20, step=20),
        progress(130, 30, step=10),
        progress(136, 25, step=5, checkpoint=1),
        progress(141, 30, step=5),
    ]
    result = goodput(records)
    assert result.seconds["lost"] == pytest.approx(5)  # of what the records can tell
    assert result.wall == pytest.approx(41)
    records.insert(3, progress(131, 20, checkpoint=1))  # where the rollback itself is recorded, all
    records[4] = progress(136, 25, step=5)
    assert goodput(records).seconds["lost"] == pytest.approx(10)
    assert goodput(records).starts[0].lost_steps == 10


def test_clocks_that_do_not_agree_give_no_negative_time():
    result = goodput([start(100, 0), progress(150, 5, step=50), start(152, 5, start_up=4)])
    assert result.seconds["down"] == 0
    assert result.wall == pytest.approx(54)


def test_the_line():
    assert describe_goodput(goodput(TWICE_KILLED)) == (
        "goodput 26.2% of 161.0 s in 3 starts: lost 42.8 s, step 42.2 s, down 38.0 s, start_up 23.0 s,"
        " compile 6.0 s, data_wait 3.0 s, checkpoint 3.0 s, evaluation 3.0 s"
    )


@pytest.fixture
def clock(monkeypatch):
    """Time that goes by hand: a list with the one number that `perf_counter` shows; Unix time is 1000 more."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "time", lambda: now[0] + 1000)
    return now


def test_what_is_written_is_what_was_booked(tmp_path, clock):
    timeline = Timeline(started=1095.0)
    clock[0] += 4
    assert timeline.book("start_up") == 9  # 5 s before there was a timeline
    timeline.open(tmp_path, 7)
    clock[0] += 2
    timeline.book("step")
    clock[0] += 1
    timeline.book("data_wait")
    clock[0] += 3
    timeline.book("step")
    assert timeline.lap() == (6.0, pytest.approx(1 / 6))
    clock[0] += 8
    timeline.book("evaluation")
    timeline.record(9)
    clock[0] += 2
    timeline.book("step")
    assert timeline.lap() == (2.0, 0.0)
    clock[0] += 50  # booked to nothing yet: not in the record
    timeline.record(10)
    assert read_timeline(tmp_path) == [
        start(1104.0, 7, start_up=9.0),
        progress(1118.0, 9, step=5.0, data_wait=1.0, evaluation=8.0),
        progress(1120.0, 10, step=2.0),
    ]
    timeline.close()


def test_a_restart_appends_after_a_half_written_line(tmp_path, clock):
    for step in (0, 3):
        timeline = Timeline()
        clock[0] += 1
        timeline.book("start_up")
        timeline.open(tmp_path, step)
        timeline.close()
        with (tmp_path / TIMELINE).open("a") as file:
            file.write('\0\0\n{"event": "progress", "ti')
        clock[0] += 5
    # What the second one left is an error only until the next start.
    assert "line 3" in summary(tmp_path)
    timeline = Timeline()
    timeline.open(tmp_path, 3)
    timeline.close()
    assert [r["step"] for r in read_timeline(tmp_path)] == [0, 3, 3]
    assert summary(tmp_path).startswith("goodput 0.0% of ")
    assert goodput(read_timeline(tmp_path)).seconds["down"] == 10


def test_processes_that_do_not_write_keep_the_time_all_the_same(clock):
    timeline = Timeline()
    clock[0] += 2
    timeline.book("step")
    timeline.record(1)
    assert timeline.lap() == (2.0, 0.0)


def test_no_timeline(tmp_path):
    with pytest.raises(UserError, match=r"timeline.jsonl is missing: .* recorded its time"):
        read_timeline(tmp_path)
    (tmp_path / TIMELINE).write_text("{}}\n" + json.dumps(start(1, 0)) + "\n")
    with pytest.raises(UserError, match="timeline.jsonl, line 1: "):
        read_timeline(tmp_path)
    (tmp_path / TIMELINE).write_text(json.dumps(progress(1, 0)) + "\n")
    with pytest.raises(UserError, match="does not begin with a start"):
        read_timeline(tmp_path)


def test_a_process_knows_when_it_began():
    before = time.time()
    time.sleep(0.3)
    code = "import time; time.sleep(0.5); from mmbert_jax.goodput import process_start; print(process_start())"
    began = float(
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    )
    assert before + 0.25 < began < time.time() - 0.45
    assert process_start() < before
