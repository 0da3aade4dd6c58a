"""Checkpoints in orbax: written in the background, complete or absent, and explained by what they hold.

A run folder has `checkpoints/STEP/` with three items: `params`, `optimizer` (absent in merged or imported models) and
`meta`, a JSON object with the step, the row counter, the tokens seen and the whole config; and with SHA256SUMS, against
which every file is checked before anything is read.

In a job of several processes `open_manager`, `save`, `finish`, `restore` and `restore_for_phase` are for all of them
together. All else is local: what one process does alone.
"""

import asyncio
import contextlib
import json
import logging
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict

from mmbert_jax import run_lock
from mmbert_jax.checksums import announce_sums, damage, write_sums
from mmbert_jax.errors import UserError, brief
from mmbert_jax.files import atomic_folder, move_folder, remove_folder
from mmbert_jax.orbax_stores import let_orbax_reach_stores
from mmbert_jax.parallel.processes import fail, peer_is_lost, together
from mmbert_jax.places import Place, absolute, can_rename, place
from mmbert_jax.run import AWAITING_SUMS, SUMS, checkpoint, checkpoints, complete_steps, locate

# What fails in orbax's threads is raised here, too, and reported once; orbax logs it with a traceback for each thread,
# and asyncio for each of orbax's tasks that nobody waits for any more.
logging.getLogger("absl").addFilter(
    lambda record: record.levelno < logging.ERROR or "orbax" not in record.pathname
)
logging.getLogger("asyncio").addFilter(
    lambda record: (
        "never retrieved" not in record.getMessage() or "orbax" not in record.getMessage()
    )
)

let_orbax_reach_stores()

Meta = dict[str, Any]
Tree = dict[str, Any]


def clear(run: Place) -> None:
    """Removes what a killed save left behind."""
    for leftover in _partial_saves(checkpoints(run)):
        print(f"removing {leftover}: a save that was killed before it was complete", flush=True)
        remove_folder(leftover, AWAITING_SUMS)


def open_manager(
    run: Place, keep: int, keep_every: int = 0, timeout_seconds: float = 3600
) -> ocp.CheckpointManager:
    """Opens a run's checkpoints, after `clear`.

    Args:
      keep: how many are kept, the newest ones.
      keep_every: besides, those of steps that are multiples of it, for good; 0: none.
      timeout_seconds: that the parts of a save, which are written by several processes, wait for each other.
    """
    together("opening the checkpoints")
    folder = checkpoints(absolute(run))
    options = ocp.CheckpointManagerOptions(
        enable_async_checkpointing=True,
        async_options=ocp.AsyncOptions(
            timeout_secs=math.ceil(timeout_seconds), barrier_sync_fn=_barrier(folder)
        ),
        temporary_path_class=_renamed(keep, keep_every)
        if can_rename(folder)
        else _in_place(keep, keep_every),
    )
    return ocp.CheckpointManager(folder, options=options)


def _barrier(folder: Place) -> ocp.multihost.BarrierSyncFn:
    """Where orbax's threads wait for those of the other processes.

    A save that fails in one process comes here, too, with its error on the way: orbax raises it when all have come, but
    the others wait until all have written their parts. So the error ends the job here.
    """
    wait = ocp.multihost.get_barrier_sync_fn()

    def wait_or_fail(*, key: str, timeout_ms: int) -> None:
        if jax.process_count() > 1 and isinstance(error := sys.exception(), Exception):
            fail(error if peer_is_lost(error) else _failed(folder, error))
        wait(key=key, timeout_ms=timeout_ms)

    return wait_or_fail


def _partial_saves(folder: Place) -> list[Place]:
    if not folder.is_dir():
        return []
    complete = {str(step) for step in complete_steps(folder.parent)}
    return sorted(
        path
        for path in folder.iterdir()
        if ocp.utils.TMP_DIR_SUFFIX in path.name
        or (path.name.isdigit() and path.name not in complete)
    )


def _remove_old(folder: Place, keep: int, keep_every: int) -> None:
    """Removes the checkpoints that are not kept: orbax would not see to it that a half removed one is known as such."""
    for step in complete_steps(folder.parent)[keep:]:
        if not keep_every or step % keep_every:
            remove_folder(folder / str(step), AWAITING_SUMS)


def _renamed(keep: int, keep_every: int) -> type[ocp.path.atomicity.AtomicRenameTemporaryPath]:
    """A folder that takes its final name when all its files are written, and then gets its sums.

    Orbax writes its last file and renames in one call, so the sums come after it; older checkpoints go only afterwards.
    A save that is killed between the two leaves the mark of `announce_sums`, and counts as one that was never complete.
    """

    class Renamed(ocp.path.atomicity.AtomicRenameTemporaryPath):
        async def finalize(self) -> None:
            folder = place(self.get_final())
            if not folder.name.isdigit():  # one of a checkpoint's items
                return await super().finalize()
            await asyncio.to_thread(run_lock.check)
            await asyncio.to_thread(announce_sums, place(self.get()))
            await super().finalize()
            await asyncio.to_thread(write_sums, folder)
            await asyncio.to_thread(_remove_old, folder.parent, keep, keep_every)

    return Renamed


def _in_place(keep: int, keep_every: int) -> type[ocp.path.atomicity.CommitFileTemporaryPath]:
    """The same where nothing is renamed: a folder of a bucket, whose last objects are orbax's mark and the sums.

    Until they are there, the mark of `announce_sums` is; what is killed before has either that mark or none of them.
    """

    class InPlace(ocp.path.atomicity.CommitFileTemporaryPath):
        async def create(self) -> Place:
            created = await super().create()
            if self.get_final().name.isdigit():
                await asyncio.to_thread(announce_sums, place(self.get_final()))
            return created

        async def finalize(self) -> None:
            folder = place(self.get_final())
            if not folder.name.isdigit():
                return await super().finalize()
            await asyncio.to_thread(run_lock.check)
            await super().finalize()
            await asyncio.to_thread(write_sums, folder)
            await asyncio.to_thread(_remove_old, folder.parent, keep, keep_every)

    return InPlace


def save(manager: ocp.CheckpointManager, step: int, state: Tree, meta: Meta) -> None:
    """Starts saving; returns as soon as the arrays are copied out. The next save waits for this one."""
    together("saving a checkpoint")
    args = ocp.args.Composite(
        **{name: ocp.args.StandardSave(tree) for name, tree in state.items()},
        meta=ocp.args.JsonSave(meta),
    )
    with _saying_where(manager):
        saving = manager.save(step, args=args)
    # Orbax answers False, without a word, when it decides not to save: a step that is there already, for one.
    if not saving:
        raise UserError(
            f"{manager.directory}: step {step} was not saved; is another run writing to this folder?"
        )


def check_save(manager: ocp.CheckpointManager) -> None:
    """Raises UserError if a save in the background has failed; returns at once."""
    with _saying_where(manager):
        manager.check_for_errors()


def finish(manager: ocp.CheckpointManager) -> None:
    """Waits for the last save and closes the manager; UserError if the save fails."""
    together("finishing a save")
    with _saying_where(manager):
        manager.wait_until_finished()
    manager.close()


@contextlib.contextmanager
def _saying_where(manager: ocp.CheckpointManager) -> Iterator[None]:
    """Turns what orbax and tensorstore raise when they cannot write, of several types, into a UserError."""
    try:
        yield
    except Exception as error:
        if peer_is_lost(error):
            raise
        raise _failed(manager.directory, error) from error


def _failed(folder: Place, error: Exception) -> UserError:
    reason = brief(error)
    return UserError(
        f"saving to {folder} failed: {reason}. Checkpoints that were complete are as they were; see to the disk or"
        " the bucket, then run the same command again"
    )


def newest_intact(run: Place) -> int | None:
    """The step of a run's newest undamaged checkpoint; None where there is none.

    A damaged one is named and set aside, and the one before it is tried.

    Raises:
      UserError: there are checkpoints, and all of them are damaged.
    """
    steps = complete_steps(run)
    newest = next((step for step in steps if _intact(checkpoint(run, step))), None)
    if newest is None and steps:
        raise UserError(
            f"{checkpoints(run)}: all checkpoints, {steps}, are damaged; they are kept there as damaged-STEP."
            " Start in another folder, or put a copy of one of them in its place"
        )
    return newest


def _intact(folder: Place) -> bool:
    """Checks a checkpoint's sums; names one that is damaged and sets it aside."""
    found = damage(folder)
    if found:
        aside = folder.with_name(f"damaged-{folder.name}")
        if aside.exists():
            remove_folder(aside, AWAITING_SUMS)
        move_folder(folder, aside, AWAITING_SUMS)
        print(
            f"warning: checkpoint {folder} is damaged: {found}. It is now {aside.name}; trying the one before",
            flush=True,
        )
    return not found


def restore(folder: Place, abstract: Tree) -> tuple[Tree, Meta]:
    """A checkpoint that was found undamaged, laid out as `abstract` says."""
    return _restore(absolute(folder), abstract), _read_meta(folder)


def check_fits(path: str | Place, params: Tree) -> Meta:
    """Checks that a checkpoint holds parameters of these shapes; returns its meta.

    Raises:
      UserError: there is no checkpoint, it is damaged, or it holds a model of another shape.
    """
    folder = locate(path)
    _check_sums(folder)
    _check_shapes(folder, params)
    return _read_meta(folder)


def restore_for_phase(path: str | Place, abstract: Tree) -> tuple[Tree, Meta]:
    """What a new phase starts from: parameters, and the optimiser's state where the checkpoint has one.

    Args:
      path: see `restore_params`; a checkpoint of which `check_fits` had nothing to say.
    """
    folder = locate(path)
    return restore(
        folder, {name: tree for name, tree in abstract.items() if (folder / name).is_dir()}
    )


def restore_params(path: str | Place) -> tuple[Tree, Meta]:
    """Parameters as a nested dict of float32 NumPy arrays, and the checkpoint's meta.

    Args:
      path: a run folder (its newest checkpoint) or one checkpoint in it.

    Raises:
      UserError: there is no checkpoint there, or it is damaged.
    """
    folder = locate(path)
    _check_sums(folder)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), _stored(folder))
    how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
    args = ocp.args.PyTreeRestore(item=shapes, restore_args=how)
    params = ocp.PyTreeCheckpointHandler().restore(folder / "params", args=args)
    return params, _read_meta(folder)


def open_params(
    path: str | Place,
) -> tuple[dict[str, tuple[int, ...]], Callable[[str], np.ndarray], Meta]:
    """A checkpoint's parameters, to be read one at a time.

    Returns:
      Shapes by the parameter's path ("layers/3/attn/wqkv"), a function from such a path to that parameter as a float32
      NumPy array, and the checkpoint's meta.

    Raises:
      UserError: there is no checkpoint there, or it is damaged.
    """
    folder = locate(path)
    _check_sums(folder)
    stored = flatten_dict(_stored(folder), sep="/")
    handler = ocp.PyTreeCheckpointHandler()

    def read(name: str) -> np.ndarray:
        item = unflatten_dict({name: jax.ShapeDtypeStruct(stored[name].shape, np.float32)}, sep="/")
        how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
        args = ocp.args.PyTreeRestore(item=item, restore_args=how, partial_restore=True)
        return flatten_dict(handler.restore(folder / "params", args=args), sep="/")[name]

    return {name: x.shape for name, x in stored.items()}, read, _read_meta(folder)


def read_meta(path: str | Place) -> Meta:
    """The meta of a run folder's newest checkpoint, or of one checkpoint."""
    return _read_meta(locate(path))


def save_params(path: str | Place, params: Tree, meta: Meta) -> None:
    """Writes a run folder with one checkpoint, at `meta["step"]`, without an optimiser's state; whole, or not at all.

    Raises:
      UserError: the folder holds something already, or could not be written.
    """
    with atomic_folder(path, last=SUMS) as run:
        write_params(run, params, meta)


def write_params(run: Place, params: Tree, meta: Meta) -> None:
    """The same into a folder that the caller makes, which takes its name when more than this lies in it."""
    with open_manager(run, keep=1) as manager:
        save(manager, meta["step"], {"params": params}, meta)
        with _saying_where(manager):
            manager.wait_until_finished()


def _stored(folder: Place) -> Tree:
    """Shapes and dtypes of a checkpoint's parameters."""
    return ocp.StandardCheckpointHandler().metadata(folder / "params").tree


def _restore(folder: Place, abstract: Tree) -> Tree:
    together("restoring a checkpoint")
    with ocp.StandardCheckpointer() as checkpointer:
        return {name: checkpointer.restore(folder / name, tree) for name, tree in abstract.items()}


def _check_sums(folder: Place) -> None:
    if found := damage(folder):
        raise UserError(
            f"checkpoint {folder} is damaged: {found}. Copy it again, or name another one"
        )


def _read_meta(folder: Place) -> Meta:
    return json.loads((folder / "meta" / "metadata").read_bytes())


def _check_shapes(folder: Place, wanted: Tree) -> None:
    def shapes(tree):
        return {
            jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(tree)
        }

    stored, wanted = shapes(_stored(folder)), shapes(wanted)
    for name in sorted(stored.keys() | wanted.keys()):
        if stored.get(name) != wanted.get(name):
            raise UserError(
                f"{folder} does not fit config.model: parameter {name} has shape {stored.get(name)} there and"
                f" {wanted.get(name)} here"
            )
