"""Attention against a dense float64 reference that knows only the definition: same segment, within the window."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_attention import PACKINGS, dense_attention, dense_gradients, dense_mask, segments
from hypothesis import given, settings
from hypothesis import strategies as st

from mmbert_jax.kernels.attention import attention
from mmbert_jax.kernels.ranges import ranges

COMPILED_AS_USERS_DO = True

WINDOW = 64


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


def by_document(q, k, v, cotangent, segment_ids, window):
    """Dense output and gradients of one packed row of documents, each computed alone; padding stays zero."""
    results = [np.zeros_like(q) for _ in range(4)]
    for segment in range(1, segment_ids.max() + 1):
        own = np.flatnonzero(segment_ids[0] == segment)
        arrays = [x[:, own] for x in (q, k, v)]
        mask = dense_mask(np.ones((1, len(own)), int), window)
        parts = (
            dense_attention(*arrays, mask)[0],
            *dense_gradients(*arrays, mask, cotangent[:, own]),
        )
        for result, part in zip(results, parts, strict=True):
            result[:, own] = part
    return results


@pytest.mark.parametrize("window", [None, WINDOW])
@pytest.mark.parametrize(
    ("length", "lengths"),
    [
        (1, [1]),
        (128, [127, 1]),
        (192, [65, 127]),
        (257, [257]),
        (2048, [1, 254, 1025, 511, 257]),
        (8192, [1000] * 6 + [300, 1, 1700]),
    ],
)
def test_rows_of_any_length(length, lengths, window):
    rng = np.random.default_rng(length)
    segment_ids = segments(lengths, length)[None]
    arrays = rng.normal(size=(4, 1, length, 1, 8)) * (segment_ids > 0)[..., None, None]
    expected = by_document(*arrays, segment_ids, window)
    q, k, v, cotangent = (x.astype(np.float32) for x in arrays)
    out, gradients = value_and_gradients(q, k, v, segment_ids, cotangent, window)
    for ours, reference in zip((out, *gradients), expected, strict=True):
        np.testing.assert_allclose(ours, reference, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.integers(1, 150), max_size=12),
    st.sampled_from([None, 5, WINDOW]),
    st.integers(0, 99),
)
def test_random_packings(lengths, window, seed):
    length = 600
    segment_ids = segments(lengths, 12 * 150)[None, :length]
    q, k, v, cotangent = np.random.default_rng(seed).normal(size=(4, 1, length, 1, 8))
    out, gradients = value_and_gradients(
        *(x.astype(np.float32) for x in (q, k, v)), segment_ids, cotangent, window
    )
    mask = dense_mask(segment_ids, window)
    expected = (dense_attention(q, k, v, mask)[0], *dense_gradients(q, k, v, mask, cotangent))
    for ours, reference in zip((out, *gradients), expected, strict=True):
        np.testing.assert_allclose(ours, reference, atol=1e-5)


@pytest.mark.parametrize("window", [None, WINDOW])
def test_bfloat16_is_within_rounding_of_the_same_inputs(window):
    rng = np.random.default_rng(1)
    segment_ids = segments([100, 200], 320)[None]
    q, k, v, cotangent = (jnp.asarray(x, jnp.bfloat16) for x in rng.normal(size=(4, 1, 320, 2, 16)))
    out, gradients = value_and_gradients(q, k, v, segment_ids, cotangent, window)
    mask = dense_mask(segment_ids, window)
    *arrays, cotangent = (np.asarray(x, np.float64) for x in (q, k, v, cotangent))
    expected = (dense_attention(*arrays, mask)[0], *dense_gradients(*arrays, mask, cotangent))
    for ours, exact in zip((out, *gradients), expected, strict=True):
        assert ours.dtype == jnp.bfloat16
        ours = np.asarray(ours, np.float64)
        np.testing.assert_allclose(ours, exact, atol=2**-7 * np.abs(exact).max())


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
