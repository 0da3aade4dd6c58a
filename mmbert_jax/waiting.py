"""How long a run waits for its steps, its saves and its data, by its config; what takes longer ends it in one line."""

import contextlib

from ml_collections import ConfigDict

from mmbert_jax.parallel.processes import RESTART
from mmbert_jax.watchdog import deadline

Deadline = contextlib.AbstractContextManager[None]


def step_in_time(config: ConfigDict, what: str = "a step") -> Deadline:
    """Ends the program when a step is not done in time: another process, or a device, does not answer."""
    return _in_time(
        config, "train", f"{what} took longer than", "a process, its device or its disk"
    )


def saves_in_time(config: ConfigDict, what: str) -> Deadline:
    """Ends the program when a save, or what is to be read of one, is not done in time."""
    who = "a process, its device or its disk"
    return _in_time(config, "checkpoint", f"{what} took longer than", who)


def data_in_time(config: ConfigDict, what: str = "batch") -> Deadline:
    """Ends the program when data do not come in time."""
    return _in_time(config, "data", f"no {what} came within", f"what holds {config.data.corpus}")


def _in_time(config: ConfigDict, part: str, took: str, who: str) -> Deadline:
    minutes = config[part].stall_minutes
    message = (
        f"{took} {minutes:g} minutes (config.{part}.stall_minutes): {who} does not answer. The same command, run again,"
        " goes on from the newest checkpoint"
    )
    return deadline(60 * minutes, message, RESTART)
