"""The run folder: where its parts lie, which of its checkpoints are complete, and what a checkpoint argument names.

RUN/config.json  metrics.jsonl  metrics_set_aside.jsonl  timeline.jsonl  skipped_rows.json  events.*  run.lock
    checkpoints/STEP/
"""

from typing import Any

from mmbert_jax.errors import UserError
from mmbert_jax.files import check_uploaded, read_json, visible
from mmbert_jax.places import Place, absolute, can_rename, place

CONFIG, METRICS, TIMELINE, SKIPPED_ROWS = (
    "config.json",
    "metrics.jsonl",
    "timeline.jsonl",
    "skipped_rows.json",
)
# Who holds the folder, see run_lock.py.
LOCK = "run.lock"
# Lines of metrics.jsonl that belong to steps behind which the run has gone back.
METRICS_SET_ASIDE = "metrics_set_aside.jsonl"
_CHECKPOINTS = "checkpoints"
# Orbax's own last file.
COMMITTED = "commit_success.txt"
# The last file of a checkpoint, and what stands there while it is still to be written.
SUMS, AWAITING_SUMS = "SHA256SUMS", ".SHA256SUMS"


def checkpoints(run: Place) -> Place:
    """The folder of a run's checkpoints."""
    return run / _CHECKPOINTS


def checkpoint(run: Place, step: int) -> Place:
    return checkpoints(run) / str(step)


def is_run(path: str | Place) -> bool:
    """Whether a checkpoint argument names a run folder or a checkpoint in one."""
    return checkpoints(run_folder(path)).is_dir()


def is_free(run: Place) -> bool:
    """Whether nothing stands in a folder's way of becoming a run: not there, or nothing but a lock and hidden files."""
    return not run.exists() or all(LOCK in path.name for path in visible(run))


def run_folder(path: str | Place) -> Place:
    """The run folder of a checkpoint argument."""
    path = place(path)
    return path.parent.parent if path.parent.name == _CHECKPOINTS else path


def complete_steps(run: Place) -> list[int]:
    """Steps whose save was complete, newest first, whether damaged since or not.

    Orbax's own list leaves out some that are damaged, without a word.
    """
    folder = checkpoints(run)
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted((int(x) for x in names if x.isdigit() and _is_complete(folder / x)), reverse=True)


def _is_complete(folder: Place) -> bool:
    """Whether a checkpoint's save came to its end.

    A folder that is renamed has its name only then. In a bucket it ends with two objects, of which one may be missing
    since, which is damage.
    """
    if (folder / AWAITING_SUMS).exists():
        return False
    return can_rename(folder) or any((folder / name).exists() for name in (SUMS, COMMITTED))


def locate(path: str | Place) -> Place:
    """The folder of the checkpoint that a checkpoint argument names: a run's newest, or itself.

    Raises:
      UserError: there is none.
    """
    path = absolute(path)
    run = run_folder(path)
    check_uploaded(run)
    steps = complete_steps(run)
    if not steps:
        raise UserError(
            f"no checkpoint at {path}: name a run folder (with {_CHECKPOINTS}/) or one checkpoint in it"
        )
    if path == run:
        return checkpoint(run, steps[0])
    if path.name not in map(str, steps):
        raise UserError(f"no complete checkpoint at {path}; there are {steps[::-1]}")
    return path


def list_checkpoints(path: str | Place) -> list[Place]:
    """Every complete checkpoint of a run folder, by step; of a single checkpoint, that one.

    Raises:
      UserError: there is no checkpoint there.
    """
    newest = locate(path)
    if absolute(path) == newest:
        return [newest]
    run = run_folder(newest)
    return [checkpoint(run, step) for step in reversed(complete_steps(run))]


def read_config(run: Place) -> dict[str, Any]:
    """The resolved config of a run."""
    path = run / CONFIG
    if not path.is_file():
        raise UserError(f"{path} is missing: {run} is not the folder of a run")
    return read_json(path)
