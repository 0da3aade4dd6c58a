"""Several processes that train together: joining, doing something once for all, stopping, and ending together.

A process that leaves alone would keep the others waiting in their next collective operation. So what one process does
for all (`once`) and what may fail in one of them (`everywhere`) has an outcome that all learn; what nobody could
foresee ends the process on the spot, which the others notice by the lost connection or, at the latest, by the missing
heartbeat.
"""

import contextlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mmbert_jax.errors import UserError

# Exit status of a run that ended early and goes on when the same command is run again: EX_TEMPFAIL of sysexits.h.
RESTART = 75


class JobError(UserError):
    """An error that every process of the job raises at the same place, so that they can leave in order."""


def join(
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
    heartbeat_seconds: int,
) -> None:
    """Joins the job's other processes, if there are any. To be called before anything asks for devices.

    Without arguments, jax looks for a TPU pod, Slurm, Open MPI or Kubernetes in the environment, and a process that is
    in none of them is on its own.

    Args:
      coordinator_address: host:port of process 0.
      num_processes: processes of the job; 1 never looks for others.
      process_id: from 0.
      heartbeat_seconds: a process that was not heard of for so long counts as dead, which ends all others.

    Raises:
      UserError: some of the three are given and others are missing.
    """
    if num_processes == 1:
        return
    place = (coordinator_address, num_processes, process_id)
    if any(value is not None for value in place):
        if None in place:
            raise UserError(
                "--coordinator_address, --num_processes and --process_id (or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES"
                f" and JAX_PROCESS_ID) belong together; given are {place}"
            )
        jax.distributed.initialize(
            *place,
            cluster_detection_method="deactivate",
            heartbeat_timeout_seconds=heartbeat_seconds,
        )
        return
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat_seconds)
    except ValueError as error:
        if "coordinator_address should be defined" not in str(error):  # jax found no cluster
            raise


def everywhere(act: Callable[[], Any]) -> Any:
    """Does something in every process; where it fails in one of them, it fails in all.

    Raises:
      JobError: with the message of the first process in which it failed.
    """
    if jax.process_count() == 1:
        return act()
    result, failure = _attempt(act)
    for process, text in enumerate(gather(failure)):
        if text:
            raise JobError(f"process {process}: {text}")
    return result


def once(act: Callable[[], Any]) -> Any:
    """Does something in process 0 and returns its result, which must be valid JSON, in all.

    Raises:
      JobError: in all processes, where it failed in process 0.
    """
    if jax.process_count() == 1:
        return act()
    result, failure = _attempt(act) if jax.process_index() == 0 else (None, "")
    outcome = json.loads(gather(json.dumps({"result": result, "failure": failure}))[0])
    if outcome["failure"]:
        raise JobError(outcome["failure"])
    return outcome["result"]


def as_in_first(flag: bool) -> bool:
    """What process 0 was called with, in all processes."""
    return bool(multihost_utils.broadcast_one_to_all(np.int32(flag)))


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


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Ends one of several processes at once on an error of its own, instead of waiting for the others to leave."""
    try:
        yield
    except (JobError, SystemExit):
        raise
    except BaseException as error:
        if not jax.distributed.is_initialized():
            raise
        status = 2 if isinstance(error, UserError) else 1
        if status == 1:
            traceback.print_exc()
        if _peer_is_lost(error):
            status = RESTART
            error = (
                "an operation that all processes take part in failed: most likely another one has ended, and its own"
                " output says why. The same command, run again, goes on from the newest checkpoint"
            )
        print(f"error: process {jax.process_index()}: {error}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _peer_is_lost(error: BaseException) -> bool:
    # Of jax's own errors these say that a program or its use of memory is at fault.
    own = ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED")
    return isinstance(error, jax.errors.JaxRuntimeError) and not str(error).startswith(own)


def _attempt(act: Callable[[], Any]) -> tuple[Any, str]:
    """(result, what went wrong or "")."""
    try:
        return act(), ""
    except UserError as error:
        return None, str(error)
    except Exception as error:
        traceback.print_exc()
        return None, repr(error)


def gather(text: str) -> list[str]:
    """The texts of all processes, by process."""
    data = np.frombuffer(text.encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(data)))
    padded = np.zeros(max(int(lengths.max()), 1), np.uint8)
    padded[: len(data)] = data
    rows = multihost_utils.process_allgather(padded)
    return [bytes(row[:n]).decode() for row, n in zip(rows, lengths.tolist(), strict=True)]
