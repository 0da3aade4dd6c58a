"""Compares speed on a CPU with `transformers` (SDPA attention): the same weights, float32, the same number of threads.

Encoder forward on rows of one length, encoder forward on documents of different lengths (padded for `transformers`,
packed into one row here), and a training step. The two sides take turns; medians and their ratio are printed.

A training step of `transformers` is ModernBertForMaskedLM with labels at the masked positions, backward, and a step of
torch.optim.AdamW. Ours is the step that training runs: masking, dropout, loss at the masked positions, StableAdamW; its
loss holds the logits of all classes at once, as theirs does.

The last column is the ratio that would be reached if our side did nothing but its multiplications and additions
(`mmbert_jax/flops.py`), at the rate of a large float32 matrix product, which is measured first.
"""

import argparse
import datetime
import functools
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from transformers import ModernBertConfig, ModernBertForMaskedLM

from mmbert_jax.config_file import load
from mmbert_jax.errors import UserError, run_main
from mmbert_jax.files import check_file, write_json
from mmbert_jax.flops import forward_flops_per_token, step_flops_per_token
from mmbert_jax.hf.config import to_hf
from mmbert_jax.hf.names import to_theirs
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.model.heads import encode, init_params
from mmbert_jax.model.masking import num_targets
from mmbert_jax.model.row_keys import in_words
from mmbert_jax.parallel.mesh import make_mesh
from mmbert_jax.places import place
from mmbert_jax.step import compile_train_step, init_state

# Packed rows are a multiple of this.
_ROW_MULTIPLE = 256
_LEARNING_RATE = 1e-4
# Hidden states are of the order of 1; float32 sums over 8192 keys leave differences of this size.
_TOLERANCE = 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  JAX_PLATFORMS=cpu python tools/bench/cpu.py --output docs/benchmarks/cpu.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=place, help="JSON file to write")
    parser.add_argument("--threads", type=int, default=2, help="of torch (default 2)")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each (default 3)")
    parser.add_argument(
        "--encoder",
        nargs="*",
        default=["base:512x4", "base:8192x1"],
        metavar="SIZE:LENGTHxROWS",
        help="rows of one length (default base:512x4 base:8192x1)",
    )
    parser.add_argument(
        "--documents",
        nargs="*",
        default=["base:256,64x32", "base:4096,1024x3"],
        metavar="SIZE:MEAN,DEVIATIONxCOUNT",
        help="documents of normally distributed lengths (default base:256,64x32 base:4096,1024x3)",
    )
    parser.add_argument(
        "--train",
        nargs="*",
        default=["small:1024x1", "base:1024x1"],
        metavar="SIZE:LENGTHxROWS",
        help="training steps, 30%% masked (default small:1024x1 base:1024x1)",
    )
    arguments = parser.parse_args()
    if arguments.output:
        check_file(arguments.output)
    torch.set_num_threads(arguments.threads)

    jobs = [
        *((compare_encoder, spec, functools.partial(uniform, spec)) for spec in arguments.encoder),
        *((compare_encoder, spec, functools.partial(normal, spec)) for spec in arguments.documents),
        *((compare_training, spec, None) for spec in arguments.train),
    ]
    peak = matmul_rate()
    print(f"large matrix product: {peak / 1e9:.0f} GFLOP/s")
    results = []
    print(f"{'tokens a second':38} {'ours':>10} {'theirs':>10} {'ratio':>7} {'at most':>8}")
    for compare, spec, lengths in jobs:
        size, _, rest = spec.partition(":")
        result = compare(size, rest, lengths, arguments.repeats)
        result["name"] = f"{'training step' if lengths is None else 'encoder'} {spec}"
        result["ratio"] = result["ours"] / result["theirs"]
        result["ratio_at_most"] = peak / result["flops_per_token"] / result["theirs"]
        results.append(result)
        print(
            f"{result['name']:38} {result['ours']:10,.0f} {result['theirs']:10,.0f} {result['ratio']:7.2f}"
            f" {result['ratio_at_most']:8.2f}",
            flush=True,
        )
        if arguments.output:  # after each, since the whole takes long
            report = machine(arguments) | {"matmul_flops": peak, "results": results}
            write_json(arguments.output, report)


def matmul_rate(repeats: int = 15) -> float:
    """FLOP/s of a float32 product of the model's size, the faster of jax's and torch's median."""
    a, b = (np.ones(shape, np.float32) for shape in ((2048, 768), (768, 2304)))
    x, y = torch.from_numpy(a), torch.from_numpy(b)
    product = jax.jit(jnp.matmul).lower(a, b).compile()
    seconds = take_turns(
        repeats, lambda: product(a, b).block_until_ready(), lambda: torch.matmul(x, y)
    )
    return 2 * 2048 * 768 * 2304 / min(map(statistics.median, seconds))


def machine(arguments) -> dict:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "torch_threads": arguments.threads,
        "repeats": arguments.repeats,
        "jax": jax.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def two_numbers(text: str) -> tuple[int, int]:
    try:
        first, second = map(int, text.split("x"))
    except ValueError as error:
        raise UserError(f"{text!r} is not LENGTHxROWS") from error
    return first, second


def uniform(spec: str) -> list[int]:
    length, rows = two_numbers(spec.partition(":")[2])
    return [length] * rows


def normal(spec: str) -> list[int]:
    distribution, _, count = spec.partition(":")[2].partition("x")
    try:
        mean, deviation = map(float, distribution.split(","))
        drawn = np.random.default_rng(0).normal(mean, deviation, int(count))
    except ValueError as error:
        raise UserError(f"{spec!r} is not SIZE:MEAN,DEVIATIONxCOUNT") from error
    return [max(int(length), 2) for length in drawn]


def models(size: str, length: int):
    """The training config of a size, its parameters, and the same model in `transformers`."""
    config = load(f"{Path(__file__).resolve().parents[2] / 'configs/phase1.py'}:{size}")
    model_config = ModelConfig.from_config(config.model)
    params = init_params(model_config, seed=0)
    fields = to_hf(model_config, max(length, 8192), "float32")
    fields.pop("torch_dtype", None)
    theirs = ModernBertForMaskedLM(
        ModernBertConfig(**fields, attn_implementation="sdpa"),
    )
    tensors = {
        name: torch.from_numpy(x.copy()) for name, x in to_theirs(params, model_config).items()
    }
    missing, surplus = theirs.load_state_dict(tensors, strict=False)
    if surplus or set(missing) - {"decoder.weight"}:  # tied to the embedding
        raise RuntimeError(f"the weights do not fit: missing {missing}, surplus {surplus}")
    return config, model_config, params, theirs


def take_turns(repeats: int, *functions: Callable[[], None]) -> list[list[float]]:
    """Seconds of every run of each function, after one run that is not counted."""
    for function in functions:
        function()
    seconds = [[] for _ in functions]
    for _ in range(repeats):
        for function, times in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
    return seconds


def rates(tokens: int, seconds: list[list[float]]) -> dict:
    ours, theirs = (tokens / statistics.median(times) for times in seconds)
    return {"tokens": tokens, "ours": ours, "theirs": theirs, "seconds": seconds}


def compare_encoder(size: str, _, make_lengths, repeats: int) -> dict:
    """Tokens a second of hidden states, padding not counted, after a check that both sides give the same."""
    lengths = make_lengths()
    _, config, params, theirs = models(size, max(lengths))
    rng = np.random.default_rng(1)
    documents = [rng.integers(5, config.vocab_size, n, dtype=np.int32) for n in lengths]

    longest, padded = max(lengths), min(lengths) < max(lengths)
    tokens = np.zeros((len(lengths), longest), np.int64)
    for row, document in zip(tokens, documents, strict=True):
        row[: len(document)] = document
    mask = torch.from_numpy((tokens > 0).astype(np.int64)) if padded else None
    encoder = theirs.model.eval()

    def run_theirs():
        with torch.inference_mode():
            return encoder(torch.from_numpy(tokens), attention_mask=mask).last_hidden_state.numpy()

    if padded:  # all documents in one row
        row_length = -(-sum(lengths) // _ROW_MULTIPLE) * _ROW_MULTIPLE
        fill = row_length - sum(lengths)
        row = np.concatenate([*documents, np.zeros(fill, np.int32)])[None]
        segment_ids = np.repeat([*range(1, len(lengths) + 1), 0], [*lengths, fill])[None]
        positions = np.concatenate([*map(np.arange, lengths), np.zeros(fill)])[None]
    else:
        row = tokens
        segment_ids = np.ones_like(tokens)
        positions = np.broadcast_to(np.arange(longest), tokens.shape)
    packed = [np.asarray(x, np.int32) for x in (row, segment_ids, positions)]

    def run_ours():
        return np.asarray(encode(params, config, *packed))

    ours, reference = run_ours().reshape(-1, config.hidden_size), run_theirs()
    ours = ours[segment_ids.reshape(-1) > 0]
    reference = reference[tokens > 0]
    difference = float(np.abs(ours - reference).max())
    if difference > _TOLERANCE:
        raise RuntimeError(f"hidden states differ by {difference:.1e}")
    flops = forward_flops_per_token(config, 0.0, segment_ids)
    return rates(sum(lengths), take_turns(repeats, run_ours, run_theirs)) | {
        "flops_per_token": flops["dense layers"] + flops["attention"],
        "largest_difference": difference,
    }


def compare_training(size: str, shape: str, _, repeats: int) -> dict:
    length, rows = two_numbers(shape)
    config, model_config, _, theirs = models(size, length)
    config.dtype = "float32"
    config.data.row_length = length
    config.train.batch_rows = config.train.microbatch_rows = rows
    config.train.loss_chunk = model_config.vocab_size
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    state = init_state(config, mesh)
    step = compile_train_step(config, mesh)

    rng = np.random.default_rng(1)
    tokens = rng.integers(5, model_config.vocab_size, (rows, length), dtype=np.int32)
    batch = {
        "tokens": tokens[None],
        "segment_ids": np.ones_like(tokens)[None],
        "positions": np.broadcast_to(np.arange(length, dtype=np.int32), (1, rows, length)),
    }

    def run_ours():
        nonlocal state
        state, metrics = step(
            state, batch, np.int32(1), in_words(0), np.float32(_LEARNING_RATE), np.uint32(0)
        )
        return jax.block_until_ready(metrics)

    theirs.train()
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=_LEARNING_RATE)
    inputs, labels = torch.from_numpy(tokens).long(), torch.full((rows, length), -100)
    for i in range(rows):
        targets = rng.permutation(length)[: num_targets(config.mask.ratio, length)]
        labels[i, targets] = inputs[i, targets]
        inputs[i, targets] = 4  # <mask>

    def run_theirs():
        optimizer.zero_grad()
        theirs(inputs, labels=labels).loss.backward()
        optimizer.step()

    return rates(rows * length, take_turns(repeats, run_ours, run_theirs)) | {
        "flops_per_token": step_flops_per_token(
            model_config, config.mask.ratio, batch["segment_ids"][0]
        )
    }


if __name__ == "__main__":
    run_main(main)
