"""Tokens a second of encoding, here and with `transformers`, on the same weights and the same random sequences.

The protocol is that of mmBERT's announcement: 4096 random sequences of fixed or normally distributed lengths, the
largest batch that fits, 10 runs. `transformers` gets sequences in random order, each batch padded to its longest, as
there; here they are packed. Both end with hidden states on the device; packing, padding and copying in count as well.
Only real tokens are counted, never padding. The engines take turns, run by run.
"""

import argparse
import dataclasses
import importlib.util
import os
import platform
import shlex
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Both frameworks share the device's memory: neither may take it all at the start.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
import torch
from matplotlib.figure import Figure
from transformers import ModernBertConfig, ModernBertModel

from mmbert_jax.data.special_ids import GEMMA
from mmbert_jax.errors import UserError, run_main
from mmbert_jax.files import atomic_file, write_json, write_text
from mmbert_jax.hf.config import to_hf
from mmbert_jax.hf.names import to_theirs
from mmbert_jax.inference.compile_cache import use_compile_cache
from mmbert_jax.inference.load import load
from mmbert_jax.inference.rows import batch_arrays, default_batch_tokens, plan
from mmbert_jax.model import heads
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.places import Place, place

SIZES = {
    "base": {},
    "small": {"hidden_size": 384, "num_heads": 6},
    "tiny": {"hidden_size": 64, "num_heads": 1, "num_layers": 4, "intermediate_size": 48},
}
# name -> mean and standard deviation of the lengths, tokens
LENGTHS = {
    "fixed_512": (512, 0),
    "fixed_8192": (8192, 0),
    "normal_256": (256, 64),
    "normal_4096": (4096, 1024),
}
LONGEST = 8192
OURS = "mmbert_jax"
# Batches that are queued on the device before one is waited for.
QUEUED = 2
MOST_BATCH_TOKENS = 1 << 20
CPU_BATCHES = (512, 8192, 65536)

# Hidden states [rows, L, D] of a batch, and for each row the numbers of the sequences that stand in it.
Encoded = tuple[list[list[int]], Any]
# Sequences, and tokens that may go through the model at once -> batch after batch, computed.
Engine = Callable[[Sequence[np.ndarray], int], Iterator[Encoded]]


def draw_sequences(lengths: str, count: int, vocab_size: int, seed: int = 0) -> list[np.ndarray]:
    """Random token ids, int32, `<bos> ... <eos>`."""
    mean, deviation = LENGTHS[lengths]
    rng = np.random.default_rng(seed)
    drawn = np.clip(rng.normal(mean, deviation, count).round(), 3, LONGEST).astype(int)
    return [
        np.concatenate([[GEMMA.bos], rng.integers(5, vocab_size, n - 2), [GEMMA.eos]]).astype(
            np.int32
        )
        for n in drawn
    ]


def our_engine(params, config: ModelConfig, dtype: str) -> Engine:
    """Packed rows."""

    def run(sequences, batch_tokens):
        queued = deque()
        for batch in plan([len(ids) for ids in sequences], config, batch_tokens):
            arrays = batch_arrays(batch, sequences, GEMMA.pad)
            hidden = heads.encode(params, config, **arrays, dtype=jnp.dtype(dtype))
            queued.append((batch.rows, hidden))
            if len(queued) > QUEUED:
                yield jax.block_until_ready(queued.popleft())
        for encoded in queued:
            yield jax.block_until_ready(encoded)

    return run


def their_engine(params, config: ModelConfig, dtype: str, attention: str, device: str) -> Engine:
    """Batches in the order of the sequences, as many as have `batch_tokens` at the longest sequence's length."""
    hf_config = ModernBertConfig(**to_hf(config, LONGEST, dtype), attn_implementation=attention)
    model = ModernBertModel(hf_config).eval().requires_grad_(False)
    prefix = "model."
    tensors = {
        name.removeprefix(prefix): torch.from_numpy(np.array(x))
        for name, x in to_theirs(params, config).items()
        if name.startswith(prefix)
    }
    model.load_state_dict(tensors, strict=True)
    model.to(device=device, dtype=getattr(torch, dtype))

    def run(sequences, batch_tokens):
        rows = max(1, batch_tokens // max(map(len, sequences)))
        with torch.inference_mode():
            for start in range(0, len(sequences), rows):
                part = sequences[start : start + rows]
                ids = np.zeros((len(part), max(map(len, part))), np.int64)
                mask = np.zeros_like(ids)
                for row, sequence in enumerate(part):
                    ids[row, : len(sequence)] = sequence
                    mask[row, : len(sequence)] = 1
                hidden = model(
                    input_ids=torch.from_numpy(ids).to(device),
                    attention_mask=torch.from_numpy(mask).to(device),
                ).last_hidden_state
                yield [[start + row] for row in range(len(part))], hidden
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def largest_batch(engine: Engine, sequences: Sequence[np.ndarray], most: int) -> int:
    """The largest of `most`, half of it, a quarter, ... tokens with which the sequences go through.

    Raises:
      UserError: not even one sequence at a time does.
    """
    batch_tokens = most
    longest = max(map(len, sequences))
    while True:
        enough = sequences[: max(1, 2 * batch_tokens // longest)]
        try:
            exhaust(engine(enough, batch_tokens))
            return batch_tokens
        except (torch.OutOfMemoryError, jax.errors.JaxRuntimeError) as error:
            out_of_memory = isinstance(error, torch.OutOfMemoryError)
            if not (out_of_memory or "RESOURCE_EXHAUSTED" in str(error)):
                raise
        if batch_tokens <= longest:
            raise UserError(f"one sequence of {longest} tokens does not fit the device's memory")
        batch_tokens //= 2


def timed(engine: Engine, sequences: Sequence[np.ndarray], batch_tokens: int) -> float:
    """Seconds until the last hidden state is there."""
    start = time.perf_counter()
    exhaust(engine(sequences, batch_tokens))
    return time.perf_counter() - start


def exhaust(batches: Iterator[Encoded]) -> None:
    for _ in batches:
        pass


def measure(
    entrants: Sequence[tuple[Engine, int]], sequences: Sequence[np.ndarray], runs: int
) -> list[list[float]]:
    """Seconds of each run of each (engine, tokens at once); they take turns, after a run that compiles."""
    for engine, batch_tokens in entrants:
        exhaust(engine(sequences, batch_tokens))
    rounds = [[timed(engine, sequences, n) for engine, n in entrants] for _ in range(runs)]
    return [list(seconds) for seconds in zip(*rounds, strict=True)]


def hidden_states(engine: Engine, sequences: Sequence[np.ndarray]) -> list[np.ndarray]:
    """float32 [tokens, D] of each sequence."""
    found: dict[int, np.ndarray] = {}
    for rows, hidden in engine(sequences, 1024):
        hidden = hidden.float().cpu().numpy() if torch.is_tensor(hidden) else np.asarray(hidden)
        for row, states in zip(rows, hidden.astype(np.float32), strict=True):
            start = 0
            for number in row:
                stop = start + len(sequences[number])
                found[number] = states[start:stop]
                start = stop
    return [found[number] for number in range(len(sequences))]


def choose_batches(
    engines: dict[str, Engine], sequences: Sequence[np.ndarray], batch_tokens: int | None
) -> list[tuple[str, Engine, int]]:
    """(name, engine, tokens at once) of all that are to be compared; ours comes first.

    On a CPU memory does not decide, and a large batch is slower, since it is padded more: `transformers` gets one
    sequence of middle length at a time, some, and the many that the protocol asks for.
    """
    chosen = []
    for name, engine in engines.items():
        if batch_tokens:
            chosen.append((name, engine, batch_tokens))
        elif jax.default_backend() == "cpu":
            sizes = (default_batch_tokens(),) if name == OURS else CPU_BATCHES
            chosen += [(name, engine, size) for size in sizes]
        else:
            longest_first = sorted(sequences, key=len, reverse=True)
            chosen.append((name, engine, largest_batch(engine, longest_first, MOST_BATCH_TOKENS)))
            torch.cuda.empty_cache()
    return chosen


def compare(lengths: str, engines: dict[str, Engine], args, vocab_size: int) -> list[dict]:
    """Results of all engines at one kind of lengths."""
    sequences = draw_sequences(lengths, args.sequences, vocab_size)
    tokens = sum(map(len, sequences))
    chosen = choose_batches(engines, sequences, args.batch_tokens)
    seconds = measure([(engine, n) for _, engine, n in chosen], sequences, args.runs)
    longest = max(map(len, sequences))
    results = []
    for (name, _, batch_tokens), of_engine in zip(chosen, seconds, strict=True):
        median = statistics.median(of_engine)
        results.append(
            {
                "lengths": lengths,
                "engine": name
                if name == OURS
                else f"{name}, {min(len(sequences), max(1, batch_tokens // longest))} at once",
                "batch_tokens": batch_tokens,
                "tokens": tokens,
                "seconds": of_engine,
                "tokens_per_second": tokens / median,
                "ours_is_faster_by": median / statistics.median(seconds[0]),
            }
        )
        print(table(results[-1:], header=False), flush=True)
    return results


def table(results: Sequence[dict], header: bool = True) -> str:
    """Markdown."""
    lines = [
        "| lengths | engine | tokens at once | tokens/s, median | slowest to fastest run | ours / it |"
    ]
    lines.append("|---|---|---:|---:|---:|---:|")
    for r in results:
        slowest, fastest = (r["tokens"] / f(r["seconds"]) for f in (max, min))
        lines.append(
            f"| {r['lengths']} | {r['engine']} | {r['batch_tokens']:,} | {r['tokens_per_second']:,.0f} |"
            f" {slowest:,.0f} to {fastest:,.0f} | {r['ours_is_faster_by']:.2f} |"
        )
    return "\n".join(lines if header else lines[2:])


def plot(results: Sequence[dict], title: str, path: Place) -> None:
    """Bars of median tokens a second, with lines from the slowest to the fastest run."""
    kinds = list(dict.fromkeys(r["lengths"] for r in results))
    engines = list(dict.fromkeys(r["engine"] for r in results))
    figure = Figure(figsize=(2 + 2 * len(kinds), 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(engines)
    for i, engine in enumerate(engines):
        of_engine = {r["lengths"]: r for r in results if r["engine"] == engine}
        at = [kinds.index(kind) + (i - (len(engines) - 1) / 2) * width for kind in of_engine]
        medians = [r["tokens_per_second"] for r in of_engine.values()]
        spread = [
            [
                m - r["tokens"] / max(r["seconds"])
                for m, r in zip(medians, of_engine.values(), strict=True)
            ],
            [
                r["tokens"] / min(r["seconds"]) - m
                for m, r in zip(medians, of_engine.values(), strict=True)
            ],
        ]
        axes.bar(at, medians, width, yerr=spread, capsize=4, label=engine)
    axes.set_xticks(range(len(kinds)), kinds)
    axes.set(ylabel="tokens/s (padding not counted)", title=title)
    axes.legend()
    with atomic_file(path, "wb") as file:
        figure.savefig(file, dpi=150)


def machine() -> dict[str, str | int]:
    """What the figures depend on."""
    device = jax.devices()[0]
    name = device.device_kind
    if device.platform == "cpu":
        cpuinfo = Path("/proc/cpuinfo")
        lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
        models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
        name = (
            f"{models[0] if models else platform.machine()}, {len(os.sched_getaffinity(0))} cores"
        )
    packages = ("jax", "flax", "torch", "transformers")
    return {"device": name, "python": platform.python_version()} | {p: version(p) for p in packages}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="examples:\n  python tools/bench/inference.py --size base --output bench\n"
        "  python tools/bench/inference.py --size base --vocab_size 32768 --lengths normal_256 --sequences 48 \\\n"
        "      --runs 5 --threads 2 --output bench    # some minutes on two cores",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument(
        "--checkpoint", help="a run folder, one checkpoint in it, or a Hugging Face folder"
    )
    model.add_argument("--size", choices=SIZES, help="random weights of this size")
    parser.add_argument(
        "--vocab_size",
        type=int,
        default=256_000,
        help="with --size (default 256000); takes memory, not time",
    )
    parser.add_argument("--lengths", choices=LENGTHS, nargs="+", default=list(LENGTHS))
    parser.add_argument("--sequences", type=int, default=4096, help="default 4096")
    parser.add_argument("--runs", type=int, default=10, help="timed runs (default 10)")
    parser.add_argument(
        "--batch_tokens",
        type=int,
        help="tokens at once, for all engines (default: the largest that fits an accelerator; on a CPU"
        " a small, a large and a very large one for transformers)",
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="default bfloat16, float32 on a CPU"
    )
    parser.add_argument("--threads", type=int, help="threads of torch on a CPU")
    parser.add_argument("--compile_cache", help="folder for compiled programs")
    parser.add_argument(
        "--output", required=True, type=place, help="folder for inference.json, .md and .png"
    )
    args = parser.parse_args()
    if min(args.sequences, args.runs) < 1:
        raise UserError("--sequences and --runs have to be at least 1")

    on_cpu = jax.default_backend() == "cpu"
    if not on_cpu and not torch.cuda.is_available():
        raise UserError(
            f"jax runs on {jax.default_backend()} and torch does not, so there is nothing to compare; set"
            " JAX_PLATFORMS=cpu, or install a torch that runs there"
        )
    use_compile_cache(args.compile_cache)
    if args.threads:
        torch.set_num_threads(args.threads)
    dtype = args.dtype or ("float32" if on_cpu else "bfloat16")
    if args.checkpoint:
        loaded = load(args.checkpoint, dtype=dtype)
        params, config = loaded.params, loaded.config
    else:
        config = ModelConfig(vocab_size=args.vocab_size, **SIZES[args.size])
        params = heads.init_params(config, seed=0)
    device = "cpu" if on_cpu else "cuda"
    engines = {OURS: our_engine(params, config, dtype)}
    attentions = ["sdpa"]
    if not on_cpu and importlib.util.find_spec("flash_attn"):
        attentions.append("flash_attention_2")
    for attention in attentions:
        name = f"transformers {attention}"
        engines[name] = their_engine(params, config, dtype, attention, device)

    few = draw_sequences("normal_256", 3, config.vocab_size)
    states = {name: hidden_states(engine, few) for name, engine in engines.items()}
    differences = {
        name: max(float(np.abs(a - b).max()) for a, b in zip(states[OURS], theirs, strict=True))
        for name, theirs in states.items()
        if name != OURS
    }
    details = machine() | {
        "date": date.today().isoformat(),
        "command": shlex.join(["python", *sys.argv]),
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "sequences": args.sequences,
        "runs": args.runs,
        "largest_difference_of_hidden_states": differences,
        "model": dataclasses.asdict(config),
        "weights": args.checkpoint or "random",
    }
    results = [r for kind in args.lengths for r in compare(kind, engines, args, config.vocab_size)]
    write(args.output, details, results)


def write(folder: Place, details: dict, results: list[dict]) -> None:
    """`inference.json`, `.md` and `.png`; prints the table."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "inference.json", details | {"results": results})
    shown = "\n".join(f"- {name}: {value}" for name, value in details.items())
    text = f"# Encoding, tokens a second\n\n{table(results)}\n\n{shown}\n"
    write_text(folder / "inference.md", text)
    plot(results, f"{details['device']}, {details['dtype']}", folder / "inference.png")
    print(f"\n{text}\nwrote {folder}/inference.json, .md and .png")


if __name__ == "__main__":
    run_main(main)
