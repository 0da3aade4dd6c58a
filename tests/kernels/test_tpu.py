"""The TPU kernels in Pallas' interpreter, against attention by its definition in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_attention import dense_attention, dense_gradients, dense_mask, segments
from hypothesis import given, settings
from hypothesis import strategies as st

from mmbert_jax.kernels import tpu
from mmbert_jax.kernels.ranges import ranges

WINDOW = 64
HALF_ULP = 2**-8  # of bfloat16, relative

# Of 1152 tokens: local layers take them in three tiles (at the row's start, inside, at its end), global layers in nine
# tiles with blocks of 512 that do not divide the row.
PACKINGS = {
    "one document": [1152],
    "all padding": [],
    "segments of one token": [1] * 300,
    "block edges and their neighbours": [127, 1, 128, 129, 255, 128, 257, 126],
    "window edges": [63, 64, 65, 66, 128, 129, 130, 384],
    "beyond a block": [511, 2, 150, 1, 400],
}


def forward_and_backward(q, k, v, d_out, lo, hi, window):
    arguments = {"window": window, "interpret": True}
    out, lse = tpu.forward(q, k, v, lo, hi, **arguments)
    return out, lse, *tpu.backward(q, k, v, out, lse, d_out, lo, hi, **arguments)


@functools.partial(jax.jit, static_argnames="window")
def value_and_gradients(q, k, v, d_out, segment_ids, window):
    seen = ranges(segment_ids, window)
    return forward_and_backward(q, k, v, d_out, seen.lo, seen.hi, window)


def random_inputs(segment_ids, heads, dtype):
    shape = (4, *segment_ids.shape, heads, 64)
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), dtype)


def dense(inputs, segment_ids, window):
    """out, lse, dq, dk, dv in float64."""
    q, k, v, d_out = np.asarray(inputs, np.float64)
    mask = dense_mask(segment_ids, window)
    scores = np.where(mask[:, None], np.einsum("bqhd,bkhd->bhqk", q, k) / 8, -np.inf)
    lse = np.log(np.exp(scores).sum(-1))
    out, _ = dense_attention(q, k, v, mask)
    return out, lse, *dense_gradients(q, k, v, mask, d_out)


def assert_equal_in_float32(segment_ids, heads, window):
    inputs = random_inputs(segment_ids, heads, jnp.float32)
    ours = value_and_gradients(*inputs, segment_ids, window)
    for x, reference in zip(ours, dense(inputs, segment_ids, window), strict=True):
        np.testing.assert_allclose(x, reference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [None, WINDOW, 100])
def test_equals_dense_float64_reference(window):
    segment_ids = np.stack([segments(lengths, 1152) for lengths in PACKINGS.values()])
    assert_equal_in_float32(segment_ids, 1, window)


@pytest.mark.parametrize(
    ("lengths", "row_length", "heads", "window"),
    [
        ([100, 28], 128, 2, WINDOW),  # no longer than a tile and its halo: as if global
        ([70, 100], 200, 3, None),  # padded to whole tiles, and to a pair of heads
        ([500, 3, 400, 100], 1024, 2, None),
    ],
)
def test_row_lengths(lengths, row_length, heads, window):
    segment_ids = np.stack([segments(lengths, row_length), segments(lengths[::-1], row_length)])
    assert_equal_in_float32(segment_ids, heads, window)


def test_long_rows():
    """8192 tokens that are eight packings of 1024 after each other: documents do not see past their ends."""
    packings = np.stack([segments([1024], 1024), segments([1, 500, 65, 300], 1024)] * 4)
    offsets = 100 * np.arange(8)[:, None]
    inputs = random_inputs(packings, 1, jnp.float32)
    row = np.where(packings > 0, packings + offsets, 0).reshape(1, 8192)
    ours = value_and_gradients(*inputs.reshape(4, 1, 8192, 1, 64), row, WINDOW)
    out, lse, *gradients = dense(inputs, packings, WINDOW)
    for x, reference in zip(ours, (out, lse.reshape(1, 1, 8192), *gradients), strict=True):
        np.testing.assert_allclose(x, reference.reshape(x.shape), rtol=1e-5, atol=1e-5)


@settings(max_examples=6, deadline=None)
@given(st.lists(st.integers(1, 300), max_size=10), st.sampled_from([None, WINDOW]))
def test_random_packings(lengths, window):
    while sum(lengths) > 640:
        lengths.pop()
    assert_equal_in_float32(segments(lengths, 640)[None], 1, window)


@pytest.mark.parametrize("window", [None, WINDOW])
def test_bfloat16_differs_by_roundings(window):
    """Of the weights and the scores' gradient on their way into a product, of each result, and of no more."""
    segment_ids = np.stack([segments(lengths, 640) for lengths in ([640], [63, 1, 64, 300], [])])
    inputs = random_inputs(segment_ids, 2, jnp.bfloat16)
    out, lse, *gradients = value_and_gradients(*inputs, segment_ids, window)

    q, k, v, d_out = np.asarray(inputs, np.float64)
    exact, exact_lse, dq, dk, dv = dense(inputs, segment_ids, window)
    _, p = dense_attention(q, k, v, dense_mask(segment_ids, window))
    dp = np.einsum("bqhd,bkhd->bhqk", d_out, v)
    ds = p * np.abs(dp - (dp * p).sum(-1, keepdims=True))
    out_error = HALF_ULP * (np.abs(exact) + np.einsum("bhqk,bkhd->bqhd", p, np.abs(v)))
    # The backward pass takes the rounded output, of which it sums out * d_out.
    ds_error = HALF_ULP * ds + p * np.einsum("bqhd,bqhd->bhq", out_error, np.abs(d_out))[..., None]
    bounds = (
        out_error,
        HALF_ULP * np.abs(dq) + np.einsum("bhqk,bkhd->bqhd", ds_error, np.abs(k)) / 8,
        HALF_ULP * np.abs(dk) + np.einsum("bhqk,bqhd->bkhd", ds_error, np.abs(q)) / 8,
        HALF_ULP * (np.abs(dv) + np.einsum("bhqk,bqhd->bkhd", p, np.abs(d_out))),
    )
    np.testing.assert_allclose(lse, exact_lse, rtol=1e-5, atol=1e-5)
    for x, reference, bound in zip((out, *gradients), (exact, dq, dk, dv), bounds, strict=True):
        assert x.dtype == jnp.bfloat16
        assert (np.abs(np.asarray(x, np.float64) - reference) <= bound + 1e-5).all()


@pytest.mark.parametrize("window", [None, WINDOW])
def test_what_no_row_of_a_tile_sees_is_not_computed(window):
    """A product with nan would be nan, were it masked or not."""
    segment_ids = segments([640, 384, 128], 1152)[None]
    inputs = random_inputs(segment_ids, 1, jnp.float32)
    broken = inputs.at[:, :, 1024:].set(jnp.nan)
    out, lse, dq, _, _ = value_and_gradients(*broken, segment_ids, window)
    exact = dense(inputs[:, :, :640], segment_ids[:, :640], window)
    for x, reference in zip((out[:, :640], lse[:, :, :640], dq[:, :640]), exact, strict=False):
        np.testing.assert_allclose(x, reference, rtol=1e-5, atol=1e-5)


def test_devices_of_a_mesh_compute_the_same():
    segment_ids = np.stack([segments([100, 156], 384), segments([384], 384)])
    inputs = random_inputs(segment_ids, 4, jnp.float32)
    seen = ranges(segment_ids, WINDOW)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "tensor"))
    matrix, ranges_of_rows = jax.P("data", None, "tensor"), jax.P("data")
    spread = jax.shard_map(
        functools.partial(forward_and_backward, window=WINDOW),
        mesh=mesh,
        in_specs=(*[matrix] * 4, *[ranges_of_rows] * 2),
        out_specs=(matrix, jax.P("data", "tensor"), *[matrix] * 3),
        check_vma=False,
    )
    for x, reference in zip(
        jax.jit(spread)(*inputs, seen.lo, seen.hi),
        dense(inputs, segment_ids, WINDOW),
        strict=True,
    ):
        assert len(x.sharding.device_set) == 4
        np.testing.assert_allclose(x, reference, rtol=1e-5, atol=1e-5)


def test_says_what_it_does_not_support():
    for length in (100, 1024, 8192):
        assert tpu.unsupported((2, length, 12, 64), jnp.bfloat16, None) is None
        assert tpu.unsupported((2, length, 12, 64), jnp.bfloat16, 64) is None
    assert "head dim 64, not 32" in tpu.unsupported((2, 1024, 12, 32), jnp.bfloat16, None)
    assert "not float16" in tpu.unsupported((2, 1024, 12, 64), jnp.float16, None)
    assert "does not fit" in tpu.unsupported((2, 65536, 12, 64), jnp.bfloat16, None)
