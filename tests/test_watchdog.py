"""A wait that takes too long ends the program."""

import subprocess
import sys
import threading

import pytest
from data.tiny_corpus import write_corpus
from tiny import tiny_config

from mmbert_jax.data.pipeline import open_data
from mmbert_jax.parallel.mesh import make_mesh
from mmbert_jax.parallel.processes import RESTART
from mmbert_jax.train import read_batches

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


def test_a_stalled_input_ends_the_run(tmp_path, monkeypatch, capsys):
    corpus = write_corpus(tmp_path / "corpus", {"eng": 64}, row_length=64)
    config = tiny_config(data__corpus=str(corpus), data__stall_minutes=0.005)
    data, ended = open_data(config.data, 64, 0), threading.Event()
    statuses = []

    def hangs(*args):
        assert ended.wait(30)
        raise EOFError("the program would be no more")
        yield

    monkeypatch.setattr("mmbert_jax.train.microbatches", hangs)
    monkeypatch.setattr("os._exit", lambda status: (statuses.append(status), ended.set()))
    with pytest.raises(EOFError):
        next(read_batches(config, data, make_mesh({"data": 8, "fsdp": 1, "tensor": 1}), 0, 64))
    assert statuses == [RESTART]
    assert (
        "no batch came within 0.005 minutes (config.data.stall_minutes)" in capsys.readouterr().err
    )
