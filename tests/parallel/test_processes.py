"""Several processes: rows and losses as with one, moving between numbers of processes, and ends that none misses."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from data.tiny_corpus import write_corpus
from tiny import tiny_config

from mmbert_jax import checkpoint
from mmbert_jax.batches import MicrobatchRanges
from mmbert_jax.buckets import upload_folder
from mmbert_jax.data.pipeline import microbatches, open_data
from mmbert_jax.metrics import read_metrics
from mmbert_jax.optim.schedules import batch_rows, phase_rows, phase_steps
from mmbert_jax.parallel import processes
from mmbert_jax.parallel.mesh import make_mesh
from mmbert_jax.parallel.processes import RESTART
from mmbert_jax.parallel.sharding import put_rows
from mmbert_jax.places import place
from mmbert_jax.run import complete_steps
from mmbert_jax.step import init_state, phase_seed

ROOT = Path(__file__).resolve().parent.parent.parent
OVERRIDES = {
    "model__vocab_size": 2048,
    "train__tokens": 64 * 16 * 20,
    "checkpoint__every_steps": 5,
    "mesh__data": -1,
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    rows = {f"l{i}": 20 + 7 * i for i in range(40)}
    held_out = dict.fromkeys(rows, 1)
    folder = tmp_path_factory.mktemp("corpus") / "text"
    write_corpus(folder, rows, row_length=64, held_out=held_out)
    return tiny_config(data__corpus=str(folder), **OVERRIDES)


@pytest.fixture(scope="module")
def environment():
    return os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def start(config, environment, tmp_path_factory):
    """A function that starts training in several processes on one machine."""
    folder = tmp_path_factory.mktemp("config")
    (folder / "tiny.py").write_text(
        "import json\nfrom ml_collections import ConfigDict\n\n\ndef get_config():\n"
        f"    return ConfigDict(json.loads({config.to_json()!r}))\n"
    )

    started = []

    def start(workdir, processes, devices, *extra) -> subprocess.Popen:
        words = [sys.executable, "launch/local.py", "--processes", str(processes)]
        words += ["--devices_per_process", str(devices), "--", "--config", str(folder / "tiny.py")]
        words += ["--workdir", str(workdir), *extra]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen(words, cwd=ROOT, env=environment, **pipes))
        return started[-1]

    yield start
    for process in started:  # only of tests that failed
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=60)


def finish(process, status=0) -> str:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == status, output
    return output


def until(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def losses(workdir) -> dict[int, float]:
    return {r["step"]: r["loss"] for r in read_metrics(workdir) if "loss" in r}


def steps_done(workdir) -> int:
    return max(losses(workdir), default=0) if (workdir / "metrics.jsonl").exists() else 0


@pytest.fixture(scope="module")
def one_process(start, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "1x4"
    finish(start(workdir, 1, 4))
    return workdir


def assert_same_run(workdir, reference):
    """Equal but for the order of sums, which twenty steps of training magnify."""
    ours, theirs = losses(workdir), losses(reference)
    assert (
        list(ours)
        == list(theirs)
        == list(range(1, phase_steps(tiny_config(**OVERRIDES).train, 64) + 1))
    )
    np.testing.assert_allclose(list(ours.values())[:10], list(theirs.values())[:10], rtol=1e-5)
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-3)
    ours, theirs = (read_metrics(run)[-1]["held_out"] for run in (workdir, reference))
    assert [(k, v["targets"]) for k, v in ours.items()] == [
        (k, v["targets"]) for k, v in theirs.items()
    ]
    for language in ours:
        assert ours[language]["loss"] == pytest.approx(theirs[language]["loss"], rel=1e-3)


def test_rows_on_the_devices_are_the_order_of_the_data(config, environment, tmp_path):
    """On meshes whose rows lie on one process, on several, or on all (a tensor axis over both processes)."""
    meshes = ["4,1,1", "2,2,1", "2,1,2", "1,1,4"]
    short = tiny_config(data__corpus=config.data.corpus, model__vocab_size=2048)
    (tmp_path / "config.json").write_text(short.to_json())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    job = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_NUM_CPU_DEVICES": "2"}
    script = Path(__file__).with_name("write_batches.py")
    words = [sys.executable, str(script), str(tmp_path / "config.json"), str(tmp_path), *meshes]
    started = [
        subprocess.Popen(words, cwd=ROOT, env=environment | job | {"JAX_PROCESS_ID": str(index)})
        for index in range(2)
    ]
    assert [process.wait(120) for process in started] == [0, 0]

    rows = phase_rows(short.train, 64)
    data = open_data(short.data, rows, phase_seed(short))
    stream = microbatches(data, 8, MicrobatchRanges(short, 0, rows))
    expected, row = [], 0  # of each step, its microbatches
    while row < rows:
        count = batch_rows(short.train, row, 64) // 8
        expected.append([next(stream) for _ in range(count)])
        row += 8 * count
    places = {}
    for index in range(2):
        for key, array in np.load(tmp_path / f"{index}.npz").items():
            mesh, step, name, first, stop = key.split()
            places.setdefault((int(mesh), index), set()).add((int(first), int(stop)))
            batch = expected[int(step)]
            for slot, microbatch in enumerate(batch):
                wanted = microbatch[name][int(first) : int(stop)]
                np.testing.assert_array_equal(array[slot], wanted)
            assert not array[len(batch) :].any()
    assert places[0, 1] == {(4, 6), (6, 8)}
    assert places[1, 0] == {(0, 2), (2, 4)}
    assert places[2, 0] == {(0, 4)}
    assert places[3, 0] == places[3, 1] == {(0, 8)}


@pytest.mark.parametrize(("processes", "devices"), [(4, 1), (1, 1)])
def test_any_number_of_processes_trains_alike(start, one_process, tmp_path, processes, devices):
    output = finish(start(tmp_path / "run", processes, devices))
    assert output.count("is complete") == 1  # said by one of them
    assert_same_run(tmp_path / "run", one_process)


def on_machines_of_their_own(config, folder, number, workdir) -> list[subprocess.Popen]:
    """A job whose processes share no disk: each has a config, a home and a folder for what is temporary of its own."""
    address = f"127.0.0.1:{free_ports(1)[0]}"
    job = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(number)}
    started = []
    for index in range(number):
        home = folder / str(index)
        home.mkdir(parents=True)
        (home / "tiny.py").write_text(
            "import json\nfrom ml_collections import ConfigDict\n\n\ndef get_config():\n"
            f"    return ConfigDict(json.loads({config.to_json()!r}))\n"
        )
        own = {"JAX_PROCESS_ID": str(index), "HOME": str(home), "TMPDIR": str(home)}
        own |= {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": str(4 // number)}
        words = ["-m", "mmbert_jax.train", "--config", "tiny.py", "--workdir", workdir]
        with (home / "output").open("w") as output:
            started.append(
                subprocess.Popen(
                    [sys.executable, *words],
                    cwd=home,
                    env=os.environ | job | own,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
    return started


def test_processes_without_a_common_disk(config, one_process, gs_bucket, tmp_path):
    """Corpus and run folder in a bucket; begun by two processes, gone on with by one, ended by four."""
    bucket = place(gs_bucket)
    upload_folder(Path(config.data.corpus), bucket / "corpus", last=None)
    there = config.copy_and_resolve_references()
    there.data.corpus = str(bucket / "corpus")
    for number, stop_after in ((2, 6), (1, 12), (4, None)):
        folder = tmp_path / str(number)
        job = on_machines_of_their_own(there, folder, number, str(bucket / "run"))
        said = folder / "0" / "output"
        try:
            if stop_after:
                step = re.compile(rf"^step +{stop_after}\b", re.M)
                deadline = time.monotonic() + 240
                while not step.search(said.read_text()):
                    assert job[0].poll() is None, said.read_text()
                    assert time.monotonic() < deadline, said.read_text()
                    time.sleep(0.1)
                job[-1].send_signal(signal.SIGTERM)
            statuses = [process.wait(240) for process in job]
        finally:
            for process in job:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        assert statuses == [RESTART if stop_after else 0] * number, said.read_text()
        left = {path.name for home in folder.iterdir() for path in home.iterdir()}
        assert left <= {"tiny.py", "output", ".cache"}
    assert_same_run(bucket / "run", one_process)


# --- one of two processes fails alone, or does not answer ---


def free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]


def two_processes(words) -> list[subprocess.Popen]:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    job = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_NUM_CPU_DEVICES": "1"}
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"} | job
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return [
        subprocess.Popen(
            [sys.executable, *words[index]],
            cwd=ROOT,
            env=environment | {"JAX_PROCESS_ID": str(index)},
            start_new_session=True,
            **pipes,
        )
        for index in range(2)
    ]


def ends_of(jobs: dict[str, list[subprocess.Popen]]) -> dict[str, list[tuple[int, str]]]:
    """Of each job (status, output) of its two processes; a job that hangs fails the test and leaves nothing behind."""
    deadline, ends = time.monotonic() + 480, {}
    try:
        for name, processes in jobs.items():
            for process in processes:
                output, _ = process.communicate(timeout=max(1, deadline - time.monotonic()))
                ends.setdefault(name, []).append((process.returncode, output))
    finally:
        for process in (p for processes in jobs.values() for p in processes):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # and what it has started
                process.communicate()
    return ends


def test_what_one_process_decides_or_fails_in_reaches_all():
    """No devices are needed for it, so no program is compiled. Each way to end is a job of two processes."""
    script = str(Path(__file__).with_name("stages.py"))
    endings = ["crashes", "first fails", "killed", "hangs", "told to stop"]
    ends = ends_of({name: two_processes([[script, name]] * 2) for name in endings})

    for _, output in ends["crashes"]:
        said = [line for line in output.splitlines() if line.startswith("say: ")]
        nested = "takes all processes, and stands inside of the stage"
        assert said[:5] == [
            "say: returned [0, 'text']",  # what process 0 has decided
            "say: the fault",
            "say: returned its own",
            "say: process 0: the fault",
            "say: process 1: the fault",
        ]
        assert said[5] == "say: process 0: RuntimeError('the crash')"
        assert all(nested in line for line in said[6:8])
        assert said[8:] == ["say: returned True returned ['a', 'b']"]
        assert "error: process 1: RuntimeError('the crash')" in output
    assert "Traceback" in ends["crashes"][1][1]
    assert [status for status, _ in ends["crashes"]] == [1, 1]
    # The service, through which the others hear of it, is in the process that fails.
    assert all("error: process 0: the fault" in output for _, output in ends["first fails"])
    assert [status for status, _ in ends["first fails"]] == [2, 2]
    assert [status for status, _ in ends["killed"]] == [RESTART, -signal.SIGKILL]
    assert "most likely another one has ended" in ends["killed"][0][1]
    message = "process 1 did not come to the stage 'reading' within 4 s (--answer_seconds)"
    assert all(message in output for _, output in ends["hangs"])
    assert [status for status, _ in ends["hangs"]] == [RESTART] * 2
    message = "told to stop while waiting for other processes at the stage 'reading'"
    assert all(message in output for _, output in ends["told to stop"])
    assert [status for status, _ in ends["told to stop"]] == [RESTART] * 2


def test_collectives_inside_of_a_stage_are_refused_in_a_single_process_too(config):
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    for act in (
        lambda: processes.once(int, "inner"),
        lambda: processes.everywhere(int, "inner"),
        lambda: processes.gather(""),
        lambda: init_state(config, mesh),
        lambda: put_rows(mesh, 1, {}),
        lambda: checkpoint.restore(Path("anywhere"), {}),
        lambda: checkpoint.open_manager(Path("anywhere"), 1),
    ):
        for outer in (processes.once, processes.everywhere):
            with pytest.raises(RuntimeError, match="stands inside of the stage 'outer'"):
                outer(act, "outer")
    assert processes.once(lambda: 1) + processes.everywhere(lambda: 1) == 2


FAULT = "error: process 1: the injected fault"
CRASH = re.escape("error: process 1: RuntimeError('the injected fault')")
# What process 1 alone fails in -> the job's exit status, and what both processes say.
STAGES = {
    "config": (2, "config.mask.ratio is 0.3 in process 0, -1.0 in process 1"),
    "corpus": (2, FAULT),
    "init_from": (2, "is damaged: the injected fault"),
    "folders": (2, "every process of a job must see the same run folder"),
    "restore": (1, CRASH),
    "compile": (1, CRASH),
    "data": (1, CRASH),
    "save": (2, "error: process 1: saving to .* failed: .*File too large"),
    "evaluation": (2, FAULT),
}


def test_one_of_two_processes_fails_alone(config, one_process, tmp_path):
    """Wherever it fails, both end with its message and its status. One that hangs is killed, which shows as another."""
    short = config.copy_and_resolve_references()
    short.init_from, short.checkpoint.every_steps = str(one_process), 3
    short.eval.every_steps = 2
    (tmp_path / "config.json").write_text(short.to_json())
    shutil.copytree(one_process / "checkpoints", tmp_path / "restore" / "checkpoints")
    shutil.copyfile(one_process / "config.json", tmp_path / "restore" / "config.json")
    ports = free_ports(len(STAGES))
    words = []
    for index in range(2):
        words.append([str(Path(__file__).with_name("fail_alone.py")), str(tmp_path)])
        words[index].append(str(tmp_path / "config.json"))
        for stage, port in zip(STAGES, ports, strict=True):
            workdir = tmp_path / (f"there{index}" if stage == "folders" else stage)
            words[index].append(f"{stage}={port}:{workdir}")
    ends = ends_of({"": two_processes(words)})[""]
    statuses = [dict(re.findall(r"^(\w+) (-?\d+) ", output, re.M)) for _, output in ends]
    ended = [dict(re.findall(r"^(\w+) -?\d+ (\S+)$", output, re.M)) for _, output in ends]
    for stage, (status, message) in STAGES.items():
        for index in range(2):
            said = (tmp_path / f"{stage}.{index}").read_text()
            assert statuses[index][stage] == str(status), (stage, said)
            assert re.search(message, said), (stage, said)
        # Where the moment of the fault is not known, from the first end on.
        fault = re.search(r"^FAULT (\S+)$", (tmp_path / f"{stage}.1").read_text(), re.M)
        times = [float(of_process[stage]) for of_process in ended]
        seconds = max(times) - (float(fault[1]) if fault else min(times))
        print(f"{stage}: the job ended after {seconds:.1f} s")
        assert seconds < 60, stage
    # Nothing was begun, and a first save that has failed is none.
    assert not any((tmp_path / stage).exists() for stage in ("config", "corpus", "init_from"))
    assert not (tmp_path / "there1").exists()
    assert not complete_steps(tmp_path / "save")


def children(process) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True)
    return sorted(map(int, listed.stdout.split()))


@pytest.mark.slow  # minutes; stages alone are held by the tests above
def test_dead_silent_and_interrupted_processes(start, one_process, tmp_path):
    """A job ends when one of its processes dies, hangs or is told to stop, and goes on with any number of them.

    The phase is too long to end meanwhile, and starts as the short one does.
    """
    workdir, long = tmp_path / "run", "--config.train.tokens=4096000"

    def until_it_goes_on(process, seen):
        """Waits for a few steps of processes that are not the seen ones."""
        until(lambda: len(c := children(process)) == 2 and not set(c) & set(seen), process)
        before = steps_done(workdir)
        until(lambda: steps_done(workdir) != before, process)
        return children(process)

    often = "--config.checkpoint.every_steps=2"
    process = start(workdir, 2, 4, long, often, "--heartbeat_seconds=5")
    first = until_it_goes_on(process, [])
    os.kill(first[1], signal.SIGKILL)
    second = until_it_goes_on(process, first)
    os.kill(second[1], signal.SIGSTOP)
    began = time.monotonic()
    third = until_it_goes_on(process, second)
    assert time.monotonic() - began < 120
    os.kill(third[1], signal.SIGTERM)
    until_it_goes_on(process, third)
    process.send_signal(signal.SIGTERM)
    output = finish(process, RESTART)
    assert output.count("starting it again") == 3
    # Ours, or jax's where its heartbeat is the first to notice.
    assert re.search(
        r"\[0\] .*(operation that all processes take part in failed|sending heartbeats|crashed)",
        output,
    ), output
    stopped = re.findall(r"interrupted after step (\d+), which is saved", output)
    assert len(stopped) == 2
    assert (workdir / "checkpoints" / stopped[1]).is_dir()

    process = start(workdir, 1, 4, long, often)
    until(lambda: steps_done(workdir) > int(stopped[1]) + 1, process)
    process.send_signal(signal.SIGTERM)
    output = finish(process, RESTART)
    assert f"resuming at step {stopped[1]}" in output
    last = steps_done(workdir)
    process = start(workdir, 2, 4, long, often)
    until(lambda: steps_done(workdir) > last + 1, process)
    process.send_signal(signal.SIGTERM)
    finish(process, RESTART)

    ours, theirs = losses(workdir), losses(one_process)
    assert list(ours) == list(range(1, len(ours) + 1))
    common = sorted(ours.keys() & theirs.keys())
    np.testing.assert_allclose([ours[s] for s in common], [theirs[s] for s in common], rtol=1e-3)
