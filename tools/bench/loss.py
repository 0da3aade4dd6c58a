"""Times the masked-LM loss with its gradient, and the training step with it, by each of its two ways.

  chunks    `kernels/mlm_loss.py`: logits of `--chunk` classes at a time, computed again in the backward pass.
  forward   `kernels/weighted_mlm_loss.py`: the gradient formed in the forward pass, all classes at once.

With `--chunk` the whole vocabulary, XLA finds that the logits of both passes are the same: then the ways do not differ.

The ways take turns in one process. Medians are printed, of seconds and of the process's CPU seconds on a CPU, which
depend less on what else the machine does; in the JSON file all runs stand.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from mmbert_jax.config_file import load
from mmbert_jax.errors import UserError, run_main
from mmbert_jax.files import check_file, write_json
from mmbert_jax.kernels import weighted_mlm_loss
from mmbert_jax.kernels.mlm_loss import token_losses
from mmbert_jax.kernels.weighted_mlm_loss import weighted_loss
from mmbert_jax.model.masking import num_targets
from mmbert_jax.model.row_keys import in_words
from mmbert_jax.parallel.mesh import make_mesh
from mmbert_jax.places import place
from mmbert_jax.step import compile_train_step, init_state

PHASE1 = Path(__file__).resolve().parents[2] / "configs/phase1.py"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  JAX_PLATFORMS=cpu python tools/bench/loss.py --loss small:256000 --step small:256000",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = [f"{size}:{vocab}" for size in ("small", "base") for vocab in (256_000, 50_368)]
    parser.add_argument("--loss", nargs="*", default=default, metavar="SIZE:VOCABULARY")
    parser.add_argument("--step", nargs="*", default=default, metavar="SIZE:VOCABULARY")
    parser.add_argument("--rows", type=int, default=1, help="of a microbatch (default 1)")
    parser.add_argument("--row_length", type=int, default=1024)
    parser.add_argument("--masked", type=float, default=0.3, help="share of targets (default 0.3)")
    parser.add_argument("--chunk", type=int, default=16_000, help="classes (default 16000)")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="float32")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each (default 5)")
    parser.add_argument("--output", type=place, help="JSON file to write")
    arguments = parser.parse_args()
    if arguments.output:
        check_file(arguments.output)

    print(f"{'medians':24} {'chunks':>18} {'forward':>18} {'ratio':>14}")
    results = []
    for kind, make, specs in (
        ("loss", loss_runs, arguments.loss),
        ("step", step_runs, arguments.step),
    ):
        for spec in specs:
            size, _, vocab = spec.partition(":")
            if not vocab.isdecimal():
                raise UserError(f"--{kind} {spec!r} is not SIZE:VOCABULARY")
            config = load(f"{PHASE1}:{size}")
            config.model.vocab_size, config.dtype = int(vocab), arguments.dtype
            config.train.loss_chunk, config.mask.ratio = arguments.chunk, arguments.masked
            config.data.row_length = arguments.row_length
            config.train.batch_rows = config.train.microbatch_rows = arguments.rows
            result = {"name": f"{kind} {spec}"} | take_turns(make(config), arguments.repeats)
            results.append(result)
            show(result)
            if arguments.output:  # after each, since the whole takes long
                summary = {
                    "device": jax.devices()[0].device_kind,
                    "cores": os.cpu_count(),
                    "load_average": os.getloadavg()[0],
                    "jax": jax.__version__,
                    **{name: getattr(arguments, name) for name in ("rows", "row_length", "masked")},
                    **{name: getattr(arguments, name) for name in ("chunk", "dtype", "repeats")},
                    "results": results,
                }
                write_json(arguments.output, summary)


def show(result: dict) -> None:
    """A line of the table: seconds, CPU seconds in brackets, and what both are divided by the other way's."""
    text = {
        way: [statistics.median(run[i] for run in result[way]) for i in (0, 1)]
        for way in ("chunks", "forward")
    }
    ratio = [a / b for a, b in zip(text["chunks"], text["forward"], strict=True)]
    columns = (f"{wall:9.3f} ({cpu:6.3f})" for wall, cpu in text.values())
    print(f"{result['name']:24}", *columns, f"{ratio[0]:6.2f} ({ratio[1]:4.2f})", flush=True)


def take_turns(runs: dict[str, Callable[[], None]], repeats: int) -> dict[str, list]:
    """[seconds, CPU seconds] of every run of each way, after one run that is not counted."""
    for run in runs.values():
        run()
    seconds = {way: [] for way in runs}
    for _ in range(repeats):
        for way, run in runs.items():
            start, cpu = time.perf_counter(), time.process_time()
            run()
            seconds[way].append([time.perf_counter() - start, time.process_time() - cpu])
    return seconds


def loss_runs(config) -> dict[str, Callable[[], None]]:
    """The loss and its three gradients, compiled, on random numbers."""
    rng = np.random.default_rng(0)
    n = config.train.microbatch_rows * num_targets(config.mask.ratio, config.data.row_length)
    vocab, depth = config.model.vocab_size, config.model.hidden_size
    hidden = jnp.asarray(rng.standard_normal((n, depth), np.float32), config.dtype)
    embedding = jnp.asarray(0.02 * rng.standard_normal((vocab, depth), np.float32))
    labels, weights = jnp.asarray(rng.integers(0, vocab, n, np.int32)), jnp.ones(n)
    inputs = hidden, embedding, jnp.zeros(vocab), labels, weights

    def in_chunks(hidden, embedding, bias, labels, weights):
        losses, correct = token_losses(hidden, embedding, bias, labels, config.train.loss_chunk)
        return (losses * weights).sum(), correct

    def in_forward(*inputs):
        return weighted_loss(*inputs, config.train.loss_chunk)

    def run(loss):
        gradient = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)
        compiled = jax.jit(gradient).lower(*inputs).compile()
        return lambda: jax.block_until_ready(compiled(*inputs))

    return {"chunks": run(in_chunks), "forward": run(in_forward)}


def step_runs(config) -> dict[str, Callable[[], None]]:
    """The training step, both ways on one state."""
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    with mock.patch.object(weighted_mlm_loss, "forms_gradient", return_value=False):
        in_chunks = compile_train_step(config, mesh)
    in_forward = compile_train_step(config, mesh)
    shape = 1, config.train.microbatch_rows, config.data.row_length
    tokens = np.random.default_rng(1).integers(5, config.model.vocab_size, shape, np.int32)
    positions = np.broadcast_to(np.arange(shape[-1], dtype=np.int32), shape)
    batch = {"tokens": tokens, "segment_ids": np.ones_like(tokens), "positions": positions}
    state = init_state(config, mesh)

    def run(step):
        nonlocal state
        state, metrics = step(
            state, batch, np.int32(1), in_words(0), np.float32(1e-4), np.uint32(0)
        )
        jax.block_until_ready(metrics)

    return {"chunks": lambda: run(in_chunks), "forward": lambda: run(in_forward)}


if __name__ == "__main__":
    run_main(main)
