"""Several processes that train together: joining, deciding, failing, stopping, and ending together.

What one process decides for all (`once`) and what all do and may fail in one of them (`everywhere`) has an outcome that
all learn. It goes through the job's coordination service, which jax starts in one of the processes, not through the
devices: so it works before there is a mesh, and every wait has an end that says who has not answered, and where.

The rule: neither stands inside the other, nor does anything else that all processes take part in (programs on all
devices, saving, restoring): it would wait for processes that are not on their way there. Who breaks the rule is told so
in a single process, too.

A process that fails by itself leaves its message and its exit status with the service. The others, wherever they wait,
look there every second, say the same and end with the same status. One that is killed, or that no longer answers, is
missed by the service when its heartbeats stay out.
"""

import atexit
import contextlib
import ctypes
import dataclasses
import itertools
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, NoReturn

import jax
from jax._src import distributed  # the service's store of keys and values has no public name
from jax.experimental import multihost_utils

from mmbert_jax import watchdog
from mmbert_jax.errors import UserError, explain

# Exit status of a run that ended early and goes on when the same command is run again: EX_TEMPFAIL of sysexits.h.
RESTART = 75

_LOST = (
    "an operation that all processes take part in failed: most likely another one has ended, and its own output says"
    " why. The same command, run again, goes on from the newest checkpoint"
)
# Keys of the service's store.
_FAILURE, _READ, _STAGES = "mmbert/failure", "mmbert/failure_read", "mmbert/stage"
# Under this key the service itself keeps that one of the processes was told to stop.
_STOP = "RECEIVED_PREEMPTION_NOTICE"
# Seconds: between two looks at the store; that others have to read of a failure, or to report one, before the service
# ends with its process; that a stage that waits has when the job is told to stop.
_LOOK_SECONDS, _READ_SECONDS, _STOP_SECONDS = 1.0, 5.0, 10.0


class JobError(UserError):
    """An error that every process of the job raises at the same place, so that they can leave in order."""


class NoAnswer(RuntimeError):
    """Another process has not come to where this one waits for it."""


@dataclasses.dataclass
class _Job:
    """This process's place in a job of several.

    Attributes:
      client: of the coordination service.
      index, count: process, as the launcher numbers them, and processes.
      hosts: whether the service is in this process.
      answer_seconds: longest wait for the others.
      stages: numbers of the stages to come, the same in all processes.
      waiting: the stage in which this process waits for others, and since when by time.monotonic.
      ending: taken by the thread that ends this process, for good.
      leaving: set when the program ends in order.
    """

    client: Any
    index: int
    count: int
    hosts: bool
    answer_seconds: float
    stages: Iterator[int] = dataclasses.field(default_factory=itertools.count)
    waiting: tuple[str, float] | None = None
    ending: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    leaving: threading.Event = dataclasses.field(default_factory=threading.Event)


_job: _Job | None = None
_inside: ContextVar[str] = ContextVar("_inside", default="")


def join(
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
    heartbeat_seconds: int = 30,
    initialization_seconds: int = 300,
    shutdown_seconds: int = 120,
    answer_seconds: float = 600,
) -> None:
    """Joins the job's other processes, if there are any. To be called before anything asks for devices.

    Without arguments, jax looks for a TPU pod, Slurm, Open MPI or Kubernetes in the environment, and a process that is
    in none of them is on its own.

    Args:
      coordinator_address: host:port of process 0.
      num_processes: processes of the job; 1 never looks for others.
      process_id: from 0.
      heartbeat_seconds: a process that was not heard of for so long counts as dead, which ends all others.
      initialization_seconds: until all have joined.
      shutdown_seconds: that a process which is done waits for the others to be done.
      answer_seconds: that a process waits for another one in `once` and `everywhere`.

    Raises:
      UserError: some of the three are given and others are missing.
    """
    global _job
    if num_processes == 1:
        return
    place = (coordinator_address, num_processes, process_id)
    limits = {
        "heartbeat_timeout_seconds": heartbeat_seconds,
        "initialization_timeout": initialization_seconds + 60,  # jax's end would be an abort()
        "shutdown_timeout_seconds": shutdown_seconds,
    }
    given = any(value is not None for value in place)
    if given and None in place:
        raise UserError(
            "--coordinator_address, --num_processes and --process_id (or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES"
            f" and JAX_PROCESS_ID) belong together; given are {place}"
        )
    late = (
        f"the job's processes did not find each other within {initialization_seconds} s (--initialization_seconds):"
        " see whether all were started, and reach process 0"
    )
    with watchdog.deadline(initialization_seconds, late, RESTART):
        try:
            if given:
                jax.distributed.initialize(*place, cluster_detection_method="deactivate", **limits)
            else:
                jax.distributed.initialize(**limits)
        except ValueError as error:
            if "coordinator_address should be defined" not in str(error):  # jax found no cluster
                raise
            return
    state = distributed.global_state
    if state.num_processes == 1:
        return
    _job = _Job(
        state.client,
        state.process_id,
        state.num_processes,
        state.service is not None,
        answer_seconds,
    )
    watchdog.end_program = end
    atexit.register(_job.leaving.set)  # before jax's own, which were registered earlier
    _say_why_jax_aborts(_job)
    threading.Thread(target=_watch, args=(_job,), daemon=True).start()


def everywhere(act: Callable[[], Any], stage: str = "") -> Any:
    """Does something in every process; where it fails in one of them, it fails in all.

    Args:
      act: what concerns this process alone.
      stage: what is being done, for messages: "opening the corpus".

    Raises:
      JobError: with the message of the first process in which it failed.
      NoAnswer: another process does not come here.
    """
    together(stage or "everywhere()")
    if _job is None:
        return _apart(act, stage)
    result, failure = _attempt(act, stage)
    for process, text in enumerate(gather(failure, stage)):
        if text:
            raise JobError(f"process {process}: {text}")
    return result


def once(act: Callable[[], Any], stage: str = "") -> Any:
    """Does something in process 0 and returns its result, which must be valid JSON, in all; see `everywhere`.

    Raises:
      JobError: in all processes, where it failed in process 0.
      NoAnswer: another process does not come here.
    """
    together(stage or "once()")
    if _job is None:
        return _apart(act, stage)
    text = ""
    if jax.process_index() == 0:
        result, failure = _attempt(act, stage)
        text = json.dumps({"result": result, "failure": failure})
    # Where jax's first process is another one than the launcher's, the others' texts are empty all the same.
    outcome = json.loads(next(filter(None, gather(text, stage))))
    if outcome["failure"]:
        raise JobError(outcome["failure"])
    return outcome["result"]


def as_in_first(flag: bool) -> bool:
    """What process 0 was called with, in all processes."""
    return once(lambda: flag, "comparing clocks")


def gather(text: str, stage: str = "") -> list[str]:
    """The texts of all processes, by process.

    Raises:
      NoAnswer: another process does not come here.
    """
    together(stage or "gather()")
    if _job is None:
        return [text]
    number = next(_job.stages)
    key = f"{_STAGES}/{number}"
    stage = stage or f"stage {number}"
    client = _job.client
    client.key_value_set(f"{key}/{_job.index}", text)
    _job.waiting = (stage, time.monotonic())
    try:
        client.wait_at_barrier(key, round(1000 * _job.answer_seconds))
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        missing = sorted(set(range(_job.count)) - _by_process(key).keys())
        raise NoAnswer(
            f"{_name_processes(missing)} did not come to the stage '{stage}' within {_job.answer_seconds:g} s"
            " (--answer_seconds): look at the output there. The same command, run again, goes on from the newest"
            " checkpoint"
        ) from error
    finally:
        _job.waiting = None
    texts = _by_process(key)
    # All have passed this barrier, so all have read what the one before it was for.
    if _job.hosts and number:
        client.key_value_delete(f"{_STAGES}/{number - 1}")
    return [texts[process] for process in range(_job.count)]


def together(what: str) -> None:
    """To be called at the start of whatever all processes take part in.

    Raises:
      RuntimeError: inside of what `once` or `everywhere` does, a fault of the program.
    """
    if _inside.get():
        raise RuntimeError(
            f"{what} takes all processes, and stands inside of {_inside.get()}, which each does by itself"
        )


def watch_for_stop() -> Callable[[int], bool]:
    """Catches SIGTERM and SIGINT from now on.

    Returns:
      A function of the number of the step that has just been started, to be called at each: whether to stop after it.
      All processes get the same answer, whichever of them was signalled.
    """
    if jax.distributed.is_initialized():
        # jax has caught SIGTERM since `join`: it tells the other processes and settles on a step, in the background.
        signal.signal(signal.SIGINT, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        return multihost_utils.reached_preemption_sync_point
    asked = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.append(True))
    return lambda step: bool(asked)


def peer_is_lost(error: BaseException) -> bool:
    """Whether an error looks like that of an operation for which another process was missing."""
    if isinstance(error, TimeoutError) and error.__cause__:  # orbax says so in other words
        error = error.__cause__
    if isinstance(error, jax.errors.JaxRuntimeError):
        # Of jax's own errors these say that a program or its use of memory is at fault.
        own = ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED")
        return not str(error).startswith(own)
    # Some of what XLA reports becomes a ValueError.
    return isinstance(error, ValueError) and any(name in str(error) for name in ("Gloo ", "NCCL "))


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Ends the whole job on an error of one of its processes, instead of waiting there for the others to leave."""
    try:
        yield
    except (JobError, SystemExit):
        raise
    except BaseException as error:
        if _job is None:
            raise
        fail(error)


def fail(error: BaseException) -> NoReturn:
    """Ends this process, one of several, and with it the job, on an error."""
    # One that ended by itself has said so before its connections broke, and that may show as any error here.
    lost = peer_is_lost(error)
    if failure := _failure(_READ_SECONDS if lost else 0):
        _end_as_told(failure)
    if lost:
        end(_LOST, RESTART)
    if isinstance(error, NoAnswer):
        end(str(error), RESTART)
    text = explain(error)
    if text is None:
        traceback.print_exception(error)
    end(text or repr(error), 1 if text is None else 2)


def end(message: str, status: int) -> NoReturn:
    """Ends this process at once, and with it the job: the others say the same and end with the same status."""
    if _job is None:
        watchdog.end_at_once(message, status)
    _begin_to_end(_job)
    failure = {"process": _job.index, "status": status, "message": message}
    try:
        _within(_READ_SECONDS, lambda: _job.client.key_value_set(_FAILURE, json.dumps(failure)))
    except jax.errors.JaxRuntimeError:
        # Another one has failed already, and theirs is the job's message and status; or the service is gone.
        if first := _failure(0):
            _print(failure)
            failure = first
    _end_now(_job, failure)


def _end_as_told(failure: dict[str, Any]) -> NoReturn:
    _begin_to_end(_job)
    _end_now(_job, failure)


def _begin_to_end(job: _Job) -> None:
    if not job.ending.acquire(blocking=False):
        while True:  # another thread is about to end this process
            time.sleep(60)


def _end_now(job: _Job, failure: dict[str, Any]) -> NoReturn:
    _print(failure)
    client = job.client

    def wait_for_readers() -> None:
        client.key_value_set(f"{_READ}/{job.index}", "")
        until = time.monotonic() + _READ_SECONDS
        # The service ends with this process, and what is read from it with the service.
        while job.hosts and len(_by_process(_READ)) < job.count and time.monotonic() < until:
            time.sleep(0.1)

    with contextlib.suppress(jax.errors.JaxRuntimeError):
        _within(2 * _READ_SECONDS, wait_for_readers)
    os._exit(failure["status"])


def _print(failure: dict[str, Any]) -> None:
    print(f"error: process {failure['process']}: {failure['message']}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()


def _within(seconds: float, act: Callable[[], Any]) -> Any:
    """What `act` returns, or None after so many seconds: the service may be gone, or not answer."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append((act(), None))
        except jax.errors.JaxRuntimeError as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        return None
    result, error = outcome[0]
    if error:
        raise error
    return result


def _failure(seconds: float) -> dict[str, Any] | None:
    """What a process has failed with; waits for so long for one to say so."""
    until = time.monotonic() + seconds
    while True:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            if text := _within(_READ_SECONDS, lambda: _job.client.key_value_try_get(_FAILURE)):
                return json.loads(text)
        if time.monotonic() >= until:
            return None
        time.sleep(0.1)


def _watch(job: _Job) -> None:
    """Ends this process when another one has failed, or when it waits for others and the job is told to stop."""
    stop_seen = None
    while not job.leaving.wait(_LOOK_SECONDS):
        if text := _look(job, _FAILURE):
            _end_as_told(json.loads(text))
        waiting = job.waiting
        if stop_seen is None and waiting and _look(job, _STOP) is not None:
            stop_seen = time.monotonic()
        if stop_seen and waiting and time.monotonic() - max(stop_seen, waiting[1]) > _STOP_SECONDS:
            end(
                f"told to stop while waiting for other processes at the stage '{waiting[0]}'",
                RESTART,
            )


def _look(job: _Job, key: str) -> str | None:
    try:
        return job.client.key_value_try_get(key)
    except (
        jax.errors.JaxRuntimeError
    ):  # not there; where the service has gone, jax ends this process
        return None


def _say_why_jax_aborts(job: _Job) -> None:
    """Gives the status of a run that goes on to a process that jax ends since another one is lost.

    jax's client does so in a thread of its own, by abort(): a status that schedulers take for a crash. (It has an
    argument for a function to be called instead, which cannot be called from C++ in 0.11.)
    """

    def aborted(number: int) -> None:
        if threading.get_ident() not in (thread.ident for thread in threading.enumerate()):
            _print({"process": job.index, "message": _LOST})
            os._exit(RESTART)
        # A fault in what Python has called: abort() goes on.

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(aborted)
    libc = ctypes.CDLL(None)
    libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    libc.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    _handlers.append(handler)


_handlers: list[Any] = []  # kept alive


def _apart(act: Callable[[], Any], stage: str) -> Any:
    token = _inside.set(f"the stage '{stage}'" if stage else "once() or everywhere()")
    try:
        return act()
    finally:
        _inside.reset(token)


def _attempt(act: Callable[[], Any], stage: str) -> tuple[Any, str]:
    """(result, what went wrong or "")."""
    try:
        return _apart(act, stage), ""
    except Exception as error:
        text = explain(error)
        if text is None:
            traceback.print_exc()
        return None, text or repr(error)


def _by_process(key: str) -> dict[int, str]:
    found = _job.client.key_value_dir_get(key)
    return {int(name.rpartition("/")[2]): text for name, text in found}


def _name_processes(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
    return f"process {shown}" if len(numbers) == 1 else f"processes {shown}"
