"""One job at a time in a run folder, on any file system, and from any host.

RUN/run.lock says who holds the folder: host, process and a random nonce. It is made with O_EXCL, which also file
systems keep that know no flock, such as many a network's. That its holder lives shows in RUN/.run.lock.NONCE, in which
the holder counts up every few seconds. So a lock that somebody left behind can be told from one that is held:

- on the holder's own machine at once, by its process, of which nothing is left after a SIGKILL;
- from another one by the counter, which has stood still for `PATIENCE_SECONDS`.

In a bucket both are objects, and the store itself sees to it that the lock is written only where there is none, and
removed only while it is still the one that was left behind.

A holder that was stopped for so long, and whose lock has been taken meanwhile, ends when it goes on, before it writes.
"""

import contextlib
import dataclasses
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmbert_jax import buckets, watchdog
from mmbert_jax.errors import UserError
from mmbert_jax.files import naming
from mmbert_jax.goodput import process_start
from mmbert_jax.places import Place, absolute, is_remote
from mmbert_jax.run import LOCK

# Seconds between two counts; without one for how long a lock counts as left behind; that other hosts may take to see
# what one of them has written.
BEAT_SECONDS, PATIENCE_SECONDS, SIGHT_SECONDS = 4.0, 30.0, 30.0
_LOOK_SECONDS = 0.5
_ENTRIES = {"nonce", "host", "pid", "since", "started", "boot", "namespace"}
# Exit status of a holder that was taken over: another job has the run, so nobody is to start this one again.
TAKEN_OVER = 3


@dataclasses.dataclass
class _Held:
    """A lock that this process holds.

    Attributes:
      seen: by `_now`, when it was last seen to be ours.
    """

    run: Place
    nonce: str
    seen: float
    released: threading.Event = dataclasses.field(default_factory=threading.Event)
    busy: threading.Lock = dataclasses.field(default_factory=threading.Lock)


_held: list[_Held] = []


def take(run: Place) -> str:
    """Takes a run folder, which is made if need be; waits until a lock that may have been left behind shows no life.

    Returns:
      The lock's nonce, for `see`.

    Raises:
      UserError: another job holds it, which is named.
    """
    if not is_remote(run):  # where s3fs would make a bucket of a name that is wrong
        run.mkdir(parents=True, exist_ok=True)
    held = _Held(run, secrets.token_hex(8), _now())
    try:
        _write_beat(held, 0)
        while not _create(held):
            before = _read(run)
            if before and _is_alive(run, before):
                raise UserError(
                    f"{run} is in use by {_describe(before)}: wait for it to end, stop it, or choose another --workdir"
                )
            if _nonce(_read(run)) == _nonce(before):
                _set_aside(run, before, held)
    except BaseException:
        _beat_file(run, held.nonce).unlink(missing_ok=True)
        raise
    held.seen = _now()
    _held.append(held)
    threading.Thread(target=_beat, args=(held,), daemon=True).start()
    return held.nonce


@contextlib.contextmanager
def released_at_end() -> Iterator[None]:
    """Lets go, at the end of a block or of a function, of what was taken in it."""
    before = len(_held)
    try:
        yield
    finally:
        while len(_held) > before:
            _release(_held.pop())


def check() -> None:
    """To be called before something is written; ends the program if another job has taken this one's run folder."""
    for held in _held:
        if _now() - held.seen > 2 * BEAT_SECONDS:
            _see_that_it_is_ours(held)


def _release(held: _Held) -> None:
    held.released.set()
    if not held.busy.acquire(timeout=BEAT_SECONDS):
        return  # the disk does not answer
    # The disk or the store is gone: the next job sees that nobody counts.
    with contextlib.suppress(OSError, UserError):
        if is_remote(held.run):
            _remove_object(held.run, held.nonce)
        elif _nonce(_read(held.run)) == held.nonce:
            (held.run / LOCK).unlink(missing_ok=True)
        _beat_file(held.run, held.nonce).unlink(missing_ok=True)


def holder(run: Place) -> str | None:
    """Who holds a run folder, in words; None where nobody does. Takes a while where a lock may be left behind."""
    lock = _read(run)
    return _describe(lock) if lock and _is_alive(run, lock) else None


def see(run: Place, nonce: str, seconds: float | None = None) -> None:
    """Checks that `run` is the folder that was locked with `nonce`, seen from another process of the job.

    Raises:
      UserError: it is another folder, or what is written there is not seen here.
    """
    until = time.monotonic() + (SIGHT_SECONDS if seconds is None else seconds)
    while _nonce(_read(run)) != nonce:
        if time.monotonic() > until:
            raise UserError(
                f"{absolute(run)} on {socket.gethostname()} is not the folder that process 0 trains in: every process"
                " of a job must see the same run folder. Put it on a disk that all hosts share"
            )
        time.sleep(_LOOK_SECONDS)


def _create(held: _Held) -> bool:
    path = held.run / LOCK
    if is_remote(path):
        with naming(path):
            found, version = buckets.read_version(path)
            text = json.dumps({"nonce": held.nonce, **_me()})
            return found is None and buckets.write_if(path, text.encode(), version)
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    try:
        with naming(path), open(file, "w", encoding="utf-8") as lock:
            json.dump({"nonce": held.nonce, **_me()}, lock)
            lock.flush()
            os.fsync(lock.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return True


def _set_aside(run: Place, before: dict[str, Any] | None, held: _Held) -> None:
    """Takes away a lock that was left behind, and nothing else where another job has been quicker."""
    if is_remote(run):
        if _remove_object(run, _nonce(before)) and before:
            _beat_file(run, before["nonce"]).unlink(missing_ok=True)
        return
    aside = run / f".{LOCK}.{held.nonce}.aside"
    try:
        os.rename(run / LOCK, aside)
    except FileNotFoundError:
        return
    found = _read_file(aside)
    if _nonce(found) == _nonce(before):
        aside.unlink(missing_ok=True)
        if before:
            _beat_file(run, before["nonce"]).unlink(missing_ok=True)
    else:
        # The lock of one that was quicker. Should a third one be quicker still, the second sees that and ends.
        os.rename(aside, run / LOCK)


def _remove_object(run: Place, nonce: str | None) -> bool:
    """Removes a bucket's lock if it bears this nonce, None for one that says nothing; whether it did."""
    path = run / LOCK
    with naming(path):
        found, version = buckets.read_version(path)
        if found is None or _nonce(_parse(found)) != nonce:
            return False
        return buckets.write_if(path, None, version)


def _is_alive(run: Place, lock: dict[str, Any]) -> bool:
    """Whether a lock's holder lives: looks at its process where that is here, else for its counter to move."""
    if _died_here(lock):
        return False
    first = _read_beat(run, lock["nonce"])
    until = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < until:
        time.sleep(_LOOK_SECONDS)
        if _nonce(_read(run)) != lock["nonce"]:
            return False  # it was let go, or taken
        if _read_beat(run, lock["nonce"]) != first:
            return True
    return False


def _died_here(lock: dict[str, Any]) -> bool:
    """Whether the holder ran on this machine and is no more."""
    me = _me()
    here = all(me[name] and me[name] == lock.get(name) for name in ("host", "boot", "namespace"))
    return here and _start(lock["pid"]) != lock["started"]


def _beat(held: _Held) -> None:
    for count in range(1, 2**62):
        if held.released.wait(BEAT_SECONDS):
            return
        with held.busy, contextlib.suppress(OSError, UserError):
            if not held.released.is_set():
                _see_that_it_is_ours(held)
                _write_beat(held, count)


def _see_that_it_is_ours(held: _Held) -> None:
    lock = _read(held.run)
    # Where there is none, somebody removed it, or is about to take it: who comes first has it.
    if lock is None and not _create(held):
        lock = _read(held.run)
    if lock and lock["nonce"] != held.nonce:
        watchdog.end_program(
            f"this process was stopped for so long that {held.run} was taken by {_describe(lock)}. Nothing more is"
            " written here",
            TAKEN_OVER,
        )
    held.seen = _now()


def _write_beat(held: _Held, count: int) -> None:
    # The length stays, and the file too: a full disk does not make a job look dead.
    path = _beat_file(held.run, held.nonce)
    with naming(held.run):
        if is_remote(path):
            return buckets.write(path, f"{count:020}\n".encode())
        file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            os.write(file, f"{count:020}\n".encode())
            os.fsync(file)
        finally:
            os.close(file)


def _read_beat(run: Place, nonce: str) -> bytes:
    return _bytes(_beat_file(run, nonce)) or b""


def _beat_file(run: Place, nonce: str) -> Place:
    return run / f".{LOCK}.{nonce}"


def _read(run: Place) -> dict[str, Any] | None:
    return _read_file(run / LOCK)


def _read_file(path: Place) -> dict[str, Any] | None:
    """What a lock says; None where there is none, or one that is not written yet, or never will be."""
    for _ in range(4):
        data = _bytes(path)
        if data is None:
            return None
        if lock := _parse(data):
            return lock
        time.sleep(_LOOK_SECONDS)
    return None


def _bytes(path: Place) -> bytes | None:
    """What a file holds, None where there is none; by one request, since others write it meanwhile."""
    with naming(path):
        if is_remote(path):
            return buckets.read_version(path)[0]
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None


def _parse(data: bytes) -> dict[str, Any] | None:
    try:
        lock = json.loads(data)
        return lock if lock.keys() >= _ENTRIES else None
    except (ValueError, AttributeError):
        return None


def _nonce(lock: dict[str, Any] | None) -> str | None:
    return lock and lock["nonce"]


def _describe(lock: dict[str, Any]) -> str:
    return f"process {lock['pid']} on {lock['host']}, since {lock['since']}"


def _me() -> dict[str, Any]:
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "pid": pid,
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(process_start())),
        "started": _start(pid),
        "boot": _text("/proc/sys/kernel/random/boot_id"),
        "namespace": _link("/proc/self/ns/pid"),
    }


def _start(pid: int) -> int | None:
    """When a process started, in ticks since the machine did; None where there is none, or no way to know."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])  # a zombie writes no more


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def _now() -> float:
    """Seconds that go on while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
