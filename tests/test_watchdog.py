"""A wait that takes too long ends the program."""

import subprocess
import sys
import threading
import time

import pytest
from data.tiny_corpus import write_corpus
from tiny import tiny_config

from mmbert_jax.batches import read_batches
from mmbert_jax.data.pipeline import open_data
from mmbert_jax.evaluate.heldout import evaluate
from mmbert_jax.parallel.mesh import make_mesh
from mmbert_jax.parallel.processes import RESTART
from mmbert_jax.waiting import saves_in_time, step_in_time
from mmbert_jax.watchdog import deadline, watched

WAIT = """
import sys, time
from mmbert_jax.watchdog import deadline
for seconds in map(float, sys.argv[1:]):
    with deadline(0.5, f"{seconds} s are too long", 7):
        time.sleep(seconds)
"""


def test_it_ends_the_program_with_a_message():
    for waits, status in ((["0.1"] * 8, 0), (["0.1", "60"], 7)):
        words = [sys.executable, "-c", WAIT, *waits]
        ended = subprocess.run(words, capture_output=True, text=True, timeout=30)
        assert ended.returncode == status
        assert ended.stderr == ("error: 60.0 s are too long\n" if status else "")


@pytest.fixture
def hanging(monkeypatch):
    """A generator function that never yields, and the list of statuses with which it made the program end."""
    ended, statuses = threading.Event(), []

    def hangs(*args):
        assert ended.wait(30)
        raise EOFError("the program would be no more")
        yield

    monkeypatch.setattr("os._exit", lambda status: (statuses.append(status), ended.set()))
    return hangs, statuses


def test_a_stalled_input_ends_the_run(tmp_path, monkeypatch, capsys, hanging):
    corpus = write_corpus(tmp_path / "corpus", {"eng": 64}, row_length=64)
    config = tiny_config(data__corpus=str(corpus), data__stall_minutes=0.005)
    data = open_data(config.data, 64, 0)
    hangs, statuses = hanging
    monkeypatch.setattr("mmbert_jax.batches.microbatches", hangs)
    with pytest.raises(EOFError):
        next(read_batches(config, data, make_mesh({"data": 8, "fsdp": 1, "tensor": 1}), 0, 64))
    assert statuses == [RESTART]
    assert (
        "no batch came within 0.005 minutes (config.data.stall_minutes)" in capsys.readouterr().err
    )


def no_corpus(data_config):
    """Folders and manifests: nothing is read of them here but the size of the vocabulary."""
    return (), ({"tokenizer": {"vocab_size": 512}},)


def test_held_out_rows_that_stall_end_the_run(monkeypatch, capsys, hanging):
    config = tiny_config(data__corpus="there", data__stall_minutes=0.005)
    hangs, statuses = hanging
    monkeypatch.setattr("mmbert_jax.evaluate.heldout.find_corpora", no_corpus)
    monkeypatch.setattr("mmbert_jax.evaluate.heldout.held_out_batches", hangs)
    with pytest.raises(EOFError):
        evaluate(config, make_mesh({"data": 8, "fsdp": 1, "tensor": 1}))({})
    assert statuses == [RESTART]
    message = (
        "no held-out batch came within 0.005 minutes (config.data.stall_minutes): what holds there"
    )
    assert message in capsys.readouterr().err


def test_items_that_come_in_time_pass():
    assert list(watched(iter("abc"), lambda: deadline(30, "too long", 7))) == ["a", "b", "c"]


def test_devices_that_hang_end_the_run(monkeypatch, capsys, hanging):
    """In the evaluation, in a step and in a save: another process, a device or a disk that does not answer."""
    config = tiny_config(train__stall_minutes=0.005, checkpoint__stall_minutes=0.006)
    hangs, statuses = hanging
    monkeypatch.setattr("mmbert_jax.evaluate.heldout.find_corpora", no_corpus)
    monkeypatch.setattr("mmbert_jax.evaluate.heldout.held_out_batches", lambda *_: iter(()))
    monkeypatch.setattr("jax.block_until_ready", lambda _: next(hangs()))
    with pytest.raises(EOFError):
        evaluate(config, make_mesh({"data": 8, "fsdp": 1, "tensor": 1}))({})
    for waiting in (step_in_time(config), saves_in_time(config, "saving a checkpoint")):
        with waiting:
            time.sleep(0.8)
    assert statuses == [RESTART] * 3
    said = capsys.readouterr().err
    assert "a held-out batch took longer than 0.005 minutes (config.train.stall_minutes)" in said
    assert "a step took longer than 0.005 minutes (config.train.stall_minutes)" in said
    assert "saving a checkpoint took longer than 0.006 minutes (config.checkpoint.stall" in said
