"""Trains one phase of the curriculum.

    python -m mmbert_jax.train --config configs/phase2.py

Any field of the config can be given on the command line as `--config.x.y=value`, and the run folder as `--workdir RUN`.
The same command, run again, resumes from the newest checkpoint in the run folder and repeats, bit for bit, what an
uninterrupted run would have done. In a job of several processes, each of them runs this command; launch/ has ways to
start them.
"""

import os
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from clu import parameter_overview
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mmbert_jax import checkpoint, run_lock
from mmbert_jax.agreement import check_agreement, job_account
from mmbert_jax.batches import open_phase, read_batches
from mmbert_jax.checks import check_resume, check_start, check_tokenizer
from mmbert_jax.checksums import sha256
from mmbert_jax.config import check_run, claim_run, complete, validate
from mmbert_jax.config_file import read, split_overrides
from mmbert_jax.data.mixture import describe
from mmbert_jax.data.pipeline import PhaseData
from mmbert_jax.dry_run import dry_run
from mmbert_jax.errors import UserError, run_main
from mmbert_jax.evaluate.heldout import Results, by_group, evaluate, group_table
from mmbert_jax.fingerprint import fingerprint
from mmbert_jax.goodput import Timeline, process_start, summary
from mmbert_jax.machine import describe_mesh, time_at_peak
from mmbert_jax.metrics import MetricsWriter, si
from mmbert_jax.model.row_keys import in_words
from mmbert_jax.optim.schedules import learning_rate, phase_rows, phase_steps
from mmbert_jax.optimizer import why_new_moments
from mmbert_jax.parallel import processes
from mmbert_jax.parallel.mesh import make_mesh
from mmbert_jax.parallel.processes import everywhere, once
from mmbert_jax.parallel.sharding import local_rows
from mmbert_jax.places import Place, place
from mmbert_jax.profile import StepTrace, parse_steps
from mmbert_jax.report.runs import step_groups
from mmbert_jax.rollback import Stretch, next_row, read_stretches, roll_back, skip_bad_stretch
from mmbert_jax.run import SUMS, complete_steps, locate, run_folder
from mmbert_jax.run import checkpoint as checkpoint_folder
from mmbert_jax.step import State, abstract_state, compile_train_step, init_state, phase_seed
from mmbert_jax.step_log import Record, SkippedSteps, StepLog
from mmbert_jax.step_log import read as read_record
from mmbert_jax.waiting import saves_in_time, step_in_time

_CONFIG = flags.DEFINE_string(
    "config", None, "Config file, e.g. configs/phase1.py or configs/phase1.py:small."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Run folder: config, metrics and checkpoints. Default: config.workdir."
)
_NEWEST_STEP = flags.DEFINE_boolean(
    "newest_step", False, "Print the step of the run's newest checkpoint, -1 for none, and end."
)
_DRY_RUN = flags.DEFINE_boolean(
    "dry_run",
    False,
    "Check config, data, checkpoints, disk and step; write nothing; exit with 0 or 1.",
)
_ROLLBACK = flags.DEFINE_integer(
    "rollback_to_step", None, "Go back to the checkpoint of this step; newer ones are set aside."
)
_SKIP_ROWS = flags.DEFINE_integer(
    "skip_rows",
    0,
    "With --rollback_to_step: go on this many rows later in the data.",
    lower_bound=0,
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
    "heartbeat_seconds", 30, "A process that is silent for so long counts as dead: the job ends."
)
_INITIALIZATION = flags.DEFINE_integer(
    "initialization_seconds", 300, "Longest wait until all processes have joined the job."
)
_SHUTDOWN = flags.DEFINE_integer(
    "shutdown_seconds", 120, "Longest wait of a process that is done for the others to be done."
)
_ANSWER = flags.DEFINE_integer(
    "answer_seconds", 600, "Longest wait for another process where all decide something together."
)


@run_lock.released_at_end()
def train(
    config: ConfigDict,
    workdir: Place,
    rollback: tuple[int, int] | None = None,
    *,
    began: float | None = None,
    profile_steps: tuple[int, int] | None = None,
) -> None:
    """Runs a phase to its end, from wherever its run folder says that it stands.

    Args:
      config: need not be complete.
      rollback: (step, rows): go back to the checkpoint of that step and on so many rows later.
      began: Unix time at which the program began, for the account of time in the run folder; None: now.
      profile_steps: first and last of the steps to trace.

    Raises:
      SystemExit: with status `processes.RESTART`; the run was interrupted or went back, and the same call goes on.
    """
    clock = Timeline(began)
    # --- the job: processes that have not the same to go by would wait for each other, or train nonsense together ---
    check_agreement(job_account(config, rollback=rollback))

    # --- config: everything that can be wrong is refused before anything is written ---
    config = complete(config, workdir)
    validate(config)
    for line in once(lambda: check_run(config, workdir), "looking at the run folder"):
        say(line)
    row_length, train_config = config.data.row_length, config.train
    rows, steps = phase_rows(train_config, row_length), phase_steps(train_config, row_length)
    tokens = rows * row_length

    # --- devices ---
    mesh = make_mesh(config.mesh)
    local_rows(mesh, train_config.microbatch_rows, "config.train.microbatch_rows")
    say(describe_mesh(config, mesh))

    # --- data: every row of the phase is known by its number ---
    data = everywhere(lambda: open_phase(config), "opening the corpus")
    say(describe(data.mixture))
    seen_from, same_data = once(lambda: check_resume(config, data, workdir), "comparing the data")
    say(same_data)
    check_agreement({"data": fingerprint(config, data, seen_from)})
    check_tokenizer(config, data)
    seconds_of_a_token, work = time_at_peak(config, mesh, data)
    if work:
        say(work)

    # --- state: resumed, or started from another run's checkpoint, or from scratch ---
    abstract = abstract_state(config, mesh)
    if config.init_from and not once(lambda: complete_steps(workdir), "looking for checkpoints"):
        everywhere(lambda: check_start(config, data, abstract), "reading config.init_from")
    resumed, stretches = take_run_folder(config, workdir, rollback, rows)
    with saves_in_time(config, "restoring a checkpoint"):
        manager = checkpoint.open_manager(
            workdir,
            config.checkpoint.keep,
            config.checkpoint.keep_every_steps,
            timeout_seconds=60 * config.checkpoint.stall_minutes,
        )
        state, start = restore_or_start(config, mesh, resumed, abstract)
    step, row = start["step"], next_row(start["row"], stretches)
    parameters = parameter_overview.count_parameters(state["params"])
    say(
        f"phase {config.phase}: {parameters:,} parameters, {si(tokens)} tokens in {steps} steps of"
        f" {train_config.batch_rows} x {row_length}, {config.mask.ratio:.0%} masked; from step {step}"
    )
    if row >= rows:
        evaluate_last(config, mesh, state, workdir, step)
        return

    # --- the step, compiled before the first batch is there ---
    clock.book("start_up")
    if jax.process_index() == 0:
        clock.open(workdir, step)
    seed = np.uint32(phase_seed(config))
    train_step = compile_train_step(config, mesh, data.tokenizer["vocab_size"], data.special)
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
    groups = start.get("held_out_groups", {})

    def finish(record: Record | None) -> None:
        """Waits for a step, logs it, and goes back to a checkpoint when too many have had no finite gradient."""
        if record is None:
            return
        with step_in_time(config):
            record = read_record(record)
        run_lock.check()
        if record["skipped"]:
            say(f"step {record['step']} had no finite gradient and changed nothing")
        too_many = skipped.see(record)
        if line := log.add(record):
            say(line)
        if too_many:
            close(record["step"])
            good_step, stop = record["step"] - skipped.in_a_row, record["tokens"] // row_length
            say(once(lambda: skip_bad_stretch(workdir, good_step, stop, rows)))
            sys.exit(processes.RESTART)

    def close(step: int) -> None:
        """Waits for the last save and ends what is written into the run folder."""
        with saves_in_time(config, "finishing a save"):
            checkpoint.finish(manager)
        run_lock.check()
        trace.close()
        clock.book("checkpoint")
        clock.record(step)
        clock.close()
        if writer:
            writer.close()

    def flush() -> None:
        """What a checkpoint's steps said of themselves is written before it is."""
        clock.record(step)
        clock.flush()
        if writer:
            writer.flush()

    # --- loop ---
    batches = read_batches(config, data, mesh, row, rows, stretches)
    dispatched: Record | None = None  # the last step, its metrics not yet read
    clock.book("start_up")
    while row < rows and not stopping:
        clock.book("step")
        batch, count, taken = next(batches)
        # While the step before still runs, nothing waits for data.
        busy = dispatched and not dispatched["metrics"]["loss"].is_ready()
        clock.book("step" if busy else "data_wait")
        rate = learning_rate(config.optimizer, row * row_length, tokens)
        trace.before(step + 1, state)
        with step_in_time(config):
            state, metrics = train_step(
                state, batch, np.int32(count), in_words(row), np.float32(rate), seed
            )
        trace.after(step + 1, state)
        row = next_row(row + taken, stretches)
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
        # Among skipped steps there is nothing new to save, and what might be gone back to has to stay.
        if (saving and not skipped.in_a_row) or last or stopping:
            meta = describe_checkpoint(config, data, step, row, start, groups)
            meta |= {"skipped_in_a_row": skipped.in_a_row, "skipped_rows": stretches}
            saved_at = time.monotonic()
            flush()
            with saves_in_time(config, "saving a checkpoint"):
                checkpoint.save(manager, step, state, meta)
            clock.book("checkpoint")
            clock.record(step)
        # After the save, which nothing that goes wrong here can cost.
        if evaluating:
            results = held_out(state["params"])
            run_lock.check()
            groups = record_held_out(config, results, writer, step, row)
            clock.book("evaluation")
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


def record_held_out(
    config: ConfigDict, results: Results, writer: MetricsWriter | None, step: int, row: int
) -> dict[str, Any]:
    """Writes and prints the results of an evaluation; returns those of the groups of languages."""
    groups = by_group(results, config.eval.groups)
    if writer:
        place = {"step": step, "tokens": row * config.data.row_length}
        writer.write({**place, "held_out": results, "held_out_groups": groups})
    say(group_table(groups))
    return groups


def evaluate_last(config: ConfigDict, mesh: Mesh, state: State, workdir: Place, step: int) -> None:
    """What may be missing of a run whose last step is saved: the evaluation after it."""
    if once(lambda: step_groups(workdir, step) is not None):
        say(f"phase {config.phase} is complete already: nothing to do")
        return
    say(f"phase {config.phase} is complete but for the evaluation after its last step")
    results = evaluate(config, mesh)(state["params"])
    writer = MetricsWriter(workdir, step) if jax.process_index() == 0 else None
    rows = phase_rows(config.train, config.data.row_length)
    record_held_out(config, results, writer, step, rows)
    if writer:
        writer.close()


def is_multiple(step: int, every: int) -> bool:
    """Whether something that is due every so many steps is due; 0 means never."""
    return bool(every) and step % every == 0


def take_run_folder(
    config: ConfigDict, workdir: Place, rollback: tuple[int, int] | None, rows: int
) -> tuple[Place | None, list[Stretch]]:
    """Makes the run folder this job's own, and goes back where that is asked for.

    Returns:
      The checkpoint to resume from, if there is one, and the stretches of rows that the run leaves out.
    """
    nonce = once(lambda: run_lock.take(workdir), "taking the run folder")
    everywhere(lambda: run_lock.see(workdir, nonce), "looking for the run folder")
    once(lambda: claim_run(config, workdir), "writing the run's config")
    if rollback:
        size = config.train.microbatch_rows
        say(once(lambda: roll_back(workdir, *rollback, size, rows), "going back"))
    once(lambda: checkpoint.clear(workdir), "clearing what a killed save left")
    newest = once(lambda: checkpoint.newest_intact(workdir), "checking the newest checkpoint")
    stretches = once(lambda: read_stretches(workdir), "reading skipped rows")
    return None if newest is None else checkpoint_folder(workdir, newest), stretches


def restore_or_start(
    config: ConfigDict, mesh: Mesh, resumed: Place | None, abstract: State
) -> tuple[State, dict[str, Any]]:
    """The state to go on from, and where it stands: `step`, `row`, `skipped_in_a_row` and `history`, the phases before.

    `imported_special_ids` are config.json's of the model that the first of them was imported from, where it was one
    with other ids than Gemma's; `imported` is what else its export has from there (see `hf.imported`).

    1. The run folder has a checkpoint, `resumed`: its moments, step, row counter and all.
    2. `config.init_from` names a checkpoint: its parameters, and its moments where it has them and
       `config.init_moments` wants them and this phase's optimiser made them, at row 0 of this phase.
    3. Neither: initialise from the seed.
    """
    if resumed:
        state, meta = checkpoint.restore(resumed, abstract)
        say(f"resuming at step {meta['step']}, row {meta['row']}")
        return state, {"skipped_in_a_row": 0, **meta}
    new = {"step": 0, "row": 0, "skipped_in_a_row": 0, "history": []}
    if not config.init_from:
        return init_state(config, mesh), new
    source = locate(config.init_from)
    why = why_new_moments(config, checkpoint.read_meta(source))
    wanted = {"params": abstract["params"]} if why else abstract
    state, meta = checkpoint.restore_for_phase(source, wanted)
    if "optimizer" not in state:
        why = why or "has no optimiser state"
        say(f"{config.init_from} {why}: the moments start from zero")
        state = {"params": state["params"], "optimizer": init_state(config, mesh)["optimizer"]}
    say(f"starting from {config.init_from}, phase {meta['phase']}, step {meta['step']}")
    past = {name: meta[name] for name in ("phase", "step", "tokens")} | {
        "run": str(run_folder(config.init_from)),
        "sums": sha256(locate(config.init_from) / SUMS),
    }
    new["history"] = [*meta.get("history", []), past]
    if ids := meta["config"].get("special_ids") or meta.get("imported_special_ids"):
        new["imported_special_ids"] = ids
    if "imported" in meta:
        new["imported"] = meta["imported"]
    return state, new


def describe_checkpoint(
    config: ConfigDict, data: PhaseData, step: int, row: int, start: Mapping[str, Any], groups: dict
) -> checkpoint.Meta:
    """What a checkpoint says of itself: enough to resume, to start a phase, to write a model card and to export.

    Args:
      start: what `restore_or_start` says of the phases before.
    """
    return {
        "phase": config.phase,
        "step": step,
        "row": row,
        "tokens": row * config.data.row_length,
        "config": config.to_dict(),
        "tokenizer": data.tokenizer,
        "fingerprint": fingerprint(config, data, row),
        "languages": sorted({entry.language for entry in data.mixture.entries}),
        "history": start["history"],
        **{name: start[name] for name in start.keys() & {"imported_special_ids", "imported"}},
        "held_out_groups": groups,
    }


def say(text: str) -> None:
    """Prints from one process only."""
    if jax.process_index() == 0:
        print(text, flush=True)


def main(argv: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    if _NEWEST_STEP.value:
        _, workdir = config_and_folder(argv[1:])
        print(max(complete_steps(workdir), default=-1))
        return
    # Before anything can be wrong: what is wrong in one process ends the others, too.
    processes.join(
        _COORDINATOR.value,
        _PROCESSES.value,
        _PROCESS.value,
        heartbeat_seconds=_HEARTBEAT.value,
        initialization_seconds=_INITIALIZATION.value,
        shutdown_seconds=_SHUTDOWN.value,
        answer_seconds=_ANSWER.value,
    )
    with processes.ending_together():
        run(argv[1:])


def run(overrides: list[str]) -> None:
    """Does what the command line says."""
    config, workdir = config_and_folder(overrides)
    if _ROLLBACK.value is None and _SKIP_ROWS.value:
        raise UserError("--skip_rows needs --rollback_to_step, which says where to skip them")
    rollback = None if _ROLLBACK.value is None else (_ROLLBACK.value, _SKIP_ROWS.value)
    for line in defaults_taken(complete(config), workdir, overrides):
        say(line)
    if _DRY_RUN.value:
        sys.exit(0 if dry_run(config, workdir) else 1)
    train(
        config,
        workdir,
        rollback,
        began=process_start(),
        profile_steps=parse_steps(_PROFILE_STEPS.value),
    )


def config_and_folder(overrides: list[str]) -> tuple[ConfigDict, Place]:
    """The config of the command line, its defaults still open, and the run folder."""
    if _CONFIG.value is None:
        raise UserError("--config FILE is required")
    config = read(_CONFIG.value, overrides)
    if _WORKDIR.value:
        config.workdir = _WORKDIR.value
    return config, place(complete(config).workdir)


def defaults_taken(config: ConfigDict, workdir: Place, overrides: list[str]) -> list[str]:
    """A line for each place that the command line does not name, with the words that would."""
    given = " ".join(overrides)
    lines = []
    if _WORKDIR.value is None and "config.workdir" not in given:
        lines.append(f"run folder: {workdir}  (another: --workdir RUN)")
    if "config.data.corpus" not in given:
        lines.append(f"corpus: {config.data.corpus}  (another: --config.data.corpus=FOLDER)")
    if "config.init_from" not in given:
        start = config.init_from or "nothing, from scratch"
        lines.append(f"starts from: {start}  (another: --config.init_from=RUN)")
    return lines


def parse_flags(argv: list[str]) -> list[str]:
    """Parses this program's flags; the words that override fields of the config are left, for `main`."""
    overrides, others = split_overrides(argv)
    try:
        return [*flags.FLAGS(others), *overrides]
    except flags.Error as error:
        raise UserError(str(error)) from error


if __name__ == "__main__":
    run_main(lambda: app.run(main, argv=sys.argv, flags_parser=parse_flags))
