"""Times the whole training step on synthetic packed rows: tokens a second, share of the matmul peak, memory, parts.

Needs jax, flax, optax and numpy. FLOPs are counted as in mmbert_jax/flops.py; MFU is their rate over that of a large
matrix product in the compute dtype, measured here.
"""

import argparse
import re
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from timing import matmul_peak

from mmbert_jax.errors import UserError, run_main
from mmbert_jax.files import check_file, write_json
from mmbert_jax.flops import forward_flops_per_token
from mmbert_jax.kernels import attention
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.model.row_keys import in_words
from mmbert_jax.parallel.mesh import make_mesh
from mmbert_jax.places import place
from mmbert_jax.step import abstract_state, compile_train_step

SIZES = {"small": (384, 6), "base": (768, 12)}

# Names of device events, in this order: the first that matches says which part an event belongs to.
PARTS = {
    "attention": r"attention|mosaic|flash|splash",
    "matrix products": r"gemm|nvjet|cutlass|cublas|dot|matmul|convolution",
    "copies": r"memcpy|memset|copy|transpose",
    "elementwise and reductions": r"fusion|reduce|loop_|input_|wrapped_|scatter|gather|sort|rng|select",
}


class Fields(dict):
    """A section of a config: what the step reads of `ml_collections.ConfigDict`."""

    __getattr__ = dict.__getitem__


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="examples:\n  python tools/bench/train_step.py --output train_step.json\n"
        "  JAX_PLATFORMS=cpu python tools/bench/train_step.py --sizes small --rows 256:0.3:64 --tokens 512 \\\n"
        "      --dtype float32 --layers 2 --vocab_size 4096 --steps 2",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["base", "small"])
    parser.add_argument(
        "--rows",
        nargs="+",
        default=["1024:0.3:1024", "8192:0.15:1024"],
        metavar="LENGTH:MASKED:DOCUMENT",
        help="tokens of a row, share that is masked, tokens of a document",
    )
    parser.add_argument("--tokens", type=int, default=32_768, help="of a microbatch")
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--vocab_size", type=int, default=256_000)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--steps", type=int, default=10, help="timed steps (default 10)")
    parser.add_argument("--output", type=place, help="JSON file to write")
    arguments = parser.parse_args()
    if arguments.output:
        check_file(arguments.output)

    device = jax.devices()[0]
    peak = matmul_peak(jnp.dtype(arguments.dtype))
    print(
        f"{device.device_kind}, jax {jax.__version__}; {arguments.dtype} matmul {peak:.3g} TFLOP/s"
    )
    results = []
    for size in arguments.sizes:
        for rows in arguments.rows:
            config, document = make_config(size, rows, arguments)
            results.append(
                {"size": size, "rows": rows} | bench(config, document, peak, arguments.steps)
            )
            if arguments.output:
                summary = {
                    "device": device.device_kind,
                    "jax": jax.__version__,
                    "dtype": arguments.dtype,
                    "matmul_tflops": peak,
                    "layers": arguments.layers,
                    "vocab_size": arguments.vocab_size,
                    "results": results,
                }
                write_json(arguments.output, summary)


def make_config(size: str, rows: str, arguments) -> tuple[Fields, int]:
    """The published settings that a step depends on (mmbert_jax/recipe/settings.py), and the length of a document."""
    try:
        length, masked, document = rows.split(":")
        length, masked, document = int(length), float(masked), int(document)
    except ValueError as error:
        raise UserError(f"--rows {rows!r} is not LENGTH:MASKED:DOCUMENT") from error
    hidden_size, num_heads = SIZES[size]
    microbatch = max(arguments.tokens // length, 1)
    return Fields(
        seed=0,
        phase="bench",
        dtype=arguments.dtype,
        model=Fields(
            vocab_size=arguments.vocab_size,
            hidden_size=hidden_size,
            num_layers=arguments.layers,
            num_heads=num_heads,
            intermediate_size=1152,
            attention_window=128,
            global_every=3,
            global_rope_theta=160_000.0,
            local_rope_theta=160_000.0,
            norm_eps=1e-5,
            attention_output_dropout=0.1,
        ),
        data=Fields(row_length=length),
        mask=Fields(ratio=masked, mask_share=0.8, random_share=0.1),
        train=Fields(batch_rows=microbatch, microbatch_rows=microbatch, loss_chunk=16_000),
        optimizer=Fields(
            name="stable_adamw", peak_lr=8e-4, weight_decay=8e-5, b1=0.9, b2=0.95, eps=1e-8
        ),
        mesh=Fields(data=1, fsdp=1, tensor=1),
    ), document


def make_batch(config: Fields, document: int) -> dict[str, np.ndarray]:
    """Random tokens in documents of one length, each int32 [1, B, L]."""
    shape = (1, config.train.microbatch_rows, config.data.row_length)
    i = np.arange(config.data.row_length)
    tokens = np.random.default_rng(0).integers(5, config.model.vocab_size, shape)
    rows = {"tokens": tokens, "segment_ids": i // document + 1, "positions": i % document}
    return {name: np.broadcast_to(x, shape).astype(np.int32) for name, x in rows.items()}


def make_state(config: Fields, mesh) -> dict:
    """A state of normal random numbers: compiling the true initialisation takes longer than all timed steps."""
    rng = np.random.default_rng(0)

    def fill(path, x):
        if path[0].key == "optimizer" or not jnp.issubdtype(x.dtype, jnp.floating):
            return jnp.zeros(x.shape, x.dtype, device=x.sharding)
        return jax.device_put(0.02 * rng.standard_normal(x.shape, np.float32), x.sharding)

    return jax.tree.map_with_path(fill, abstract_state(config, mesh))


def bench(config: Fields, document: int, peak: float, steps: int) -> dict:
    model = ModelConfig.from_config(config.model)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    batch = make_batch(config, document)
    tokens = batch["tokens"].size
    shape = (*batch["tokens"].shape[1:], model.num_heads, model.head_dim)
    windows = (None, model.attention_window // 2)
    implementations = attention.describe(mesh, shape, config.dtype, windows)
    print(
        f"\n{model.num_layers} layers x {model.hidden_size}, {shape[0]} rows of {shape[1]},"
        f" {config.mask.ratio:.0%} masked, documents of {document}\n  attention: {implementations}"
    )
    start = time.perf_counter()
    step = compile_train_step(config, mesh)
    compile_seconds = time.perf_counter() - start
    state = make_state(config, mesh)
    batch = jax.device_put(batch)

    def run(count):
        nonlocal state
        for i in range(count):
            state, metrics = step(
                state, batch, np.int32(1), in_words(i * shape[0]), np.float32(1e-4), np.uint32(0)
            )
        return jax.block_until_ready(metrics)

    loss = float(run(2)["loss"])
    if not np.isfinite(loss):
        raise SystemExit(f"the loss is {loss}")
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        run(1)
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    flops = forward_flops_per_token(model, config.mask.ratio, batch["segment_ids"][0])
    total = 3 * sum(flops.values())
    memory = step.memory_analysis()
    planned = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    used = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    parts = time_by_part(lambda: run(1))
    result = {
        "attention": implementations,
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / median,
        "flops_per_token_forward": flops,
        "tflops": total * tokens / median / 1e12,
        "mfu": total * tokens / median / 1e12 / peak,
        "planned_bytes": planned,
        # Of the process so far: a smaller program that ran later does not lower it.
        "peak_bytes": used,
        "compile_seconds": compile_seconds,
        "loss": loss,
        "milliseconds_by_part": parts,
    }
    print(
        f"  {median * 1e3:.1f} ms, {tokens / median:,.0f} tokens/s,"
        f" {result['tflops']:.3g} TFLOP/s, MFU {result['mfu']:.1%}"
        f" ({total / 1e6:.0f} MFLOP a token: "
        + ", ".join(f"{k} {3 * v / 1e6:.0f}" for k, v in flops.items())
        + ")\n"
        f"  compiled in {compile_seconds:.0f} s, planned {planned / 2**30:.1f} GiB"
        + (f", peak so far {used / 2**30:.1f} GiB" if used else "")
    )
    for part, milliseconds in parts.items():
        print(f"  {milliseconds:9.2f} ms  {part}")
    return result


def time_by_part(run) -> dict[str, float]:
    """Milliseconds of device events of one step, by part, with the longest kernels of each; empty without a trace."""
    with tempfile.TemporaryDirectory() as folder:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0
        with jax.profiler.trace(folder, profiler_options=options):
            run()
        files = sorted(Path(folder).rglob("*.xplane.pb"))
        planes = [p for f in files for p in jax.profiler.ProfileData.from_file(str(f)).planes]
    # Streams of a GPU and the operations of a TPU core; a CPU has no plane of its own.
    lines = [
        line
        for plane in planes
        if plane.name.startswith("/device:")
        for line in plane.lines
        if line.name.startswith("Stream") or line.name == "XLA Ops"
    ]
    parts, kernels = Counter(), Counter()
    for line in lines:
        for event in line.events:
            name = event.name.lower()
            part = next((p for p, pattern in PARTS.items() if re.search(pattern, name)), "other")
            parts[part] += event.duration_ns / 1e6
            kernels[f"{part}: {re.sub(r'[0-9]+', '#', name)[:80]}"] += event.duration_ns / 1e6
    return dict(parts.most_common()) | dict(kernels.most_common(20))


if __name__ == "__main__":
    run_main(main)
