"""The layers with a backward pass of their own, against PyTorch and complex numbers in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from mmbert_jax.model.encoder import dropout, geglu, layer_norm
from mmbert_jax.model.rope import rope_table, rotated

COMPILED_AS_USERS_DO = True

pytestmark = pytest.mark.usefixtures("each_platforms_code")
RNG = np.random.default_rng(0)


def value_and_gradients(function, *inputs, cotangent):
    """Of float32 inputs and of bfloat16 ones, with the inputs that those are."""
    for dtype in (jnp.float32, jnp.bfloat16):
        narrow = [jnp.asarray(x, dtype) for x in (*inputs, cotangent)]
        out, vjp = jax.vjp(function, *narrow[:-1])
        gradients = vjp(narrow[-1].astype(out.dtype))
        yield dtype, [np.asarray(x, np.float64) for x in narrow], (out, *gradients)


def assert_close(ours, reference, dtype):
    reference = np.asarray(reference)
    scale = np.abs(reference).max()
    tolerance = scale * (2e-6 if dtype == jnp.float32 else 2**-8)
    np.testing.assert_allclose(np.asarray(ours, np.float64), reference, rtol=0, atol=tolerance)


def test_layer_norm_is_torchs():
    x = RNG.normal(1.0, 3.0, (2, 5, 48))
    weight, cotangent = RNG.normal(size=48), RNG.normal(size=x.shape)

    def ours(x):
        return layer_norm(x, nnx.Param(jnp.asarray(weight, jnp.float32)), 1e-5, x.dtype)

    for dtype, (x_in, cotangent_in), results in value_and_gradients(ours, x, cotangent=cotangent):
        theirs = torch.tensor(x_in, requires_grad=True)
        w = torch.tensor(weight.astype(np.float32).astype(np.float64))
        out = torch.nn.functional.layer_norm(theirs, (48,), w, eps=1e-5)
        out.backward(torch.tensor(cotangent_in))
        assert results[0].dtype == results[1].dtype == dtype
        for result, reference in zip(results, (out.detach(), theirs.grad), strict=True):
            assert_close(result, reference, dtype)


def difficult_rows(rows=16, width=768):
    """Kind -> rows whose elements are noise of deviation 1, about a mean or beside outliers, or are all alike."""
    noise = np.random.default_rng(1).normal(size=(rows, width))
    first = np.arange(width)
    kinds = {f"mean {mean:g}": noise + mean for mean in (0, 30, 100, -1e4)}
    kinds["alike"] = np.repeat(np.linspace(-1e4, 1e4, rows)[:, None], width, axis=1)
    kinds["zero"] = np.zeros_like(noise)
    kinds["first element an outlier"] = noise + 1e4 * (first == 0)
    kinds["second element an outlier"] = noise - 300 * (first == 1)
    kinds["outliers everywhere"] = np.random.default_rng(2).standard_cauchy((rows, width))
    return {kind: x.astype(np.float32) for kind, x in kinds.items()}


def test_layer_norm_is_as_exact_as_torchs_for_any_mean():
    """Forward and backward, held against float64."""
    kinds = difficult_rows()
    weight, cotangent = RNG.normal(size=(2, 768)).astype(np.float32)

    @jax.jit
    @jax.vmap
    def ours(x):
        out, vjp = jax.vjp(lambda x, w: layer_norm(x, nnx.Param(w), 1e-5, x.dtype), x, weight)
        return out, *vjp(jnp.broadcast_to(cotangent, x.shape))

    def theirs(x, dtype):
        tensors = [torch.tensor(v, dtype=dtype, requires_grad=True) for v in (x, weight)]
        out = torch.nn.functional.layer_norm(tensors[0], (768,), tensors[1], eps=1e-5)
        out.backward(torch.tensor(cotangent, dtype=dtype).expand(x.shape))
        return [t.detach().double().numpy() for t in (out, *(v.grad for v in tensors))]

    for results, (kind, x) in zip(
        zip(*ours(np.stack(list(kinds.values()))), strict=True), kinds.items(), strict=True
    ):
        for name, result, exact, narrow in zip(
            ("output", "gradient", "weight's gradient"),
            results,
            theirs(x, torch.float64),
            theirs(x, torch.float32),
            strict=True,
        ):
            error, of_torch = (np.abs(np.asarray(r, np.float64) - exact) for r in (result, narrow))
            assert np.isfinite(result).all(), (kind, name)
            # Where torch's error is hardly any, by chance, a few roundings are allowed.
            roundings = 4e-7 * np.abs(exact).max()
            assert error.max() <= 2 * of_torch.max() + roundings, (kind, name)


def test_the_gradient_of_a_norms_weight_is_torchs():
    x = RNG.normal(size=(2, 5, 48)).astype(np.float32)
    weight, cotangent = RNG.normal(size=48), RNG.normal(size=x.shape)
    gradient = jax.grad(
        lambda w: (layer_norm(x, nnx.Param(w), 1e-5, jnp.float32) * cotangent).sum()
    )
    theirs = torch.tensor(weight, requires_grad=True)
    out = torch.nn.functional.layer_norm(torch.tensor(x).double(), (48,), theirs, eps=1e-5)
    out.backward(torch.tensor(cotangent))
    assert_close(gradient(jnp.asarray(weight, jnp.float32)), theirs.grad, jnp.float32)


def test_geglu_is_torchs():
    x, cotangent = RNG.normal(0, 3, (2, 5, 2, 24)), RNG.normal(size=(2, 5, 24))
    for dtype, (x_in, cotangent_in), results in value_and_gradients(geglu, x, cotangent=cotangent):
        theirs = torch.tensor(x_in, requires_grad=True)
        out = torch.nn.functional.gelu(theirs[..., 0, :]) * theirs[..., 1, :]
        out.backward(torch.tensor(cotangent_in))
        for result, reference in zip(results, (out.detach(), theirs.grad), strict=True):
            assert result.dtype == dtype
            assert_close(result, reference, dtype)


def test_queries_and_keys_are_rotated_and_values_are_not():
    """A head's halves are the real and imaginary parts of numbers that are turned by position x frequency."""
    qkv = RNG.normal(size=(2, 7, 3, 2, 16)).astype(np.float32)
    positions = np.stack([np.arange(7), [0, 1, 2, 0, 1, 0, 5000]]).astype(np.int32)
    out = rotated(jnp.asarray(qkv), rope_table(positions, 16, 10_000.0))
    turn = np.exp(1j * positions[..., None, None] * 10_000.0 ** (-np.arange(8) / 8))
    for ours, x in zip(out[:2], (qkv[:, :, 0], qkv[:, :, 1]), strict=True):
        turned = (x[..., :8] + 1j * x[..., 8:]) * turn
        expected = np.concatenate([turned.real, turned.imag], axis=-1)
        np.testing.assert_allclose(ours, expected, atol=2e-3)  # float32 angles up to 5000
    np.testing.assert_array_equal(out[2], qkv[:, :, 2])


def test_the_backward_pass_rotates_back():
    """The transpose of a linear map: <rotated(x), y> = <x, backward(y)> for any x and y."""
    x, y = RNG.normal(size=(2, 1, 6, 3, 2, 16)).astype(np.float32)
    table = rope_table(np.arange(6, dtype=np.int32)[None], 16, 100.0)
    out, vjp = jax.vjp(lambda x: jnp.stack(rotated(x, table), axis=2), jnp.asarray(x))
    assert float((out * y).sum()) == pytest.approx(
        float((x * vjp(jnp.asarray(y))[0]).sum()), rel=1e-5
    )


def test_dropout_drops_each_element_alone_and_keeps_the_mean():
    x = jnp.ones((1000, 65))
    out = np.asarray(dropout(x, 0.1, jax.random.split(jax.random.key(0), 1000)))
    kept = out > 0
    np.testing.assert_allclose(out[kept], 1 / 0.9, rtol=1e-6)
    assert kept.mean() == pytest.approx(0.9, abs=4 * 0.3 / np.sqrt(x.size))
    # Two elements come from the halves of one random word: they must not be alike, nor any others.
    correlation = np.corrcoef(kept.T) - np.eye(65)
    assert np.abs(correlation).max() < 6 / np.sqrt(1000)


def test_dropouts_gradient_goes_where_the_values_went():
    x = jnp.ones((10, 8))
    keys = jax.random.split(jax.random.key(1), 10)
    gradient = jax.grad(lambda x: dropout(x, 0.5, keys).sum())(x)
    np.testing.assert_array_equal(gradient, dropout(x, 0.5, keys))


def test_a_row_is_dropped_alike_in_any_batch():
    x = jnp.ones((6, 5, 7))
    keys = jax.random.split(jax.random.key(2), 6)
    together = np.asarray(dropout(x, 0.5, keys))
    np.testing.assert_array_equal(together[2:4], dropout(x[2:4], 0.5, keys[2:4]))
    assert len(np.unique(together, axis=0)) == 6
