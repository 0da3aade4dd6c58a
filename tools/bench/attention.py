"""Times attention: ours beside jax.nn's, tokamax's and PyTorch's, with the same mask, after a check of ours.

Every case is global or local (|i - j| <= 64) attention over rows of one length, each row one document or packed with
several. `useful` TFLOP/s count scores that the mask leaves: 4 H D of them a pair of query and key forward, 10 backward.
`share` is useful TFLOP/s over those of a large matrix product in the same dtype, measured here.
"""

import argparse
import dataclasses
import functools
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from timing import CALLS, matmul_peak, time_of

from mmbert_jax.errors import run_main
from mmbert_jax.files import check_file, write_json
from mmbert_jax.kernels.attention import attention, implementation_for
from mmbert_jax.kernels.ranges import Ranges, ranges
from mmbert_jax.places import place


@dataclasses.dataclass(frozen=True)
class Case:
    """rows x length tokens in documents of `document` tokens; window None is global."""

    length: int
    rows: int
    document: int
    window: int | None

    def __str__(self):
        layer = "global" if self.window is None else "local"
        packing = (
            "one document" if self.document == self.length else f"documents of {self.document}"
        )
        return f"{layer} {self.rows} x {self.length}, {packing}"

    def segment_ids(self) -> np.ndarray:
        row = np.arange(self.length, dtype=np.int32) // self.document + 1
        return np.broadcast_to(row, (self.rows, self.length)).copy()

    def pairs(self) -> int:
        """Pairs of query and key that see each other, of one head."""
        r = ranges(jnp.asarray(self.segment_ids()[:1]), self.window)
        return self.rows * int((r.hi - r.lo).sum())

    def mask(self) -> jax.Array:
        """bool [1, 1, L, L]: rows are packed alike."""
        r = ranges(jnp.asarray(self.segment_ids()[:1]), self.window)
        j = jnp.arange(self.length)
        return ((j >= r.lo[..., None]) & (j < r.hi[..., None]))[:, None]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="examples:\n  python tools/bench/attention.py --output attention.json\n"
        "  JAX_PLATFORMS=cpu python tools/bench/attention.py --dtype float32 --lengths 256 512 \\\n"
        "      --document 128 --tokens 512 --heads 2 --repeats 2",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 8192])
    parser.add_argument(
        "--document",
        type=int,
        default=1024,
        help="tokens of a document in packed rows; rows no longer than that are packed with quarters of it",
    )
    parser.add_argument("--tokens", type=int, default=32_768, help="of a batch (default 32768)")
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--head_dim", type=int, default=64)
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--implementations",
        nargs="+",
        metavar="NAME",
        help='as the table names them, such as "jax.nn cudnn" (default: all that are installed)',
    )
    parser.add_argument("--output", type=place, help="JSON file to write")
    arguments = parser.parse_args()
    if arguments.output:
        check_file(arguments.output)

    dtype, device = jnp.dtype(arguments.dtype), jax.devices()[0]
    peak = matmul_peak(dtype)
    print(f"{device.device_kind}, jax {jax.__version__}; {dtype.name} matmul {peak:.3g} TFLOP/s")
    results = []
    for case in cases(arguments):
        shape = (case.rows, case.length, arguments.heads, arguments.head_dim)
        name, reason = implementation_for(device, shape, dtype, case.window)
        print(f"\n{case}: ours is {name} ({reason})")
        errors = check(case, arguments.heads, arguments.head_dim, dtype)
        print(
            "  largest error / largest value, out dq dk dv: " + " ".join(f"{e:.1e}" for e in errors)
        )
        print(f"  {'':22} {'forward':>24} {'forward + backward':>24} {'backward':>20}")
        record = dataclasses.asdict(case) | {"implementation": name, "errors": errors, "times": {}}
        for label, seconds in measure(case, shape, dtype, arguments):
            record["times"][label] = seconds
            print(f"  {label:22} " + describe(seconds, shape, case.pairs(), peak), flush=True)
        results.append(record)
        if arguments.output:
            summary = {
                "device": device.device_kind,
                "jax": jax.__version__,
                "dtype": dtype.name,
                "matmul_tflops": peak,
                "heads": arguments.heads,
                "head_dim": arguments.head_dim,
                "cases": results,
            }
            write_json(arguments.output, summary)


def cases(arguments) -> list[Case]:
    found = []
    for length in arguments.lengths:
        packed = arguments.document if length > arguments.document else arguments.document // 4
        for window in (None, arguments.window):
            for document in (length, packed):
                rows = max(arguments.tokens // length, 1)
                found.append(Case(length, rows, document, window))
    return found


def describe(seconds, shape, pairs: int, peak: float) -> str:
    """Milliseconds, useful TFLOP/s and their share of the peak; or why there are none."""
    if isinstance(seconds, str):
        return seconds
    forward, both = seconds
    work = shape[2] * shape[3] * pairs
    parts = [(forward, 4 * work), (both, 14 * work), (both and both - forward, 10 * work)]
    columns = []
    for time_, flops in parts:
        if not time_ or time_ <= 0:
            columns.append(f"{'':24}")
            continue
        rate = flops / time_ / 1e12
        columns.append(f"{time_ * 1e3:9.3f} ms {rate:6.3g} {rate / peak:5.0%}")
    return " ".join(columns)


def arrays(shape, dtype) -> list[jax.Array]:
    """q, k, v and a cotangent."""
    keys = jax.random.split(jax.random.key(0), 4)
    return [jax.random.normal(key, shape, dtype) for key in keys]


def value_and_gradients(function: Callable, q, k, v, cotangent):
    out, vjp = jax.vjp(function, q, k, v)
    return out, *vjp(cotangent)


def check(case: Case, heads: int, head_dim: int, dtype) -> list[float]:
    """Ours against dense attention in float32 from the same inputs, one row of `case`, one head at a time."""
    inputs = arrays((1, case.length, heads, head_dim), dtype)
    r = ranges(jnp.asarray(case.segment_ids()[:1]), case.window)
    ours = jax.jit(functools.partial(value_and_gradients, lambda q, k, v: attention(q, k, v, r)))
    mask = case.mask()[0, 0]

    def dense(q, k, v):  # [L, D]
        scores = jnp.einsum("qd,kd->qk", q, k, precision="highest") / head_dim**0.5
        p = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf))
        return jnp.einsum("qk,kd->qd", p, v, precision="highest")

    def one_head(x):
        return value_and_gradients(dense, *x)

    by_head = [x[0].swapaxes(0, 1).astype(jnp.float32) for x in inputs]
    expected = jax.jit(lambda *x: jax.lax.map(one_head, x))(*by_head)
    errors = []
    for a, b in zip(ours(*inputs), expected, strict=True):
        b = np.asarray(b).swapaxes(0, 1)
        error = np.abs(np.asarray(a[0], np.float32) - b).max() / np.abs(b).max()
        errors.append(float(error))
    limit = 2**-6 if dtype == jnp.bfloat16 else 1e-5
    if max(errors) > limit:
        raise SystemExit(f"{case}: errors {errors} are above {limit:.1e}")
    return errors


def measure(case: Case, shape, dtype, arguments):
    """Yields (implementation, (seconds forward, seconds forward and backward) or why it cannot be timed)."""
    inputs = arrays(shape, dtype)
    wanted, repeats = arguments.implementations, arguments.repeats
    for label, function in jax_implementations(case):
        if wanted and label not in wanted:
            continue
        try:
            both = functools.partial(value_and_gradients, function)
            yield (
                label,
                (
                    time_of(lambda q, k, v, _, f=function: f(q, k, v), tuple(inputs), repeats),
                    time_of(both, tuple(inputs), repeats),
                ),
            )
        except Exception as error:  # another library's refusal is a result, too
            if label.startswith("ours"):
                raise
            yield label, f"- ({type(error).__name__}: {str(error).splitlines()[0][:90]})"
    del inputs
    yield from torch_implementations(case, shape, dtype, repeats, wanted)


def jax_implementations(case: Case):
    r = ranges(jnp.asarray(case.segment_ids()), case.window)
    plain = case.window is None and case.document == case.length
    mask = None if plain else case.mask()

    def ours(implementation):
        return lambda q, k, v: attention(
            q, k, v, Ranges(r.lo, r.hi, case.window), implementation=implementation
        )

    yield "ours", ours(None)
    yield "ours, xla", ours("xla")
    for name in ("xla", "cudnn") if jax.default_backend() == "gpu" else ("xla",):
        yield (
            f"jax.nn {name}",
            functools.partial(jax.nn.dot_product_attention, mask=mask, implementation=name),
        )
    try:
        import tokamax
    except ImportError:
        return
    for name in ("mosaic", "triton") if jax.default_backend() == "gpu" else ("mosaic",):
        yield (
            f"tokamax {name}",
            functools.partial(tokamax.dot_product_attention, mask=mask, implementation=name),
        )


def torch_implementations(case: Case, shape, dtype, repeats: int, wanted: list[str] | None):
    names = ["torch SDPA", "torch FlexAttention"]
    names = [name for name in names if not wanted or name in wanted]
    if not names:
        return
    try:
        import torch
    except ImportError:
        return
    from torch.nn.attention import flex_attention as flex

    cuda = torch.cuda.is_available()
    if jax.default_backend() == "gpu" and not cuda:
        return
    device = "cuda" if cuda else "cpu"
    batch, length, heads, depth = shape
    q, k, v, cotangent = (
        torch.randn(batch, heads, length, depth, device=device, dtype=getattr(torch, dtype.name))
        for _ in range(4)
    )
    document = torch.arange(length, device=device) // case.document

    def seen(_b, _h, i, j):
        same = document[i] == document[j]
        return same & ((i - j).abs() <= case.window) if case.window else same

    i = torch.arange(length, device=device)
    plain = case.window is None and case.document == case.length
    mask = None if plain else seen(0, 0, i[:, None], i[None])

    def sdpa(q, k, v):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    functions = {"torch SDPA": sdpa}
    if cuda and "torch FlexAttention" in names:
        blocks = flex.create_block_mask(seen, None, None, length, length, device=device)
        compiled = torch.compile(flex.flex_attention)
        functions["torch FlexAttention"] = functools.partial(compiled, block_mask=blocks)

    def seconds(run) -> float:
        run()
        times = []
        for _ in range(repeats):
            if cuda:
                torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(CALLS):
                run()
            if cuda:
                torch.cuda.synchronize()
            times.append((time.perf_counter() - start) / CALLS)
        return statistics.median(times)

    for label in [name for name in names if name in functions]:
        function = functions[label]

        def both(function=function):
            leaves = [x.detach().requires_grad_() for x in (q, k, v)]
            torch.autograd.grad(function(*leaves), leaves, cotangent)

        try:
            with torch.no_grad():
                forward = seconds(lambda function=function: function(q, k, v))
            yield label, (forward, seconds(both))
        except Exception as error:  # another library's refusal is a result, too
            yield label, f"- ({type(error).__name__}: {str(error).splitlines()[0][:90]})"


if __name__ == "__main__":
    run_main(main)
