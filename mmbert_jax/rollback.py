"""Going back to an earlier checkpoint and on behind the rows that spoilt a run.

The run folder's `skipped_rows.json` lists stretches of global rows that the run leaves out; a step that would start
inside one starts behind it. So the row counter stays what it was, a position in the order of the data, and any later
resume takes the same steps. What is skipped counts as done: the learning rate and the end of the phase stay where they
were.
"""

import json
from collections.abc import Sequence
from typing import Any

from mmbert_jax.checkpoint import read_meta
from mmbert_jax.errors import UserError
from mmbert_jax.files import move_folder, write_json
from mmbert_jax.metrics import set_aside
from mmbert_jax.places import Place
from mmbert_jax.run import AWAITING_SUMS, SKIPPED_ROWS, checkpoint, complete_steps, list_checkpoints

# Stretches that are skipped from one checkpoint on before the run gives up.
MAX_TRIES = 3
_NOT_FINITE, _BY_HAND = "no finite gradients", "by hand"

# {"step": checkpoint that the run went back to, "first", "stop": the rows, "reason"; by hand, "skip_rows" as asked for}
Stretch = dict[str, Any]


def read_stretches(run: Place) -> list[Stretch]:
    """The stretches of rows that a run leaves out, in the order in which they were noted."""
    path = run / SKIPPED_ROWS
    if not path.exists():
        return []
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:  # also for bytes that are not UTF-8
        raise UserError(
            f"{path}: damaged ({error}); write it again by hand, or remove it"
        ) from None


def next_row(row: int, stretches: Sequence[Stretch]) -> int:
    """`row`, or the first row after it that is in no stretch."""
    while inside := [s["stop"] for s in stretches if s["first"] <= row < s["stop"]]:
        row = max(inside)
    return row


def skip_bad_stretch(run: Place, good_step: int, stop: int, rows: int) -> str:
    """After too many steps in a row without a finite gradient: goes back to the newest checkpoint before them.

    Args:
      good_step: the last step before them.
      stop: the row after them.
      rows: rows of the phase.

    Returns:
      What was done, in a sentence.

    Raises:
      UserError: there is no such checkpoint, or skipping rows from there has been tried often enough.
    """
    what = f"steps {good_step + 1} and after, up to row {stop}, had no finite gradients"
    step = next((step for step in complete_steps(run) if step <= good_step), None)
    if step is None:
        raise UserError(
            f"{run}: {what}, and there is no checkpoint from before: look at config.optimizer and at the data"
        )
    tried = [s for s in read_stretches(run) if s["step"] == step and s["reason"] == _NOT_FINITE]
    if len(tried) >= MAX_TRIES:
        raise UserError(
            f"{run}: {what}. The run has gone back to step {step} and skipped rows {MAX_TRIES} times without getting to"
            " a new checkpoint, so the rows are not the reason: go back further, with --rollback_to_step, or start"
            " again with a lower config.optimizer.peak_lr"
        )
    return f"{what}: {_go_back(run, step, stop, rows, _NOT_FINITE)}"


def roll_back(run: Place, step: int, skip_rows: int, microbatch_rows: int, rows: int) -> str:
    """Goes back to the checkpoint at `step` and on `skip_rows` rows later.

    Asked for again, as a restarted job does, it changes nothing, be that checkpoint there still or not.

    Args:
      microbatch_rows: to these, earlier versions rounded up what they skipped.

    Returns:
      What was done, in a sentence.

    Raises:
      UserError: there is no such checkpoint, or no row would be left.
    """
    if done := _done_before(read_stretches(run), step, skip_rows, microbatch_rows):
        return f"went back to step {step} before, skipping rows {done['first']} to {done['stop']}: nothing to do"
    stop = _row_of(run, step) + skip_rows
    return _go_back(run, step, stop, rows, _BY_HAND, skip_rows=skip_rows)


def _done_before(
    stretches: Sequence[Stretch], step: int, skip_rows: int, microbatch_rows: int
) -> Stretch | None:
    """The stretch that the same request noted, unless the run has gone back further since."""
    for stretch in reversed(stretches):
        if stretch["step"] < step:
            return None
        if stretch["step"] == step and stretch["reason"] == _BY_HAND:
            rounded = -(-skip_rows // microbatch_rows) * microbatch_rows
            asked = skip_rows if "skip_rows" in stretch else rounded
            if stretch["stop"] - stretch["first"] == asked:
                return stretch
    return None


def _row_of(run: Place, step: int) -> int:
    folder = checkpoint(run, step)
    if not folder.is_dir():
        there = [int(path.name) for path in list_checkpoints(run)]
        raise UserError(f"{run} has no checkpoint at step {step} to go back to; there are {there}")
    return read_meta(folder)["row"]


def _go_back(run: Place, step: int, stop: int, rows: int, reason: str, **note: int) -> str:
    first = _row_of(run, step)
    if stop >= rows:
        raise UserError(
            f"{run}: of the phase's {rows} rows none is left when rows {first} to {stop} are skipped"
        )
    # Checkpoints first, the newest one first: whoever is killed here left a run that goes on from one of them.
    newer = [path for path in reversed(list_checkpoints(run)) if int(path.name) > step]
    for path in newer:
        aside = _free_name(path.with_name(f"rolled-back-{path.name}"))
        move_folder(path, aside, AWAITING_SUMS)
    set_aside(run, step, f"rolled back: {reason}")
    stretch = {"step": step, "first": first, "stop": stop, "reason": reason, **note}
    write_json(run / SKIPPED_ROWS, [*read_stretches(run), stretch])
    aside = f"; set aside {len(newer)} newer checkpoints as rolled-back-STEP" if newer else ""
    return f"back to step {step}, skipping rows {first} to {stop}{aside}"


def _free_name(path: Place) -> Place:
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}.{number}")
    return free
