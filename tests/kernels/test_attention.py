"""Attention against a dense float64 reference that knows only the definition: same segment, within the window."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmbert_jax.kernels.attention import attention
from mmbert_jax.kernels.ranges import ranges

WINDOW = 64


def dense_mask(segment_ids, window):
    """[B, L, L]: what attention may see, straight from the definition. A padding token sees itself."""
    i = np.arange(segment_ids.shape[1])
    same = (segment_ids[:, :, None] == segment_ids[:, None, :]) & (segment_ids[:, :, None] > 0)
    near = np.abs(i[:, None] - i[None]) <= (window if window is not None else len(i))
    return (same & near) | np.eye(len(i), dtype=bool)


def dense_attention(q, k, v, mask):
    """Softmax attention [B, L, H, D] in float64."""
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
    scores = np.where(mask[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhqk,bkhd->bqhd", weights, v), weights


def dense_gradients(q, k, v, mask, cotangent):
    """Gradients of sum(out * cotangent), written out by hand in float64."""
    _, p = dense_attention(q, k, v, mask)
    dv = np.einsum("bhqk,bqhd->bkhd", p, cotangent)
    dp = np.einsum("bqhd,bkhd->bhqk", cotangent, v)
    ds = p * (dp - (dp * p).sum(-1, keepdims=True)) / np.sqrt(q.shape[-1])
    return np.einsum("bhqk,bkhd->bqhd", ds, k), np.einsum("bhqk,bqhd->bkhd", ds, q), dv


def segments(lengths, row_length):
    row = np.zeros(row_length, np.int32)
    np.put(row, np.arange(sum(lengths)), np.repeat(np.arange(1, len(lengths) + 1), lengths))
    return row


PACKINGS = {
    "one document": [700],
    "all padding": [],
    "segments of one token": [1] * 130,
    "block edges and their neighbours": [63, 1, 64, 65, 127, 128, 129],
    "window edges": [64, 65, 66, 129, 130, 131],
    "beyond a global block": [511, 2, 150],
}


@functools.partial(jax.jit, static_argnames="window")
def value_and_gradients(q, k, v, segment_ids, cotangent, window):
    def loss(q, k, v):
        out = attention(q, k, v, ranges(segment_ids, window))
        return (out * cotangent).sum(), out

    gradients, out = jax.grad(loss, (0, 1, 2), has_aux=True)(q, k, v)
    return out, gradients


@pytest.mark.parametrize("window", [None, WINDOW])
def test_equals_dense_float64_reference(window):
    rng = np.random.default_rng(0)
    segment_ids = np.stack([segments(lengths, 700) for lengths in PACKINGS.values()])
    q, k, v, cotangent = rng.normal(size=(4, len(PACKINGS), 700, 2, 16))
    out, gradients = value_and_gradients(
        *(x.astype(np.float32) for x in (q, k, v)), segment_ids, cotangent, window
    )
    mask = dense_mask(segment_ids, window)
    np.testing.assert_allclose(out, dense_attention(q, k, v, mask)[0], atol=1e-5)
    for ours, reference in zip(gradients, dense_gradients(q, k, v, mask, cotangent), strict=True):
        np.testing.assert_allclose(ours, reference, atol=1e-5)


def test_bfloat16_is_within_rounding_of_the_same_inputs():
    rng = np.random.default_rng(1)
    segment_ids = segments([100, 200], 320)[None]
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in rng.normal(size=(3, 1, 320, 2, 16)))
    out = attention(q, k, v, ranges(segment_ids, WINDOW))
    assert out.dtype == jnp.bfloat16
    exact, _ = dense_attention(
        *(np.asarray(x, np.float64) for x in (q, k, v)), dense_mask(segment_ids, WINDOW)
    )
    np.testing.assert_allclose(np.asarray(out, np.float64), exact, atol=2**-7 * np.abs(exact).max())


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=12), st.sampled_from([None, 1, 64]))
def test_ranges_are_the_mask(lengths, window):
    """lo and hi describe the dense mask exactly and are monotone, which tiles of a kernel rely on."""
    segment_ids = segments(lengths, 90 * 12)[None]
    r = ranges(segment_ids, window)
    lo, hi = np.asarray(r.lo)[0], np.asarray(r.hi)[0]
    j = np.arange(segment_ids.shape[1])
    np.testing.assert_array_equal(
        (j >= lo[:, None]) & (j < hi[:, None]), dense_mask(segment_ids, window)[0]
    )
    assert (np.diff(lo) >= 0).all()
    assert (np.diff(hi) >= 0).all()


def largest_intermediate(window, length):
    """Elements of the largest array in the program of a forward and backward pass."""
    q = jax.ShapeDtypeStruct((1, length, 1, 16), jnp.float32)
    s = jax.ShapeDtypeStruct((1, length), jnp.int32)
    jaxpr = jax.make_jaxpr(functools.partial(value_and_gradients, window=window))(q, q, q, s, q)
    sizes = []

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            sizes.extend(variable.aval.size for variable in equation.outvars)
            for parameter in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns")):
                inner = getattr(parameter, "jaxpr", parameter)
                if hasattr(inner, "eqns"):
                    walk(inner)

    walk(jaxpr.jaxpr)
    return max(sizes)


@pytest.mark.parametrize("window", [None, WINDOW])
def test_memory_is_linear_in_the_row_length(window):
    short, long = (largest_intermediate(window, length) for length in (4096, 8192))
    assert long <= 2 * short
    assert long < 8192 * 8192 / 8
