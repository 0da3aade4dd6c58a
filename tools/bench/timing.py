"""Timing on a device, shared by the benchmarks beside this file."""

import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

# Calls in one program, so that a short kernel is not timed together with its launch.
CALLS = 10


def time_of(function: Callable, inputs: tuple, repeats: int) -> float:
    """Median seconds of one call of a jittable function; every call waits for the one before."""

    function = jax.jit(function)  # so that it is traced and lowered once, not once a call

    def calls(*inputs):
        used = jnp.float32(0)
        for _ in range(CALLS):
            # One number of every result is used, and only behind the barrier: no call can be dropped or cut down.
            inputs, results = jax.lax.optimization_barrier((inputs, function(*inputs)))
            used += sum(x.ravel()[0].astype(jnp.float32) for x in jax.tree.leaves(results))
        return used

    compiled = jax.jit(calls).lower(*inputs).compile()
    jax.block_until_ready(compiled(*inputs))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*inputs))
        seconds.append((time.perf_counter() - start) / CALLS)
    return statistics.median(seconds)


def matmul_peak(dtype) -> float:
    """TFLOP/s of a large square matrix product."""
    n = 8192 if jax.default_backend() != "cpu" else 1024
    a = jax.random.normal(jax.random.key(0), (n, n), dtype)
    return 2 * n**3 / time_of(lambda a: a @ a, (a,), repeats=5) / 1e12
