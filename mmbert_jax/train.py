"""Trains one phase of the curriculum.

    python -m mmbert_jax.train --config configs/phase2.py --workdir runs/phase2 \
        --config.data.corpus=CORPUS --config.init_from=runs/phase1

Any field of the config can be given on the command line as `--config.x.y=value`. The same command, run again, resumes
from the newest checkpoint in the run folder and repeats, bit for bit, what an uninterrupted run would have done. In a
job of several processes, each of them runs this command; launch/ has ways to start them.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from clu import parameter_overview
from jax.sharding import Mesh
from ml_collections import ConfigDict, config_flags

from mmbert_jax import checkpoint
from mmbert_jax.batches import read_batches
from mmbert_jax.checks import check_start, check_tokenizer
from mmbert_jax.config import claim_run, validate
from mmbert_jax.data.mixture import describe
from mmbert_jax.data.pipeline import PhaseData, first_rows, open_data
from mmbert_jax.dry_run import dry_run
from mmbert_jax.errors import UserError, explain, run_main
from mmbert_jax.evaluate.heldout import by_group, evaluate, group_table
from mmbert_jax.flops import forward_flops_per_token
from mmbert_jax.goodput import Timeline, process_start, summary
from mmbert_jax.kernels import attention
from mmbert_jax.metrics import MetricsWriter, si
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.optim.schedules import learning_rate, phase_rows, phase_steps
from mmbert_jax.parallel import processes
from mmbert_jax.parallel.hardware import peak_flops
from mmbert_jax.parallel.mesh import make_mesh
from mmbert_jax.parallel.processes import everywhere, once
from mmbert_jax.parallel.sharding import local_rows
from mmbert_jax.profile import StepTrace, parse_steps
from mmbert_jax.rollback import next_row, read_stretches, roll_back, skip_bad_stretch
from mmbert_jax.run import checkpoint as checkpoint_folder
from mmbert_jax.run import checkpoints
from mmbert_jax.step import State, abstract_state, compile_train_step, init_state, phase_seed
from mmbert_jax.step_log import Record, SkippedSteps, StepLog, read

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, e.g. configs/phase1.py or configs/phase1.py:small."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Run folder: config, metrics and checkpoints.")
_DRY_RUN = flags.DEFINE_boolean(
    "dry_run",
    False,
    "Check config, data, checkpoints, disk and step; write nothing; exit with 0 or 1.",
)
_ROLLBACK = flags.DEFINE_integer(
    "rollback_to_step", None, "Go back to the checkpoint of this step; newer ones are set aside."
)
_SKIP_ROWS = flags.DEFINE_integer(
    "skip_rows", 0, "With --rollback_to_step: go on this many rows later in the data."
)
_PROFILE_STEPS = flags.DEFINE_string(
    "profile_steps", None, "FIRST:LAST, steps whose profiler trace is written into RUN/profile."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", os.environ.get("JAX_COORDINATOR_ADDRESS"), "host:port of process 0."
)
_PROCESSES = flags.DEFINE_integer(
    "num_processes", os.environ.get("JAX_NUM_PROCESSES"), "Processes of the job."
)
_PROCESS = flags.DEFINE_integer("process_id", os.environ.get("JAX_PROCESS_ID"), "From 0.")
_HEARTBEAT = flags.DEFINE_integer(
    "heartbeat_seconds", 60, "A process that is silent for so long counts as dead: the job ends."
)


def train(
    config: ConfigDict,
    workdir: Path,
    rollback: tuple[int, int] | None = None,
    *,
    began: float | None = None,
    profile_steps: tuple[int, int] | None = None,
) -> None:
    """Runs a phase to its end, from wherever its run folder says that it stands.

    Args:
      rollback: (step, rows): go back to the checkpoint of that step and on so many rows later.
      began: Unix time at which the program began, for the account of time in the run folder; None: now.
      profile_steps: first and last of the steps to trace.

    Raises:
      SystemExit: with status `processes.RESTART`; the run was interrupted or went back, and the same call goes on.
    """
    clock = Timeline(began)
    # --- config: everything that can be wrong is refused before anything is written ---
    validate(config)
    row_length, train_config = config.data.row_length, config.train
    rows, steps = phase_rows(train_config, row_length), phase_steps(train_config, row_length)
    tokens = rows * row_length

    # --- devices ---
    mesh = make_mesh(config.mesh)
    local_rows(mesh, train_config.microbatch_rows, "config.train.microbatch_rows")
    say(describe_mesh(config, mesh))

    # --- data: every row of the phase is known by its number ---
    data = everywhere(lambda: open_data(config.data, rows, phase_seed(config)))
    say(describe(data.mixture))
    check_tokenizer(config, data)
    seconds_of_a_token = time_at_peak(config, mesh, data)

    # --- state: resumed, or started from another run's checkpoint, or from scratch ---
    abstract = abstract_state(config, mesh)
    if config.init_from and not once(lambda: checkpoints(workdir).is_dir()):
        everywhere(lambda: check_start(config, data, abstract))
    once(lambda: claim_run(config, workdir))
    if rollback:
        say(once(lambda: roll_back(workdir, *rollback, train_config.microbatch_rows, rows)))
    stretches = once(lambda: read_stretches(workdir))
    manager = checkpoint.open_manager(workdir, config.checkpoint.keep)
    state, start = restore_or_start(config, mesh, manager, abstract)
    step, row = start["step"], next_row(start["row"], stretches)
    parameters = parameter_overview.count_parameters(state["params"])
    say(
        f"phase {config.phase}: {parameters:,} parameters, {si(tokens)} tokens in {steps} steps of"
        f" {train_config.batch_rows} x {row_length}, {config.mask.ratio:.0%} masked; from step {step}"
    )
    if row >= rows:
        say(f"phase {config.phase} is complete already: nothing to do")
        return

    # --- the step, compiled before the first batch is there ---
    clock.book("start_up")
    if jax.process_index() == 0:
        clock.open(workdir, step)
    train_step = compile_train_step(config, mesh)
    say(f"compiled the training step in {clock.book('compile'):.1f} s")

    # --- what goes on beside the steps ---
    trace = StepTrace(workdir, profile_steps)
    held_out = evaluate(config, mesh)
    writer = MetricsWriter(workdir, step) if jax.process_index() == 0 else None
    log = StepLog(
        writer,
        clock,
        every_steps=config.log_every_steps,
        steps=steps,
        tokens=tokens,
        tokens_done=row * row_length,
        seconds_of_a_token=seconds_of_a_token,
    )
    skipped = SkippedSteps(train_config.max_skipped_steps, start["skipped_in_a_row"])
    stop_asked, stopping = processes.watch_for_stop(), False
    saved_at = time.monotonic()
    groups: dict[str, Any] = {}

    def finish(record: Record | None) -> None:
        """Waits for a step, logs it, and goes back to a checkpoint when too many have had no finite gradient."""
        if record is None:
            return
        record = read(record)
        if record["skipped"]:
            say(f"step {record['step']} had no finite gradient and changed nothing")
        if skipped.see(record):
            close(record["step"])
            good_step, stop = record["step"] - skipped.in_a_row, record["tokens"] // row_length
            say(once(lambda: skip_bad_stretch(workdir, good_step, stop, rows)))
            sys.exit(processes.RESTART)
        if line := log.add(record):
            say(line)

    def close(step: int) -> None:
        """Waits for the last save and ends what is written into the run folder."""
        checkpoint.finish(manager)
        trace.close()
        clock.book("checkpoint")
        clock.record(step)
        clock.close()
        if writer:
            writer.close()

    # --- loop ---
    batches = read_batches(config, data, mesh, row, rows, stretches)
    dispatched: Record | None = None  # the last step, its metrics not yet read
    clock.book("start_up")
    while row < rows and not stopping:
        clock.book("step")
        batch, count = next(batches)
        # While the step before still runs, nothing waits for data.
        busy = dispatched and not dispatched["metrics"]["loss"].is_ready()
        clock.book("step" if busy else "data_wait")
        rate = learning_rate(config.optimizer, row * row_length, tokens)
        trace.before(step + 1, state)
        state, metrics = train_step(state, batch, np.int32(count), np.uint32(row), np.float32(rate))
        trace.after(step + 1, state)
        row = next_row(row + count * train_config.microbatch_rows, stretches)
        step += 1
        finish(dispatched)  # the device is at work on the step that was just dispatched
        dispatched = {"step": step, "tokens": row * row_length, "learning_rate": rate}
        dispatched["metrics"] = metrics

        last, stopping = row >= rows, stop_asked(step)
        checkpoint.check_save(manager)
        evaluating = last or is_multiple(step, config.eval.every_steps)
        saving = is_multiple(step, config.checkpoint.every_steps)
        if config.checkpoint.every_minutes and step % config.log_every_steps == 0:
            minutes = (time.monotonic() - saved_at) / 60
            saving |= processes.as_in_first(minutes >= config.checkpoint.every_minutes)
        if evaluating or saving or stopping:
            finish(dispatched)
            dispatched = None
            clock.book("step")
        if evaluating:
            results = held_out(state["params"])
            groups = by_group(results, config.eval.groups)
            if writer:
                place = {"step": step, "tokens": row * row_length}
                writer.write({**place, "held_out": results, "held_out_groups": groups})
            say(group_table(groups))
            clock.book("evaluation")
            clock.record(step)
        # Among skipped steps there is nothing new to save, and what might be gone back to has to stay.
        if (saving and not skipped.in_a_row) or last or stopping:
            meta = describe_checkpoint(config, data, step, row, start["history"], groups)
            meta |= {"skipped_in_a_row": skipped.in_a_row, "skipped_rows": stretches}
            saved_at = time.monotonic()
            checkpoint.save(manager, step, state, meta)
            clock.book("checkpoint")
            clock.record(step)

    # --- end ---
    close(step)
    if jax.process_index() == 0:
        say(summary(workdir))
    if row < rows:
        say(f"interrupted after step {step}, which is saved: the same command, run again, goes on")
        sys.exit(processes.RESTART)
    say(
        f"phase {config.phase} is complete: {si(tokens)} tokens, checkpoint {checkpoint_folder(workdir, step)}"
    )


def describe_mesh(config: ConfigDict, mesh: Mesh) -> str:
    """The devices, and which implementation of attention they run."""
    model = ModelConfig.from_config(config.model)
    shape = (config.train.microbatch_rows, config.data.row_length, model.num_heads, model.head_dim)
    windows = (None, model.attention_window // 2)
    return (
        f"mesh {dict(mesh.shape)} on {mesh.size} x {mesh.devices.flat[0].device_kind}, {jax.process_count()} processes"
        f"\nattention: {attention.describe(mesh, shape, config.dtype, windows)}"
    )


def time_at_peak(config: ConfigDict, mesh: Mesh, data: PhaseData) -> float | None:
    """Seconds of a token's FLOPs, forward and backward, on all devices at their peak; None where that is unknown."""
    peak = peak_flops(mesh.devices.flat[0].device_kind)
    if not peak:
        return None
    # The lengths of documents decide what attention costs.
    sample = first_rows(data, 64)["segment_ids"]
    model = ModelConfig.from_config(config.model)
    flops = {
        part: 3 * x for part, x in forward_flops_per_token(model, config.mask.ratio, sample).items()
    }
    parts = ", ".join(f"{part} {x / 1e6:.1f}" for part, x in flops.items())
    say(
        f"{sum(flops.values()) / 1e6:.1f} MFLOP a token ({parts}); peak of a device {peak / 1e12:.0f} TFLOP/s"
    )
    return sum(flops.values()) / peak / mesh.size


def is_multiple(step: int, every: int) -> bool:
    """Whether something that is due every so many steps is due; 0 means never."""
    return bool(every) and step % every == 0


def restore_or_start(
    config: ConfigDict, mesh: Mesh, manager: Any, abstract: State
) -> tuple[State, dict[str, Any]]:
    """The state to go on from, and where it stands: `step`, `row`, `skipped_in_a_row` and `history`, the phases before.

    1. The run folder has a checkpoint: resume it, moments, step, row counter and all.
    2. `config.init_from` names a checkpoint: its parameters, and its moments where it has them, at row 0 of this phase.
    3. Neither: initialise from the seed.
    """
    resumed = checkpoint.restore_latest(manager, abstract)
    if resumed:
        state, meta = resumed
        say(f"resuming at step {meta['step']}, row {meta['row']}")
        return state, {"skipped_in_a_row": 0, **meta}
    new = {"step": 0, "row": 0, "skipped_in_a_row": 0, "history": []}
    if not config.init_from:
        return init_state(config, mesh), new
    state, meta = checkpoint.restore_for_phase(config.init_from, abstract)
    if "optimizer" not in state:
        say(f"{config.init_from} has no optimiser state: the moments start from zero")
        state = {"params": state["params"], "optimizer": init_state(config, mesh)["optimizer"]}
    say(f"starting from {config.init_from}, phase {meta['phase']}, step {meta['step']}")
    past = {name: meta[name] for name in ("phase", "step", "tokens")}
    return state, {**new, "history": [*meta.get("history", []), past]}


def describe_checkpoint(
    config: ConfigDict, data: PhaseData, step: int, row: int, history: list, groups: dict
) -> checkpoint.Meta:
    """What a checkpoint says of itself: enough to resume, to start a phase from it and to write a model card."""
    return {
        "phase": config.phase,
        "step": step,
        "row": row,
        "tokens": row * config.data.row_length,
        "config": config.to_dict(),
        "tokenizer": data.tokenizer,
        "languages": sorted({entry.language for entry in data.mixture.entries}),
        "history": history,
        "held_out_groups": groups,
    }


def say(text: str) -> None:
    """Prints from one process only."""
    if jax.process_index() == 0:
        print(text, flush=True)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise UserError(
            f"unexpected argument {argv[1]!r}: fields of the config are given as --config.x.y=value"
        )
    if _CONFIG.value is None or _WORKDIR.value is None:
        raise UserError("--config FILE and --workdir RUN are required")
    if _ROLLBACK.value is None and _SKIP_ROWS.value:
        raise UserError("--skip_rows needs --rollback_to_step, which says where to skip them")
    rollback = None if _ROLLBACK.value is None else (_ROLLBACK.value, _SKIP_ROWS.value)
    logging.set_verbosity(logging.WARNING)
    place = (_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    processes.join(*place, heartbeat_seconds=_HEARTBEAT.value)
    with processes.ending_together():
        if _DRY_RUN.value:
            sys.exit(0 if dry_run(_CONFIG.value, Path(_WORKDIR.value)) else 1)
        try:
            train(
                _CONFIG.value,
                Path(_WORKDIR.value),
                rollback,
                began=process_start(),
                profile_steps=parse_steps(_PROFILE_STEPS.value),
            )
        except Exception as error:
            # As in every program; here already, so that several processes say and do the same.
            if (text := explain(error)) is None:
                raise
            raise UserError(text) from error


def parse_flags(argv: list[str]) -> list[str]:
    """Parses flags; what config_flags raises for a bad override becomes an error that names it."""
    try:
        return flags.FLAGS(argv)
    except (AttributeError, KeyError, TypeError, ValueError, OSError, flags.Error) as error:
        raise UserError(
            f"{error}. Overrides stand after --config FILE, as --config.x.y=value"
        ) from error


if __name__ == "__main__":
    run_main(lambda: app.run(main, argv=sys.argv, flags_parser=parse_flags))
