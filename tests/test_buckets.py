"""Files, locks, checkpoints and whole runs on gs:// and s3://, as on the disk: the same, whole, or named."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from lock_holder import start_holder
from short_runs import losses
from tiny import tiny_config

from mmbert_jax import buckets, checkpoint, growing, run_lock
from mmbert_jax.checksums import damage
from mmbert_jax.errors import UserError
from mmbert_jax.files import atomic_file, atomic_folder, check_folder, read_json, write_json
from mmbert_jax.growing import JsonLines
from mmbert_jax.parallel.mesh import make_mesh
from mmbert_jax.places import files_under, place
from mmbert_jax.run import LOCK, SUMS, complete_steps
from mmbert_jax.run import checkpoint as checkpoint_folder
from mmbert_jax.step import abstract_state, init_state

# gcsfs and s3fs leave sockets to the end of the process.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(params=["gs", "s3"])
def bucket(request):
    return request.getfixturevalue(f"{request.param}_bucket")


def holds(folder) -> dict[str, bytes]:
    return {str(path)[len(str(folder)) + 1 :]: path.read_bytes() for path in files_under(folder)}


def test_a_file_is_written_whole_or_not_at_all(anywhere):
    path = place(anywhere) / "a" / "value.json"
    path.parent.mkdir(exist_ok=True)
    write_json(path, {"x": 1})
    with pytest.raises(TypeError), atomic_file(path) as file:  # noqa: PT012
        file.write("half")
        file.write(None)
    assert read_json(path) == {"x": 1}
    with atomic_file(path, "wb") as file:
        file.write(b"[2]")
    assert read_json(path) == [2]
    assert [found.name for found in path.parent.iterdir()] == ["value.json"]
    with pytest.raises(UserError, match=r"other\.json is missing"):
        read_json(path.with_name("other.json"))


def test_a_folder_takes_the_place_of_another(anywhere):
    folder = place(anywhere) / "output"
    for number in (1, 2):
        with atomic_folder(folder, replace=True, last="last") as local:
            assert isinstance(local, Path)
            (local / "in").mkdir()
            (local / "in" / f"file{number}").write_text("x")
            (local / "last").write_text(str(number))
        assert holds(folder) == {f"in/file{number}": b"x", "last": str(number).encode()}
    with pytest.raises(RuntimeError), atomic_folder(folder, replace=True, last="last"):
        raise RuntimeError
    assert holds(folder) == {"in/file2": b"x", "last": b"2"}
    with pytest.raises(UserError, match="not empty"):
        check_folder(folder)


def test_an_upload_that_is_killed_lacks_what_comes_last(bucket, monkeypatch):
    folder, upload = place(bucket) / "output", buckets.upload

    def killed(local, path):
        if path.name == "last":
            raise KeyboardInterrupt
        upload(local, path)

    with monkeypatch.context() as patch:
        patch.setattr(buckets, "upload", killed)
        with pytest.raises(KeyboardInterrupt), atomic_folder(folder, last="last") as local:  # noqa: PT012
            for name in ("last", "other", "z"):
                (local / name).write_text(name)
    assert holds(folder) == {buckets.UPLOADING: b"", "other": b"other", "z": b"z"}
    with atomic_folder(folder, last="last") as local:
        (local / "last").write_text("x")
    assert holds(folder) == {"last": b"x"}


def test_lines_are_there_when_they_are_flushed(bucket, monkeypatch):
    path = place(bucket) / "lines.jsonl"
    lines = JsonLines(path)
    lines.append({"step": 1})
    assert not path.exists()
    lines.flush()
    assert path.read_bytes() == b'{"step": 1}\n'
    lines.append({"step": 2})  # lost with the process
    path.write_bytes(path.read_bytes() + b'{"step": 2')
    lines = JsonLines(path)
    lines.append({"step": 3})
    lines.close()
    assert path.read_bytes() == b'{"step": 1}\n{"step": 3}\n'
    monkeypatch.setattr(growing, "FLUSH_SECONDS", 0)
    lines = JsonLines(path)
    lines.append({"step": 4})
    assert path.read_bytes().endswith(b'{"step": 4}\n')


# --- the lock ---

QUICK = {"BEAT_SECONDS": 0.2, "PATIENCE_SECONDS": 2.0, "_LOOK_SECONDS": 0.1}


@pytest.fixture
def quick(monkeypatch):
    for name, seconds in QUICK.items():
        monkeypatch.setattr(run_lock, name, seconds)
    with run_lock.released_at_end():
        yield


@pytest.mark.usefixtures("quick")
def test_one_holds_the_lock_and_one_that_is_dead_is_followed(bucket, monkeypatch):
    run = place(bucket) / "run"
    process = start_holder(run, "lives", json.dumps(QUICK))
    try:
        # As from another machine, where there is no process to look at.
        monkeypatch.setattr(run_lock, "_died_here", lambda lock: False)
        with pytest.raises(UserError, match=f"in use by process {process.pid}"):
            run_lock.take(run)
        assert f"process {process.pid}" in run_lock.holder(run)
    finally:
        process.kill()
        process.wait()
    nonce = run_lock.take(run)
    run_lock.see(run, nonce)
    assert read_json(run / LOCK)["pid"] == os.getpid()
    assert {path.name for path in run.iterdir()} == {LOCK, f".{LOCK}.{nonce}"}


@pytest.mark.usefixtures("quick")
def test_of_many_that_follow_a_dead_holder_one_gets_the_lock(bucket):
    run, got = place(bucket) / "run", []
    start_holder(run, "killed", json.dumps(QUICK)).wait()

    def take():
        try:
            got.append(run_lock.take(run))
        except UserError as error:
            assert "in use by" in str(error)  # noqa: PT017

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1
    assert read_json(run / LOCK)["nonce"] == got[0]


# --- checkpoints ---


@pytest.fixture(scope="module")
def mesh():
    return make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])


@pytest.fixture(scope="module")
def state(mesh):
    return init_state(tiny_config(), mesh)


def write_two(run, state):
    with checkpoint.open_manager(run, keep=2) as manager:
        for step in (1, 2, 3):
            checkpoint.save(manager, step, state, {"step": step})
    assert complete_steps(run) == [3, 2]
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"2", "3"}


def test_a_checkpoint_comes_back_as_it_was(bucket, mesh, state):
    run = place(bucket) / "run"
    write_two(run, state)
    restored, meta = checkpoint.restore(
        checkpoint_folder(run, checkpoint.newest_intact(run)), abstract_state(tiny_config(), mesh)
    )
    assert meta == {"step": 3}
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    params, _ = checkpoint.restore_params(bucket + "/run/checkpoints/2")
    jax.tree.map(np.testing.assert_array_equal, params, state["params"])
    checkpoint.save_params(bucket + "/merged", params, {"step": 0})
    again, _ = checkpoint.restore_params(bucket + "/merged")
    jax.tree.map(np.testing.assert_array_equal, again, params)
    with pytest.raises(UserError, match="no complete checkpoint at .*7; there are"):
        checkpoint.restore_params(bucket + "/run/checkpoints/7")


def test_damage_to_any_object_is_named_and_the_checkpoint_before_is_used(bucket, state, capsys):
    run = place(bucket) / "run"
    write_two(run, state)
    newest = checkpoint_folder(run, 3)
    whole = holds(newest)
    assert {SUMS, "commit_success.txt"} < set(whole)
    harms = {
        "flip": lambda data: bytes([data[0] ^ 1]) + data[1:],
        "cut": lambda data: data[: len(data) // 2],
        "absence": None,
    }
    for name, data in whole.items():
        path = newest / name
        for how, harm in harms.items():
            if harm and not data:  # a mark, of which only being there counts
                continue
            path.write_bytes(harm(data)) if harm else path.unlink()
            assert complete_steps(run) == [3, 2]
            named = damage(newest)
            assert named, (how, name)
            assert str(path) in named or name == SUMS
        path.write_bytes(data)
    assert damage(newest) is None
    (newest / SUMS).unlink()
    with pytest.raises(UserError, match="is damaged"):
        checkpoint.restore_params(newest)
    assert checkpoint.newest_intact(run) == 2
    assert "checkpoints/3 is damaged" in capsys.readouterr().out
    assert holds(newest.with_name("damaged-3")).keys() == whole.keys() - {SUMS}
    assert complete_steps(run) == [2]


@pytest.mark.parametrize("when", ["write_sums", "announce_sums"])
def test_a_save_that_is_killed_is_absent(bucket, state, when):
    run = place(bucket) / "run"
    write_two(run, state)
    save = f"""
import os, signal
import numpy as np
from mmbert_jax import checkpoint
from mmbert_jax.places import place

checkpoint.{when} = lambda folder: os.kill(os.getpid(), signal.SIGKILL)
with checkpoint.open_manager(place({str(run)!r}), keep=3) as manager:
    checkpoint.save(manager, 4, {{"params": {{"w": np.ones(3)}}}}, {{"step": 4}})
"""
    words = [sys.executable, "-W", "ignore", "-c", save]
    assert subprocess.run(words).returncode == -signal.SIGKILL
    assert when == "announce_sums" or files_under(checkpoint_folder(run, 4))
    assert complete_steps(run) == [3, 2]
    checkpoint.clear(run)
    assert not files_under(checkpoint_folder(run, 4))
    assert checkpoint.newest_intact(run) == 3


# --- a run ---


@pytest.fixture(scope="module")
def local_run(go, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "local"
    go(run, 8)
    return run


def test_a_run_in_a_bucket_resumes_to_the_same_bits(go, local_run, bucket, capsys):
    run = place(bucket) / "run"
    go(run, 4)
    assert complete_steps(run) == [4, 2]
    go(run, 8)
    assert "resuming at step 4" in capsys.readouterr().out
    assert complete_steps(run) == [8, 6]
    assert losses(run) == losses(local_run)
    ours, theirs = (checkpoint.restore_params(r)[0] for r in (run, local_run))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    names = {path.name for path in run.iterdir()}
    assert {"config.json", "metrics.jsonl", "timeline.jsonl", "checkpoints"} < names
    assert not any(LOCK in name for name in names)
    go(run, 8)
    assert "complete already" in capsys.readouterr().out
