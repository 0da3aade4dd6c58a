"""The chunked loss against cross-entropy over all logits, in float64 and by PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import NamedSharding, PartitionSpec

from mmbert_jax.axes import BATCH_AXES
from mmbert_jax.kernels.mlm_loss import chunks_of, token_losses
from mmbert_jax.parallel.mesh import make_mesh

COMPILED_AS_USERS_DO = True

N, D, V = 50, 24, 360

pytestmark = pytest.mark.usefixtures("each_platforms_code")


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    hidden, embedding = rng.normal(size=(N, D)), rng.normal(size=(V, D))
    # A cotangent that differs from token to token, negative and zero too: a loss is not always a mean.
    cotangent = rng.normal(size=N) * (rng.random(N) > 0.2)
    return hidden, embedding, rng.normal(size=V), rng.integers(0, V, N), cotangent


def by_torch(hidden, embedding, bias, labels, cotangent):
    tensors = [torch.tensor(x, requires_grad=True) for x in (hidden, embedding, bias)]
    h, w, b = tensors
    logits = h @ w.T + b
    losses = torch.nn.functional.cross_entropy(logits, torch.tensor(labels), reduction="none")
    (losses * torch.tensor(cotangent)).sum().backward()
    correct = logits.argmax(-1).numpy() == labels
    return losses.detach().numpy(), correct, [t.grad.numpy() for t in tensors]


@pytest.mark.parametrize("chunk", [V, 120, 50, 7])
def test_equals_torch(problem, chunk):
    hidden, embedding, bias, labels, cotangent = problem
    losses, correct, gradients = by_torch(*problem)

    def weighted(h, w, b):
        ours, right = token_losses(h, w, b, labels, chunk)
        return (ours * cotangent).sum(), (ours, right)

    inputs = [jnp.asarray(x, jnp.float32) for x in (hidden, embedding, bias)]
    ours, (values, right) = jax.grad(weighted, (0, 1, 2), has_aux=True)(*inputs)
    np.testing.assert_allclose(values, losses, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(right, correct)
    for gradient, reference in zip(ours, gradients, strict=True):
        np.testing.assert_allclose(gradient, reference, atol=2e-5)


def test_bfloat16_is_within_rounding_of_the_same_inputs(problem):
    hidden, embedding, bias, labels, cotangent = problem
    narrow = jnp.asarray(hidden, jnp.bfloat16)
    # The decoder's products are bfloat16, too: the reference has the same weights.
    rounded = jnp.asarray(embedding, jnp.bfloat16)
    losses, _, gradients = by_torch(
        np.asarray(narrow, np.float64), np.asarray(rounded, np.float64), bias, labels, cotangent
    )

    def weighted(h, w, b):
        ours, _ = token_losses(h, w, b, labels, 120)
        return (ours * cotangent).sum(), ours

    inputs = (narrow, rounded.astype(jnp.float32), jnp.asarray(bias, jnp.float32))
    ours, values = jax.grad(weighted, (0, 1, 2), has_aux=True)(*inputs)
    np.testing.assert_allclose(values, losses, rtol=1e-5, atol=1e-5)
    for gradient, reference in zip(ours, gradients, strict=True):
        tolerance = 2**-7 * np.abs(reference).max()
        np.testing.assert_allclose(np.asarray(gradient, np.float64), reference, atol=tolerance)


def test_never_holds_all_logits():
    """The compiled gradient's temporaries stay far below the logits of all positions."""
    n, v = 2048, 32_768
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((n, 64), (v, 64), (v,))]
    labels = jax.ShapeDtypeStruct((n,), jnp.int32)
    gradient = jax.jit(
        jax.grad(lambda h, w, b, y: token_losses(h, w, b, y, 1024)[0].sum(), (0, 1, 2))
    )
    temporaries = gradient.lower(*shapes, labels).compile().memory_analysis().temp_size_in_bytes
    assert temporaries < n * v * 4 / 8


def test_chunks_divide_the_vocabulary_where_they_can():
    """The published sizes and their relatives are walked as they always were; others hold a little that is no class."""
    assert chunks_of(256_000, 16_000) == (16, 16_000)
    assert chunks_of(256_000, 15_999) == (20, 12_800)
    assert chunks_of(262_144, 16_384) == (16, 16_384)
    for vocab_size in (31_337, 24_593, 65_537, 1009):
        for chunk in (100, 8192, 16_000):
            count, width = chunks_of(vocab_size, chunk)
            assert width <= chunk
            assert vocab_size <= count * width < vocab_size + 64 * count + count


@pytest.mark.parametrize(("vocab_size", "chunk", "axis"), [
    (31_337, 8192, None),
    (24_593, 8000, "data"),
    (1009, 100, "fsdp"),  # a prime
    (24_578, 8000, "tensor"),
])  # fmt: skip
def test_any_size_equals_the_dense_loss_in_float64(vocab_size, chunk, axis):
    """Sizes that chunks do not divide; on one device, and over each axis of a mesh."""
    assert chunks_of(vocab_size, chunk).count * chunks_of(vocab_size, chunk).width > vocab_size
    rng = np.random.default_rng(1)
    hidden = rng.normal(size=(12, 8))
    embedding, bias = rng.normal(size=(vocab_size, 8)), rng.normal(size=vocab_size)
    labels = np.r_[0, vocab_size - 1, rng.integers(0, vocab_size, 10)]
    problem = hidden, embedding, bias, labels, rng.normal(size=12)
    losses, correct, gradients = by_torch(*problem)

    def weighted(h, w, b):
        ours, right = token_losses(h, w, b, labels, chunk)
        return (ours * problem[4]).sum(), (ours, right)

    inputs = [jnp.asarray(x, jnp.float32) for x in (hidden, embedding, bias)]
    sizes = {"data": 1, "fsdp": 1, "tensor": 1} | ({axis: 2} if axis else {})
    mesh = make_mesh(sizes, jax.devices()[: 2 if axis else 1])
    rows, table, vector = (
        NamedSharding(mesh, PartitionSpec(*spec))
        for spec in ((BATCH_AXES,), ("tensor", "fsdp"), ("tensor",))
    )
    inputs = jax.device_put(inputs, [rows, table, vector])
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        ours, (values, right) = jax.jit(jax.grad(weighted, (0, 1, 2), has_aux=True))(*inputs)
    np.testing.assert_allclose(values, losses, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(right, correct)
    for gradient, reference in zip(ours, gradients, strict=True):
        np.testing.assert_allclose(gradient, reference, rtol=2e-5, atol=2e-5)
