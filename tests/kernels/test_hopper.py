"""The Hopper kernels against attention by its definition in float64, in Pallas' GPU interpreter.

On a machine with a Hopper GPU they run on it: `JAX_PLATFORMS=cuda,cpu pytest tests/kernels/test_hopper.py`.

What is compared differs by no more than the roundings to bfloat16 that the kernels make: of the weights and of the
gradient of the scores on their way into a product, and of each result.
"""

import functools

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np
import pytest
from dense_attention import dense_attention, dense_gradients, dense_mask, segments
from hypothesis import given, settings
from hypothesis import strategies as st

from mmbert_jax.kernels import hopper
from mmbert_jax.kernels.ranges import ranges

ON_CHIP = jax.default_backend() == "gpu"
WINDOW = 64
HALF_ULP = 2**-8  # of bfloat16, relative

PACKINGS = {
    "one document": [256],
    "all padding": [],
    "segments of one token": [1] * 130,
    "block edges and their neighbours": [63, 1, 64, 65, 63],
    "window edges": [64, 65, 66],
}


@functools.partial(jax.jit, static_argnames=("window", "detect_races"))
def value_and_gradients(q, k, v, d_out, segment_ids, window, detect_races=False):
    seen = ranges(segment_ids, window)
    interpreter = plgpu.InterpretGPUParams(detect_races=detect_races)
    how = {"window": window, "interpret": False if ON_CHIP else interpreter}
    out, lse = hopper.forward(q, k, v, seen.lo, seen.hi, **how)
    gradients = hopper.backward(q, k, v, out, lse, d_out, seen.lo, seen.hi, **how)
    return out, lse, gradients


def random_inputs(segment_ids, heads):
    shape = (4, *segment_ids.shape, heads, 64)
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.bfloat16)


def assert_within_rounding(inputs, segment_ids, window, out, lse, gradients):
    q, k, v, d_out = np.asarray(inputs, np.float64)
    mask = dense_mask(segment_ids, window)
    exact, p = dense_attention(q, k, v, mask)
    dq, dk, dv = dense_gradients(q, k, v, mask, d_out)
    scale = 1 / np.sqrt(q.shape[-1])

    dp = np.einsum("bqhd,bkhd->bhqk", d_out, v)
    ds = p * np.abs(dp - (dp * p).sum(-1, keepdims=True))
    out_error = HALF_ULP * (np.abs(exact) + np.einsum("bhqk,bkhd->bqhd", p, np.abs(v)))
    # The backward pass takes the rounded output, of which it sums out * d_out.
    ds_error = HALF_ULP * ds + p * np.einsum("bqhd,bqhd->bhq", out_error, np.abs(d_out))[..., None]
    dq_error = HALF_ULP * np.abs(dq) + scale * np.einsum("bhqk,bkhd->bqhd", ds_error, np.abs(k))
    dk_error = HALF_ULP * np.abs(dk) + scale * np.einsum("bhqk,bqhd->bkhd", ds_error, np.abs(q))
    dv_error = HALF_ULP * (np.abs(dv) + np.einsum("bhqk,bqhd->bkhd", p, np.abs(d_out)))

    scores = np.where(mask[:, None], np.einsum("bqhd,bkhd->bhqk", q, k) * scale, -np.inf)
    exact_lse = np.log(np.exp(scores).sum(-1))
    np.testing.assert_allclose(lse, exact_lse, rtol=1e-5, atol=1e-5)
    for ours, reference, bound in zip(
        (out, *gradients),
        (exact, dq, dk, dv),
        (out_error, dq_error, dk_error, dv_error),
        strict=True,
    ):
        assert ours.dtype == jnp.bfloat16
        error = np.abs(np.asarray(ours, np.float64) - reference)
        assert (error <= bound + 1e-5).all(), f"{(error / (bound + 1e-5)).max()} of the bound"


@pytest.mark.parametrize("window", [None, WINDOW])
def test_equals_dense_float64_reference(window):
    segment_ids = np.stack([segments(lengths, 256) for lengths in PACKINGS.values()])
    inputs = random_inputs(segment_ids, heads=1)
    results = value_and_gradients(*inputs, segment_ids, window)
    assert_within_rounding(inputs, segment_ids, window, *results)


def test_batch_and_heads():
    segment_ids = np.stack([segments([128], 128), segments([30, 70], 128)])
    inputs = random_inputs(segment_ids, heads=2)
    assert_within_rounding(
        inputs, segment_ids, None, *value_and_gradients(*inputs, segment_ids, None)
    )


@pytest.mark.parametrize(("lengths", "row_length"), [([70, 100], 200), ([500, 3, 400, 100], 1024)])
def test_row_lengths(lengths, row_length):
    """Rows that are padded to whole tiles, and rows of many tiles."""
    segment_ids = segments(lengths, row_length)[None]
    inputs = random_inputs(segment_ids, heads=1)
    results = value_and_gradients(*inputs, segment_ids, WINDOW)
    assert_within_rounding(inputs, segment_ids, WINDOW, *results)


def test_slots_are_used_again_without_races(capfd):
    """A document of more blocks than a ring has slots; none is filled while it is read, or read before it is full.

    The interpreter's race detector sees loads, stores and copies, but not what wgmma reads (jax 0.11.2); the values do.
    """
    segment_ids = segments([640], 640)[None]
    inputs = random_inputs(segment_ids, heads=1)
    results = value_and_gradients(*inputs, segment_ids, None, detect_races=True)
    assert_within_rounding(inputs, segment_ids, None, *results)
    assert "RACE DETECTED" not in capfd.readouterr().out


@settings(max_examples=4, deadline=None)
@given(st.lists(st.integers(1, 120), max_size=8), st.sampled_from([None, WINDOW]))
def test_random_packings(lengths, window):
    while sum(lengths) > 256:
        lengths.pop()
    segment_ids = segments(lengths, 256)[None]
    inputs = random_inputs(segment_ids, heads=1)
    results = value_and_gradients(*inputs, segment_ids, window)
    assert_within_rounding(inputs, segment_ids, window, *results)


def test_large_scores_do_not_overflow():
    """Weights of one key each: scores of some hundred, of which the exponential is no float32."""
    segment_ids = segments([100, 28], 128)[None]
    q, k, v, d_out = random_inputs(segment_ids, heads=1)
    out, lse, gradients = value_and_gradients(q * 32, k * 32, v, d_out, segment_ids, None)
    assert lse.max() > 200
    assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in (out, *gradients))


def test_says_what_it_does_not_support():
    assert hopper.unsupported((2, 1000, 12, 64), jnp.bfloat16, 64) is None
    assert "head dim 64, not 32" in hopper.unsupported((2, 1024, 12, 32), jnp.bfloat16, None)
    assert "bfloat16, not float32" in hopper.unsupported((2, 1024, 12, 64), jnp.float32, None)
