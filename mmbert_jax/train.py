"""Trains one phase of the curriculum.

    python -m mmbert_jax.train --config configs/phase2.py --workdir runs/phase2 \
        --config.data.corpus=CORPUS --config.init_from=runs/phase1

Any field of the config can be given on the command line as `--config.x.y=value`. The same command, run again, resumes
from the newest checkpoint in the run folder and repeats, bit for bit, what an uninterrupted run would have done.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from clu import parameter_overview
from jax.sharding import Mesh
from ml_collections import ConfigDict, config_flags

from mmbert_jax import checkpoint
from mmbert_jax.config import claim_run, validate
from mmbert_jax.data.mixture import describe
from mmbert_jax.data.pipeline import PhaseData, microbatches, open_data
from mmbert_jax.errors import UserError, run_main
from mmbert_jax.evaluate.heldout import by_group, evaluate, group_table
from mmbert_jax.goodput import Timeline, describe_goodput, goodput, process_start, read_timeline
from mmbert_jax.kernels import attention
from mmbert_jax.metrics import MetricsWriter, progress_line, si
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.optim.schedules import batch_rows, learning_rate, phase_rows, phase_steps
from mmbert_jax.parallel.mesh import make_mesh
from mmbert_jax.parallel.sharding import batch_sharding, rows_per_process
from mmbert_jax.profile import StepTrace, parse_steps
from mmbert_jax.step import State, abstract_state, compile_train_step, init_state, phase_seed

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, e.g. configs/phase1.py or configs/phase1.py:small."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Run folder: config, metrics and checkpoints.")
_PROFILE_STEPS = flags.DEFINE_string(
    "profile_steps", None, "FIRST:LAST, steps whose profiler trace is written into RUN/profile."
)


def train(
    config: ConfigDict,
    workdir: Path,
    *,
    started: float | None = None,
    profile_steps: tuple[int, int] | None = None,
) -> None:
    """Runs a phase to its end, from wherever its run folder says that it stands.

    Args:
      started: Unix time at which the program began, for the account of time in the run folder; None: now.
      profile_steps: first and last of the steps to trace.
    """
    clock = Timeline(started)
    # --- config: everything that can be wrong is refused before anything is written ---
    validate(config)
    row_length, train_config = config.data.row_length, config.train
    rows, steps = phase_rows(train_config, row_length), phase_steps(train_config, row_length)
    tokens = rows * row_length

    # --- devices ---
    mesh = make_mesh(config.mesh)
    rows_per_process(mesh, train_config.microbatch_rows, "config.train.microbatch_rows")
    say(
        f"mesh {dict(mesh.shape)} on {mesh.size} x {mesh.devices.flat[0].device_kind}, {jax.process_count()} processes"
    )
    model = ModelConfig.from_config(config.model)
    shape = (train_config.microbatch_rows, row_length, model.num_heads, model.head_dim)
    windows = (None, model.attention_window // 2)
    say(f"attention: {attention.describe(mesh, shape, config.dtype, windows)}")

    # --- data: every row of the phase is known by its number ---
    data = open_data(config.data, rows, phase_seed(config))
    say(describe(data.mixture))
    check_tokenizer(config, data)

    # --- state: resumed, or started from another run's checkpoint, or from scratch ---
    abstract = abstract_state(config, mesh)
    if config.init_from and not (workdir / "checkpoints").is_dir():
        check_start(config, data, abstract)
    claim_run(config, workdir)
    manager = checkpoint.open_manager(workdir, config.checkpoint.keep)
    state, step, row, history = restore_or_start(config, mesh, manager, abstract)
    count = parameter_overview.count_parameters(state["params"])
    say(
        f"phase {config.phase}: {count:,} parameters, {si(tokens)} tokens in {steps} steps of"
        f" {train_config.batch_rows} x {row_length}, {config.mask.ratio:.0%} masked; from step {step}"
    )
    if row >= rows:
        say(f"phase {config.phase} is complete already: nothing to do")
        return

    # --- loop ---
    clock.book("start_up")
    if jax.process_index() == 0:
        clock.open(workdir, step)
    train_step = compile_train_step(config, mesh)
    say(f"compiled the training step in {clock.book('compile'):.1f} s")
    trace = StepTrace(workdir, profile_steps)
    held_out = evaluate(config, mesh)
    writer = MetricsWriter(workdir, step) if jax.process_index() == 0 else None
    batches = read_batches(config, data, mesh, row, rows)
    logged_tokens = row * row_length
    before: dict[str, Any] | None = (
        None  # the step that was dispatched last, its metrics not yet read
    )
    groups: dict[str, Any] = {}

    def log(record: dict[str, Any]) -> None:
        nonlocal logged_tokens
        record |= {name: float(x) for name, x in record.pop("metrics").items()}
        if record["step"] % config.log_every_steps and record["step"] != steps:
            return
        clock.book("step")
        clock.record(record["step"])
        seconds, data_wait = clock.lap()
        record |= {
            "tokens_per_second": (record["tokens"] - logged_tokens) / seconds,
            "data_wait": data_wait,
        }
        logged_tokens = record["tokens"]
        if writer:
            writer.write(record)
        say(progress_line(record, steps, tokens))

    clock.book("start_up")
    while row < rows:
        clock.book("step")
        batch, count = next(batches)
        # While the step before still runs, nothing waits for data.
        busy = before and not before["metrics"]["loss"].is_ready()
        clock.book("step" if busy else "data_wait")
        rate = learning_rate(config.optimizer, row * row_length, tokens)
        trace.before(step + 1, state)
        state, metrics = train_step(state, batch, np.int32(count), np.uint32(row), np.float32(rate))
        trace.after(step + 1, state)
        row += count * train_config.microbatch_rows
        step += 1
        if before:
            log(before)  # the device is at work on the step that was just dispatched
        before = {
            "step": step,
            "tokens": row * row_length,
            "learning_rate": rate,
            "metrics": metrics,
        }

        last = row >= rows
        evaluating = last or (config.eval.every_steps and step % config.eval.every_steps == 0)
        if evaluating:
            log(before)
            before = None
            clock.book("step")
            results = held_out(state["params"])
            groups = by_group(results, config.eval.groups)
            if writer:
                writer.write(
                    {
                        "step": step,
                        "tokens": row * row_length,
                        "held_out": results,
                        "held_out_groups": groups,
                    }
                )
            say(group_table(groups))
            clock.book("evaluation")
            clock.record(step)
        if last or step % config.checkpoint.every_steps == 0:
            meta = describe_checkpoint(config, data, step, row, history, groups)
            jax.block_until_ready(metrics)  # a save waits for the step, whose time is not its own
            clock.book("step")
            checkpoint.save(manager, step, state, meta)
            clock.book("checkpoint")
            clock.record(step)

    # --- end ---
    manager.wait_until_finished()
    manager.close()
    trace.close()
    clock.book("checkpoint")
    clock.record(step)
    clock.close()
    if writer:
        writer.close()
        say(describe_goodput(goodput(read_timeline(workdir))))
    say(
        f"phase {config.phase} is complete: {si(tokens)} tokens, checkpoint {workdir / 'checkpoints' / str(step)}"
    )


def restore_or_start(
    config: ConfigDict, mesh: Mesh, manager: Any, abstract: State
) -> tuple[State, int, int, list[dict[str, Any]]]:
    """The state to go on from, its step and row counter, and the phases that the model went through before this one.

    1. The run folder has a checkpoint: resume it, moments, step, row counter and all.
    2. `config.init_from` names a checkpoint: its parameters, and its moments where it has them, at row 0 of this phase.
    3. Neither: initialise from the seed.
    """
    resumed = checkpoint.restore_latest(manager, abstract)
    if resumed:
        state, meta = resumed
        say(f"resuming at step {meta['step']}, row {meta['row']}")
        return state, meta["step"], meta["row"], meta["history"]
    if not config.init_from:
        return init_state(config, mesh), 0, 0, []
    state, meta = checkpoint.restore_for_phase(config.init_from, abstract)
    if "optimizer" not in state:
        say(f"{config.init_from} has no optimiser state: the moments start from zero")
        state = {"params": state["params"], "optimizer": init_state(config, mesh)["optimizer"]}
    say(f"starting from {config.init_from}, phase {meta['phase']}, step {meta['step']}")
    past = {name: meta[name] for name in ("phase", "step", "tokens")}
    return state, 0, 0, [*meta.get("history", []), past]


def check_start(config: ConfigDict, data: PhaseData, abstract: State) -> None:
    """The checkpoint of `config.init_from` must hold this model, trained with the corpus's tokeniser."""
    meta = checkpoint.check_fits(config.init_from, abstract["params"])
    theirs, ours = (meta.get("tokenizer") or {}).get("sha256"), data.tokenizer["sha256"]
    if theirs not in (None, ours):
        raise UserError(
            f"config.init_from={config.init_from} was trained with another tokeniser ({theirs[:12]}) than the corpus"
            f" {config.data.corpus} was prepared with ({ours[:12]}): prepare the corpus with the run's tokeniser"
        )


def check_tokenizer(config: ConfigDict, data: PhaseData) -> None:
    """The corpus's token ids must have rows in the embedding."""
    vocab_size = data.tokenizer["vocab_size"]
    if vocab_size > config.model.vocab_size:
        raise UserError(
            f"config.model.vocab_size={config.model.vocab_size} is too small for {config.data.corpus}, whose tokeniser"
            f" has {vocab_size} entries: set config.model.vocab_size={vocab_size} or more"
        )


def read_batches(
    config: ConfigDict, data: PhaseData, mesh: Mesh, row: int, rows: int
) -> Iterator[tuple[dict[str, jax.Array], int]]:
    """Batches from global row `row` on, on the devices, each with the number of microbatches that it holds.

    Every batch has the shape of the largest, [microbatches, rows of one, L]; what is not needed is zero.
    """
    microbatch_rows = config.train.microbatch_rows
    slots = config.train.batch_rows // microbatch_rows
    sharding = batch_sharding(mesh, leading=1)
    stream = microbatches(
        data,
        microbatch_rows,
        row,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        workers=config.data.loader_workers,
        prefetch=config.data.prefetch,
    )
    while row < rows:
        count = batch_rows(config.train, row, config.data.row_length) // microbatch_rows
        parts = [next(stream) for _ in range(count)]
        empty = [{name: np.zeros_like(x) for name, x in parts[0].items()}] * (slots - count)
        batch = {name: np.stack([part[name] for part in parts + empty]) for name in parts[0]}
        yield (
            {
                name: jax.make_array_from_process_local_data(sharding, x)
                for name, x in batch.items()
            },
            count,
        )
        row += count * microbatch_rows


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
    logging.set_verbosity(logging.WARNING)
    train(
        _CONFIG.value,
        Path(_WORKDIR.value),
        started=process_start(),
        profile_steps=parse_steps(_PROFILE_STEPS.value),
    )


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
