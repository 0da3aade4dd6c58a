"""Measures what training costs besides its steps: the program with log, checkpoints and all, against a bare loop.

The bare loop runs the same compiled step on the same rows, read by the same loader, and does nothing else: no log, no
checkpoint, no evaluation, no account of time. The two take turns, each from a fresh state. Of the program's turn the
loop counts, from its first line of log to its last step: what holds up steps, and what slows them down, such as a
checkpoint that is written beside them. Start-up, compiling, and the evaluation and the wait for a checkpoint at the end
do not count, since a longer run has no more of them. For those see the goodput of a run, which every run prints.
"""

import argparse
import contextlib
import datetime
import io
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from mmbert_jax.batches import open_phase, read_batches
from mmbert_jax.config import complete
from mmbert_jax.config_file import read
from mmbert_jax.errors import UserError, run_main
from mmbert_jax.files import check_file, write_json
from mmbert_jax.goodput import read_timeline
from mmbert_jax.model.row_keys import in_words
from mmbert_jax.optim.schedules import learning_rate, phase_rows
from mmbert_jax.parallel.mesh import make_mesh
from mmbert_jax.places import place
from mmbert_jax.step import compile_train_step, init_state
from mmbert_jax.train import train


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example (the demo's corpus):\n"
        "  JAX_PLATFORMS=cpu python tools/bench/overhead.py --corpus runs/demo/corpus --steps 205 --turns 3 \\\n"
        "      --output docs/benchmarks/overhead.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--corpus", required=True, help="made by the demo (tools/curriculum.py)")
    parser.add_argument("--steps", type=int, default=205, help="of a turn (default 205)")
    parser.add_argument("--turns", type=int, default=3, help="of each of the two (default 3)")
    parser.add_argument(
        "--every", type=int, default=50, help="steps between checkpoints (default 50)"
    )
    parser.add_argument(
        "--log_every", type=int, default=10, help="steps between log lines (default 10)"
    )
    parser.add_argument(
        "--rows", type=int, default=16, help="of a step, of 128 tokens (default 16)"
    )
    parser.add_argument("--output", type=place, help="JSON file to write")
    arguments = parser.parse_args()
    if arguments.output:
        check_file(arguments.output)
    if arguments.turns < 1 or not 0 < arguments.log_every < arguments.steps:
        raise UserError("--turns must be 1 or more, --log_every above 0 and below --steps")

    config = make_config(arguments)
    mesh = make_mesh(config.mesh)
    step = compile_train_step(config, mesh)
    seconds: dict[str, list[float]] = {"bare": [], "program": []}
    held_up = []
    print(f"{'turn':>4} {'bare':>10} {'program':>10}   tokens/s; overhead", flush=True)
    # From the first line of log on, in both: until then the process warms up.
    tokens = (
        (arguments.steps - arguments.log_every) * config.train.batch_rows * config.data.row_length
    )
    for turn in range(1, arguments.turns + 1):
        seconds["bare"].append(bare(config, mesh, step))
        program, checkpoints = whole(config)
        seconds["program"].append(program)
        held_up.append(checkpoints)
        rates = {name: tokens / times[-1] for name, times in seconds.items()}
        overhead = rates["bare"] / rates["program"] - 1
        print(
            f"{turn:>4} {rates['bare']:10,.0f} {rates['program']:10,.0f}   {overhead:.2%}",
            flush=True,
        )

    median = {name: tokens / statistics.median(times) for name, times in seconds.items()}
    overhead = median["bare"] / median["program"] - 1
    print(
        f"{'all':>4} {median['bare']:10,.0f} {median['program']:10,.0f}   {overhead:.2%} by medians"
    )
    if arguments.output:
        result = {
            "date": datetime.date.today().isoformat(),
            "device": jax.devices()[0].device_kind,
            "machine": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "jax": jax.__version__,
            "parameters": sum(x.size for x in jax.tree.leaves(init_state(config, mesh)["params"])),
            "tokens_of_a_turn": tokens,
            **{
                name: vars(arguments)[name]
                for name in ("steps", "turns", "every", "log_every", "rows")
            },
            "seconds": seconds,
            "seconds_held_up_by_checkpoints": held_up,
            "tokens_per_second": median,
            "overhead": overhead,
        }
        write_json(arguments.output, result)


def make_config(arguments: argparse.Namespace) -> ConfigDict:
    """The demo's first phase with a constant batch, for as many steps as a turn has."""
    config = read(f"{Path(__file__).resolve().parents[2] / 'configs/demo.py'}:phase1,cldr")
    config.data.corpus = arguments.corpus
    config.data.max_passes = 1000.0
    config.train.batch_rows = config.train.batch_warmup_from_rows = arguments.rows
    config.train.microbatch_rows = arguments.rows
    config.train.batch_warmup_tokens = 0
    config.train.tokens = arguments.steps * arguments.rows * config.data.row_length
    config.checkpoint.every_steps = arguments.every
    config.log_every_steps = arguments.log_every
    config.eval.every_steps = 0
    config.eval.rows_per_language = 1
    return complete(config)


def bare(config: ConfigDict, mesh, step) -> float:
    """Seconds from the end of step `config.log_every_steps` to that of the last, of a loop that does nothing else."""
    row_length, rows = config.data.row_length, phase_rows(config.train, config.data.row_length)
    data = open_phase(config)
    state, row, start, before = init_state(config, mesh), 0, 0.0, None
    for number, (batch, count, taken) in enumerate(read_batches(config, data, mesh, 0, rows)):
        rate = learning_rate(config.optimizer, row * row_length, rows * row_length)
        state, metrics = step(
            state, batch, np.int32(count), in_words(row), np.float32(rate), np.uint32(0)
        )
        if before is not None:
            jax.block_until_ready(before)  # one step is dispatched ahead, as in the program
            if number == config.log_every_steps:
                start = time.perf_counter()
        before = metrics
        row += taken
    jax.block_until_ready(before)
    return time.perf_counter() - start


def whole(config: ConfigDict) -> tuple[float, float]:
    """The same of the program, and the seconds of it in which checkpoints held up steps, by its own account."""
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(io.StringIO()):
            train(config, Path(folder) / "run")
        records = read_timeline(Path(folder) / "run")
    last = max(record["step"] for record in records)
    # The first record of a step closes it; what follows the last step's is the end of the run.
    first, end = (
        next(i for i, record in enumerate(records) if record["step"] == step)
        for step in (config.log_every_steps, last)
    )
    loop = records[first + 1 : end + 1]
    seconds = sum(sum(record["seconds"].values()) for record in loop)
    return seconds, sum(record["seconds"].get("checkpoint", 0.0) for record in loop)


if __name__ == "__main__":
    run_main(main)
