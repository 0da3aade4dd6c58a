"""The loss whose gradient is formed in the forward pass, against cross-entropy in float64, by PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import NamedSharding, PartitionSpec

from mmbert_jax.axes import BATCH_AXES
from mmbert_jax.kernels import weighted_mlm_loss
from mmbert_jax.kernels.mlm_loss import token_losses
from mmbert_jax.kernels.weighted_mlm_loss import forms_gradient, parts_of, weighted_loss
from mmbert_jax.parallel.mesh import make_mesh

COMPILED_AS_USERS_DO = True

N, D = 50, 24

pytestmark = pytest.mark.usefixtures("each_platforms_code")


def make_problem(vocab):
    """Hidden states, embedding, bias, labels, and weights: fractions, and none for a fifth of the targets."""
    rng = np.random.default_rng(0)
    weights = rng.random(N) * (rng.random(N) > 0.2)
    embedding, bias = rng.normal(size=(vocab, D)), rng.normal(size=vocab)
    return rng.normal(size=(N, D)), embedding, bias, rng.integers(0, vocab, N), weights


@pytest.fixture
def problem():
    """Of a vocabulary that nothing divides."""
    return make_problem(1009)


def by_torch(hidden, embedding, bias, labels, weights, scale=1.0):
    """Loss, which labels came first, and the gradients with respect to hidden, embedding, bias and weights."""
    tensors = [torch.tensor(x, requires_grad=True) for x in (hidden, embedding, bias, weights)]
    h, e, b, w = tensors
    logits = h @ e.T + b
    losses = torch.nn.functional.cross_entropy(logits, torch.tensor(labels), reduction="none")
    loss = (losses * w).sum()
    (loss * scale).backward()
    return loss.item(), logits.argmax(-1).numpy() == labels, [t.grad.numpy() for t in tensors]


def gradient(problem, dtype=jnp.float32, scale=1.0, mesh=None):
    """The same of ours, compiled."""
    hidden, embedding, bias, labels, weights = problem

    def scaled(h, e, b, w):
        loss, correct = weighted_loss(h, e, b, labels, w, 64)
        return loss * scale, (loss, correct)

    inputs = jnp.asarray(hidden, dtype), *map(jnp.float32, (embedding, bias, weights))
    mesh = mesh or make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    rows, table, vector = (
        NamedSharding(mesh, PartitionSpec(*spec))
        for spec in ((BATCH_AXES,), ("tensor", "fsdp"), ("tensor",))
    )
    inputs = jax.device_put(inputs, (rows, table, vector, rows))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        gradients, (loss, correct) = jax.jit(jax.grad(scaled, (0, 1, 2, 3), has_aux=True))(*inputs)
    return float(loss), np.asarray(correct), [np.asarray(g, np.float64) for g in gradients]


def in_parts(monkeypatch, problem, parts):
    """Has the targets taken in so many parts."""
    monkeypatch.setattr(weighted_mlm_loss, "_LOGITS", -(-4 * N * len(problem[1]) // parts))
    assert parts_of(N, len(problem[1])) == parts


def assert_equal(ours, reference, tolerance):
    """Relative to the largest element of each gradient: others are differences of numbers of that size."""
    np.testing.assert_allclose(ours[0], reference[0], rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(ours[1], reference[1])
    for gradient, expected in zip(ours[2], reference[2], strict=True):
        size = max(np.abs(expected).max(), 1e-3)
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=tolerance * size)


@pytest.mark.parametrize(("vocab", "parts", "scale"), [
    (1009, 1, 1.0),
    (1009, 3, -3e-4),
    (128, 4, 1.0),
    (1, 2, 1.0),
])  # fmt: skip
def test_equals_float64(monkeypatch, vocab, parts, scale):
    """50 targets in parts of 50, 17, 13 and 25, of which the last ones are smaller; scaled behind the loss, too."""
    problem = make_problem(vocab)
    in_parts(monkeypatch, problem, parts)
    ours, reference = gradient(problem, scale=scale), by_torch(*problem, scale)
    for gradients in (ours[2], reference[2]):
        gradients[:] = [g / scale for g in gradients]
    assert_equal(ours, reference, 1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_way_of_tpus_equals_float64(monkeypatch, problem, dtype):
    monkeypatch.setattr(
        jax.lax,
        "platform_dependent",
        lambda *x, **ways: ways["tpu"](*x) if "tpu" in ways else ways["default"](*x),
    )
    hidden, embedding, *rest = problem
    rounded = [np.asarray(jnp.asarray(x, dtype), np.float64) for x in (hidden, embedding)]
    same = (*rounded, *rest)
    tolerance = {"float32": 1e-5, "bfloat16": 2**-7}[dtype]
    assert_equal(gradient(same, dtype), by_torch(*same), tolerance)


@pytest.mark.parametrize("parts", [1, 4])
def test_bfloat16_is_within_rounding_of_the_same_inputs(monkeypatch, problem, parts):
    in_parts(monkeypatch, problem, parts)
    hidden, embedding, *rest = problem
    rounded = [np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64) for x in (hidden, embedding)]
    same = (*rounded, *rest)
    assert_equal(gradient(same, jnp.bfloat16), by_torch(*same), 2**-7)


@pytest.mark.parametrize("sizes", [(2, 1, 1), (1, 2, 1), (1, 1, 2)])
def test_every_mesh_gives_the_same(sizes):
    problem = make_problem(1010)
    mesh = make_mesh(
        dict(zip(("data", "fsdp", "tensor"), sizes, strict=True)), jax.devices()[: np.prod(sizes)]
    )
    assert forms_gradient(mesh.shape) == (sizes == (2, 1, 1))
    assert_equal(gradient(problem, mesh=mesh), by_torch(*problem), 1e-5)


def test_what_is_not_finite_stays_so():
    """As in cross-entropy: a weight of 0 leaves NaN times 0."""
    rng = np.random.default_rng(0)
    hidden, embedding = rng.normal(size=(4, 8)), rng.normal(size=(16, 8))
    for row, value, weight in ((1, np.nan, 1.0), (2, np.inf, 1.0), (3, np.nan, 0.0)):
        bad, weights = hidden.copy(), np.ones(4)
        bad[row, 0], weights[row] = value, weight
        loss, _, (d_hidden, d_embedding, *_) = gradient(
            (bad, embedding, np.zeros(16), np.arange(4), weights)
        )
        assert not np.isfinite(loss)
        assert not np.isfinite(d_embedding).all()
        # The other targets are none the worse for it.
        others = np.delete(np.arange(4), row)
        expected = by_torch(hidden, embedding, np.zeros(16), np.arange(4), np.ones(4))[2][0]
        np.testing.assert_allclose(d_hidden[others], expected[others], atol=1e-5)


def test_no_targets_give_no_gradient(problem):
    hidden, embedding, bias, labels, weights = problem
    loss, _, gradients = gradient((hidden, embedding, bias, labels, 0 * weights))
    assert loss == 0
    for g in gradients[:3]:
        np.testing.assert_array_equal(g, 0)


def test_large_logits_do_not_overflow():
    """e^500 is infinite in float32; a label that is all but impossible has a loss of 1,000."""
    embedding = np.r_[np.full((1, 8), 500.0), np.full((1, 8), -500.0)] / 8
    problem = np.ones((2, 8)), embedding, np.zeros(2), np.array([0, 1]), np.ones(2)
    assert_equal(gradient(problem), by_torch(*problem), 1e-6)


def products(function, *shapes):
    """Matrix products of a compiled gradient."""
    compiled = jax.jit(jax.grad(function, (0, 1, 2))).lower(*shapes).compile()
    return compiled.as_text().count(" dot(")


def test_it_takes_three_products():
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((N, D), (1010, D), (1010,))]
    labels, weights = np.zeros(N, np.int32), np.ones(N, np.float32)

    def by_chunks(h, e, b):
        return (token_losses(h, e, b, labels, 505)[0] * weights).sum()

    assert products(lambda h, e, b: weighted_loss(h, e, b, labels, weights, 505)[0], *shapes) == 3
    assert products(by_chunks, *shapes) == 4


def test_parts_hold_two_gigabytes_of_logits_or_a_quarter():
    assert parts_of(307, 256_000) == 1
    assert parts_of(1843, 256_000) == 1  # six rows of 1024 on a TPU v5e
    assert parts_of(9830, 50_368) == 1
    assert parts_of(4915, 256_000) == 3
    assert parts_of(9830, 256_000) == parts_of(19_660, 256_000) == 4
    assert parts_of(1, 256_000) == 1


def test_parts_are_held_one_after_the_other(monkeypatch):
    """In four parts the compiled gradient's temporaries are some quarter of what they are in one."""
    n, v = 1024, 32_768
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((n, 64), (v, 64), (v,), (n,))]
    labels = jax.ShapeDtypeStruct((n,), jnp.int32)

    def temporaries(logits):
        monkeypatch.setattr(weighted_mlm_loss, "_LOGITS", logits)

        def loss(h, e, b, w, y):
            return weighted_loss(h, e, b, y, w, v)[0]

        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*shapes, labels).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(1) < 0.4 * temporaries(2**31)
