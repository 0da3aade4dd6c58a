"""The lock of a run folder: one holder, one that is dead is followed, one that was only stopped gives way."""

import json
import os
import signal
import threading
import time

import pytest
from lock_holder import start_holder
from tiny import tiny_config

from mmbert_jax import run_lock, watchdog
from mmbert_jax.config import claim_run
from mmbert_jax.errors import UserError
from mmbert_jax.run import LOCK, is_free

# What the module's constants are here; a process that is stopped for longer than its patience is taken over.
QUICK = {"BEAT_SECONDS": 0.1, "PATIENCE_SECONDS": 1.5, "_LOOK_SECONDS": 0.05}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, seconds in QUICK.items():
        monkeypatch.setattr(run_lock, name, seconds)
    with run_lock.released_at_end():
        yield


def seconds_of(act) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


def change(run, **entries):
    path = run / LOCK
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def files(run):
    return sorted(path.name for path in run.iterdir())


def test_the_second_is_refused_and_told_who_is_first(tmp_path):
    run = tmp_path / "run"
    assert run_lock.holder(run) is None
    with run_lock.released_at_end():
        run_lock.take(run)
        named = run_lock.holder(run)
        assert f"process {os.getpid()} on {os.uname().nodename}, since 20" in named
        with pytest.raises(UserError) as refused:
            run_lock.take(run)
        assert f"{run} is in use by {named}" in str(refused.value)
        assert len(files(run)) == 2  # nothing of the second is left
    assert files(run) == []


def test_after_a_sigkill_nobody_waits(tmp_path):
    start_holder(tmp_path, "killed", json.dumps(QUICK)).communicate()
    assert is_free(tmp_path)
    assert run_lock.holder(tmp_path) is None
    assert seconds_of(lambda: run_lock.take(tmp_path)) < QUICK["PATIENCE_SECONDS"] / 2
    claim_run(tiny_config(), tmp_path)  # a folder that holds a lock alone is still to be had
    assert len(files(tmp_path)) == 3


@pytest.mark.parametrize("entry", ["host", "boot", "namespace"])
def test_of_a_process_elsewhere_the_counter_tells(tmp_path, entry):
    """Where processes cannot be looked at, a lock is taken when its counter has stood still for long enough."""
    start_holder(tmp_path, "killed", json.dumps(QUICK)).communicate()
    change(tmp_path, **{entry: "another"})
    assert seconds_of(lambda: run_lock.take(tmp_path)) >= QUICK["PATIENCE_SECONDS"]
    change(tmp_path, **{entry: "another"})
    with pytest.raises(UserError, match="is in use by process"):
        run_lock.take(tmp_path)


def test_who_was_stopped_and_taken_over_writes_no_more(tmp_path):
    holder = start_holder(tmp_path, "stopped", json.dumps(QUICK))
    holder.send_signal(signal.SIGSTOP)
    run_lock.take(tmp_path)
    holder.send_signal(signal.SIGCONT)
    holder.communicate(b"\n" * 3)
    assert holder.returncode == run_lock.TAKEN_OVER
    assert not (tmp_path / "written").exists()
    assert run_lock.holder(tmp_path)  # ours is still there


def test_a_lock_that_was_never_written_is_no_obstacle(tmp_path):
    (tmp_path / LOCK).touch()
    assert is_free(tmp_path)
    run_lock.take(tmp_path)
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


def test_of_many_that_follow_a_dead_one_a_single_one_holds(tmp_path, monkeypatch):
    start_holder(tmp_path, "killed", json.dumps(QUICK)).communicate()
    ended, outcomes = [], []
    monkeypatch.setattr(watchdog, "end_program", lambda *how: ended.append(how))

    def follow():
        try:
            outcomes.append(run_lock.take(tmp_path))
        except UserError:
            outcomes.append(None)

    threads = [threading.Thread(target=follow) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    time.sleep(4 * QUICK["BEAT_SECONDS"])
    # Whoever was overtaken between looking and taking has noticed.
    taken = len([nonce for nonce in outcomes if nonce])
    assert taken >= 1
    assert taken - 1 <= len(ended)
    assert json.loads((tmp_path / LOCK).read_text())["nonce"] in outcomes


def test_a_lock_that_was_removed_comes_back(tmp_path):
    nonce = run_lock.take(tmp_path)
    (tmp_path / LOCK).unlink()
    run_lock.see(tmp_path, nonce, seconds=5)


def test_another_folder_is_not_the_run(tmp_path):
    nonce = run_lock.take(tmp_path / "here")
    run_lock.see(tmp_path / "here", nonce, seconds=0)
    for other in ("there", "nowhere"):
        if other == "there":
            run_lock.take(tmp_path / other)
        with pytest.raises(UserError, match=f"{other} on .* is not the folder that process 0"):
            run_lock.see(tmp_path / other, nonce, seconds=0.1)
