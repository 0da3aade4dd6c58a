"""The layers with a backward pass of their own, against PyTorch and complex numbers in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from mmbert_jax.model.encoder import dropout, geglu, layer_norm
from mmbert_jax.model.rope import rope_table, rotated

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
    out = np.asarray(dropout(x, 0.1, jax.random.key(0)))
    kept = out > 0
    np.testing.assert_allclose(out[kept], 1 / 0.9, rtol=1e-6)
    assert kept.mean() == pytest.approx(0.9, abs=4 * 0.3 / np.sqrt(x.size))
    # Two elements come from the halves of one random word: they must not be alike, nor any others.
    correlation = np.corrcoef(kept.T) - np.eye(65)
    assert np.abs(correlation).max() < 6 / np.sqrt(1000)


def test_dropouts_gradient_goes_where_the_values_went():
    x = jnp.ones((10, 8))
    key = jax.random.key(1)
    gradient = jax.grad(lambda x: dropout(x, 0.5, key).sum())(x)
    np.testing.assert_array_equal(gradient, dropout(x, 0.5, key))
