"""The program as a whole: it resumes bit for bit after a kill, and says what is wrong before it writes anything."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from absl.testing import flagsaver
from data.tiny_corpus import write_corpus
from tiny import tiny_config

from mmbert_jax.checkpoint import restore_params
from mmbert_jax.errors import UserError
from mmbert_jax.goodput import goodput, read_timeline
from mmbert_jax.metrics import read_metrics
from mmbert_jax.optim.schedules import phase_rows, phase_steps
from mmbert_jax.parallel.processes import RESTART
from mmbert_jax.train import main, parse_flags, train

ROOT = Path(__file__).resolve().parent.parent
OVERRIDES = {"model__vocab_size": 2048, "checkpoint__every_steps": 3}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    rows = {f"l{i}": 20 + 7 * i for i in range(40)}
    held_out = dict.fromkeys(rows, 1)
    return write_corpus(
        tmp_path_factory.mktemp("corpus") / "text", rows, row_length=64, held_out=held_out
    )


@pytest.fixture(scope="module")
def command(corpus, tmp_path_factory):
    """The command line of a training run, without its --workdir; compiled programs are shared between runs."""
    folder = tmp_path_factory.mktemp("config")
    (folder / "tiny.py").write_text(
        "from tests.tiny import tiny_config\n\n\ndef get_config():\n    return tiny_config()\n"
    )
    overrides = [f"--config.{name.replace('__', '.')}={value}" for name, value in OVERRIDES.items()]
    data = f"--config.data.corpus={corpus}"
    return [
        sys.executable,
        "-m",
        "mmbert_jax.train",
        "--config",
        str(folder / "tiny.py"),
        data,
        *overrides,
    ]


@pytest.fixture(scope="module")
def environment():
    return os.environ | {"JAX_NUM_CPU_DEVICES": "1"}


def run(command, workdir, environment, *extra):
    words = [*command, "--workdir", str(workdir), *extra]
    return subprocess.run(
        words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def uninterrupted(command, environment, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "uninterrupted"
    result = run(command, workdir, environment)
    assert result.returncode == 0, result.stderr
    return workdir


def losses(workdir):
    return {r["step"]: (r["loss"], r["grad_norm"]) for r in read_metrics(workdir) if "loss" in r}


def signal_when(command, workdir, environment, condition, number):
    """Starts a run and signals it the moment that `condition` holds; returns how it ended and what it printed.

    It must not end by itself before.
    """
    with subprocess.Popen(
        [*command, "--workdir", str(workdir)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 120
        while not (held := condition()) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.0005)
        ended = process.poll()
        process.send_signal(number if held else signal.SIGKILL)
        output, _ = process.communicate()
    assert ended is None, "the run ended before it could be signalled"
    assert held, "nothing to signal the run for in two minutes"
    return process.returncode, output


def kill_when(command, workdir, environment, condition):
    status, _ = signal_when(command, workdir, environment, condition, signal.SIGKILL)
    assert status == -signal.SIGKILL


def test_killed_between_and_during_saves_it_resumes_bit_for_bit(
    command, environment, uninterrupted, tmp_path
):
    workdir = tmp_path / "killed"
    checkpoints = workdir / "checkpoints"

    def lines():
        path = workdir / "metrics.jsonl"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def saving():
        return checkpoints.is_dir() and any("tmp" in path.name for path in checkpoints.iterdir())

    kill_when(command, workdir, environment, saving)  # in its first save: nothing to resume from
    kill_when(command, workdir, environment, lambda: lines() >= 5)  # between saves
    kill_when(command, workdir, environment, lambda: lines() >= 7 and saving())  # in a later save
    result = run(command, workdir, environment)
    assert result.returncode == 0, result.stderr
    assert "resuming at step" in result.stdout
    assert losses(workdir) == losses(uninterrupted)
    assert len(losses(workdir)) == phase_steps(tiny_config().train, 64)
    time_spent = goodput(read_timeline(workdir))
    assert len(time_spent.starts) == 4
    assert time_spent.starts[0].lost_steps >= 3  # its first save was not complete
    assert min(time_spent.seconds[kind] for kind in ("step", "lost", "down", "compile")) > 0
    assert "goodput" in result.stdout
    ours, reference = (restore_params(folder)[0] for folder in (workdir, uninterrupted))
    jax.tree.map(np.testing.assert_array_equal, ours, reference)


def test_a_signal_stops_it_after_a_step_that_is_saved(
    command, environment, uninterrupted, tmp_path
):
    workdir = tmp_path / "stopped"
    for lines, number in ((2, signal.SIGTERM), (5, signal.SIGINT)):

        def logged(lines=lines):
            path = workdir / "metrics.jsonl"
            return path.exists() and len(path.read_text().splitlines()) >= lines

        status, output = signal_when(command, workdir, environment, logged, number)
        assert status == RESTART
        step = int(re.search(r"interrupted after step (\d+), which is saved", output)[1])
        assert (workdir / "checkpoints" / str(step) / "SHA256SUMS").is_file()
    assert run(command, workdir, environment).returncode == 0
    assert losses(workdir) == losses(uninterrupted)


def test_saves_by_minutes_as_well(command, environment, uninterrupted, tmp_path):
    """A minute that has always passed: every step that is logged saves."""
    overrides = ["--config.checkpoint.every_steps=1000", "--config.checkpoint.every_minutes=1e-9"]
    result = run(command, tmp_path / "run", environment, *overrides, "--config.log_every_steps=5")
    assert result.returncode == 0, result.stderr
    saved = sorted(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert saved == [5, 10, phase_steps(tiny_config().train, 64)]


@pytest.fixture
def small_disk(tmp_path):
    """A file system with room for two of the run's checkpoints."""
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("needs a mount of its own")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_complete_checkpoints(command, environment, uninterrupted, small_disk):
    result = run(command, small_disk, environment)
    assert result.returncode == 2
    assert re.search(r"error: .*disk.*No space left on device", result.stderr)
    assert "Traceback" not in result.stderr
    before = sorted(p for p in (small_disk / "checkpoints").iterdir() if p.name.isdigit())
    assert before
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    result = run(command, small_disk, environment)
    assert result.returncode == 0, result.stderr
    assert f"resuming at step {max(int(path.name) for path in before)}" in result.stdout
    assert losses(small_disk) == losses(uninterrupted)


def test_a_complete_run_is_left_alone(command, environment, uninterrupted):
    before = (uninterrupted / "metrics.jsonl").read_bytes()
    result = run(command, uninterrupted, environment)
    assert result.returncode == 0
    assert "complete already" in result.stdout
    assert (uninterrupted / "metrics.jsonl").read_bytes() == before


def test_run_folder_explains_itself(uninterrupted, corpus):
    config = json.loads((uninterrupted / "config.json").read_text())
    assert config["model"]["vocab_size"] == 2048
    records = read_metrics(uninterrupted)
    assert set(records[0]) == {
        *(
            "step",
            "tokens",
            "loss",
            "masked_accuracy",
            "tokens_per_second",
            "data_wait",
            "learning_rate",
        ),
        *("grad_norm", "targets", "skipped"),
    }
    held_out = records[-1]["held_out"]
    assert len(held_out) == 40
    assert list(uninterrupted.glob("events.*"))
    _, meta = restore_params(uninterrupted)
    assert meta["tokens"] == records[-1]["tokens"] == phase_rows(tiny_config().train, 64) * 64
    assert meta["tokenizer"]["vocab_size"] == 2048
    # The batch grows during the warm-up, and the learning rate with the tokens.
    tokens = [r["tokens"] for r in records if "loss" in r]
    assert np.diff(tokens).tolist()[:6] == [8 * 64] * 3 + [16 * 64] * 3
    assert records[1]["learning_rate"] == pytest.approx(1e-3)


def test_its_corpus_may_be_copied_but_not_changed(uninterrupted, corpus, tmp_path, capsys):
    """Of every kind of change tests/test_checks.py and tests/test_fingerprint.py have one."""
    copy = shutil.copytree(corpus, tmp_path / "copy")
    longer = {f"l{i}": 20 + 7 * i for i in range(40)} | {"l40": 9}
    write_corpus(tmp_path / "longer", longer, row_length=64, held_out=dict.fromkeys(longer, 1))
    before = (uninterrupted / "config.json").read_bytes()
    config = tiny_config(data__corpus=str(tmp_path / "longer"), mesh__data=-1, **OVERRIDES)
    with pytest.raises(
        UserError, match=r"l40 \(0 rows before, 9 now\)\. Point --config\.data\.corpus at"
    ):
        train(config, uninterrupted)
    assert (uninterrupted / "config.json").read_bytes() == before
    train(tiny_config(data__corpus=str(copy), mesh__data=-1, **OVERRIDES), uninterrupted)
    printed = capsys.readouterr().out
    assert "is complete already" in printed
    _, meta = restore_params(uninterrupted)
    assert f"data fingerprint {meta['fingerprint']['digest']} at row" in printed


def test_a_phase_starts_from_another(command, environment, uninterrupted, tmp_path):
    next_phase = [
        "--config.phase=next",
        f"--config.init_from={uninterrupted}",
        "--config.train.tokens=4096",
    ]
    result = run(
        command, tmp_path / "next", environment, *next_phase, "--config.model.global_rope_theta=1e6"
    )
    assert result.returncode == 0, result.stderr
    _, meta = restore_params(tmp_path / "next")
    assert [past["phase"] for past in meta["history"]] == ["tiny"]
    # With a warm-up of its own.
    rates = [r["learning_rate"] for r in read_metrics(tmp_path / "next") if "loss" in r]
    assert rates[:4] == pytest.approx([0.0, 1e-3, 2e-3, 2e-3])
    assert read_metrics(tmp_path / "next")[0]["loss"] < read_metrics(uninterrupted)[2]["loss"]


@pytest.mark.parametrize(("steps", "newest"), [((), "-1\n"), ((3, 12, 9), "12\n")])
def test_launchers_ask_for_the_newest_step(tmp_path, capsys, steps, newest):
    """Nothing else is printed, whether the run folder was named or not."""
    (tmp_path / "own.py").write_text(
        "from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict()\n"
    )
    for step in steps:
        (tmp_path / "run" / "checkpoints" / str(step)).mkdir(parents=True)
    run_folder = f"--config.workdir={tmp_path / 'run'}"
    for words in (["--workdir", str(tmp_path / "run")], [run_folder]):
        with flagsaver.flagsaver():
            command = ["train", "--config", f"{tmp_path}/own.py", *words, "--newest_step"]
            main(parse_flags(command))
        assert capsys.readouterr().out == newest


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--config.optimizer.peek_lr=1"], "peak_lr"),
        (["--config.data.corpus=/nowhere"], "config.data.corpus=/nowhere: no such folder"),
    ],
)
def test_command_line_names_bad_input(command, environment, tmp_path, extra, message):
    result = run(command, tmp_path / "run", environment, *extra)
    assert result.returncode == 2
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"mask__ratio": 1.5}, "config.mask.ratio=1.5 is not allowed"),
        ({"model__vocab_size": 512}, "config.model.vocab_size=512 is too small"),
        ({"mesh__data": 3}, "config.mesh: data=3, fsdp=1, tensor=1 does not make 8 devices"),
        (
            {"train__microbatch_rows": 4, "mesh__data": 8},
            "config.train.microbatch_rows=4 must be a multiple of",
        ),
        (
            {"mesh__data": 1, "mesh__tensor": 8},
            "config.mesh.tensor=8 does not divide dimension 'heads'",
        ),
        ({"data__row_length": 128}, "prepare it with --row_length 128"),
        ({"init_from": "/nowhere"}, "no checkpoint at /nowhere"),
    ],
)
def test_bad_config_is_refused_before_anything_is_written(corpus, tmp_path, overrides, message):
    config = tiny_config(data__corpus=str(corpus), **{"mesh__data": 8, **OVERRIDES, **overrides})
    with pytest.raises(UserError, match=re.escape(message)):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_init_from_must_have_the_tokeniser_of_the_corpus(uninterrupted, tmp_path):
    other = write_corpus(tmp_path / "other", {"l0": 200}, row_length=64, tokenizer="b")
    config = tiny_config(
        data__corpus=str(other), init_from=str(uninterrupted), **{"mesh__data": 8, **OVERRIDES}
    )
    with pytest.raises(UserError, match="trained with another tokeniser"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
