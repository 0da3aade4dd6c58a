"""Muon and NorMuon against a NumPy reference in float64, written from the papers' formulas, and against SVD."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmbert_jax.optim.muon import Matrix, muon, newton_schulz
from mmbert_jax.optim.stable_adamw import stable_adamw

PEAK, DECAY = 4e-3, 4e-4
MOMENTUM, B2, EPS = 0.95, 0.9, 1e-8
ADAMW = {"b1": 0.9, "b2": 0.95, "eps": EPS, "weight_decay": DECAY, "peak_lr": PEAK}
STEPS = 20

# Parameters as layers have them, and how matrices are taken out of them and put back, in NumPy's words.
MATRICES = {
    "layer/wqkv": Matrix((0,), (2, 3)),
    "layer/wo": Matrix((0, 1), (2,)),
    "layer/wi": Matrix((0,), (2,)),
    "dense": Matrix((0,), (1,)),
}
SHAPES = {
    "layer/wqkv": (8, 3, 2, 4),
    "layer/wo": (2, 4, 8),
    "layer/wi": (8, 2, 12),
    "dense": (8, 8),
    "embedding": (40, 8),
    "layer/norm": (8,),
}


def take_out(name, x):
    """The matrices of a parameter, each [inputs, outputs]."""
    if name == "layer/wqkv":
        return [x[:, i].reshape(8, 8) for i in range(3)]
    if name == "layer/wi":
        return [x[:, 0], x[:, 1]]
    return [x.reshape(8, 8)]


def put_back(name, parts):
    if name == "layer/wqkv":
        return np.stack([part.reshape(8, 2, 4) for part in parts], axis=1)
    if name == "layer/wi":
        return np.stack(parts, axis=1)
    return parts[0].reshape(SHAPES[name])


def orthogonalised(x):
    """Jordan et al., 2024."""
    flip = x.shape[0] > x.shape[1]
    x = x.T if flip else x
    x = x / (np.linalg.norm(x) + 1e-8)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if flip else x


def reference(params, rates, *, normuon, momentum=MOMENTUM, b2=B2, decay=DECAY, rms=0.2):
    """Yields the matrices' parameters after each step, in float64."""
    p = {name: params[name].astype(np.float64) for name in MATRICES}
    m = {name: np.zeros_like(x) for name, x in p.items()}
    v = {name: [np.zeros(part.shape[1]) for part in take_out(name, x)] for name, x in p.items()}
    for t, rate in enumerate(rates):
        for name in MATRICES:
            g = gradients_of(t)[name].astype(np.float64)
            m[name] = momentum * m[name] + (1 - momentum) * g
            parts = []
            for i, u in enumerate(take_out(name, momentum * m[name] + (1 - momentum) * g)):
                o = orthogonalised(u)
                if normuon:
                    v[name][i] = b2 * v[name][i] + (1 - b2) * (o**2).mean(axis=0)
                    o = o / (np.sqrt(v[name][i]) + EPS)
                    parts.append(o * rms * np.sqrt(o.size) / np.linalg.norm(o))
                else:
                    parts.append(o * rms * np.sqrt(max(o.shape)))
            p[name] = p[name] * (1 - rate / PEAK * decay) - rate * put_back(name, parts)
        yield {name: x.copy() for name, x in p.items()}


def initial_params():
    rng = np.random.default_rng(0)
    return {name: rng.normal(0, 0.05, shape).astype(np.float32) for name, shape in SHAPES.items()}


def gradients_of(step):
    """Of very different scales, with a part that stays the same over the steps and neurons of different size."""
    scale = {"layer/wqkv": 1e-2, "layer/wo": 1e-5, "layer/wi": 10.0, "dense": 1e-3}
    gradients = {}
    for i, (name, shape) in enumerate(SHAPES.items()):
        steady = np.random.default_rng([1, i]).normal(size=shape)
        g = steady + np.random.default_rng([2, i, step]).normal(size=shape)
        g *= np.linspace(0.2, 2, shape[-1]) * (1000 if step == 12 else 1)
        gradients[name] = (g * scale.get(name, 1.0)).astype(np.float32)
    return gradients


def rates():
    return [PEAK * min(1, t / 5, (STEPS - t) / 8) for t in range(STEPS)]


def nested(flat):
    tree = {"layer": {}}
    for name, x in flat.items():
        (tree["layer"] if name.startswith("layer/") else tree)[name.rpartition("/")[2]] = x
    return tree


def flattened(tree):
    inner = {f"layer/{name}": np.asarray(x) for name, x in tree["layer"].items()}
    return inner | {name: np.asarray(x) for name, x in tree.items() if name != "layer"}


def optimizer(normuon, dtype=jnp.float32):
    return muon(
        matrices=MATRICES,
        rest=stable_adamw(**ADAMW),
        momentum=MOMENTUM,
        weight_decay=DECAY,
        peak_lr=PEAK,
        dtype=dtype,
        b2=B2 if normuon else None,
        eps=EPS,
    )


def run(params, normuon, bad_steps=()):
    ours = optimizer(normuon)
    params = jax.tree.map(jnp.asarray, nested(params))
    state = ours.init(params)

    @jax.jit
    def step(params, state, gradients, rate, good):
        updates, state = ours.update(gradients, state, params, learning_rate=rate, apply=good)
        return optax.apply_updates(params, updates), state

    for t, rate in enumerate(rates()):
        gradients = jax.tree.map(jnp.asarray, nested(gradients_of(t)))
        if t in bad_steps:
            bad = jax.tree.map(lambda g: g * jnp.nan, gradients)
            before = jax.tree.map(np.asarray, (params, state))
            params, state = step(params, state, bad, jnp.float32(rate), False)
            jax.tree.map(np.testing.assert_array_equal, (params, state), before)
        params, state = step(params, state, gradients, jnp.float32(rate), True)
        yield flattened(params)


@pytest.mark.parametrize("normuon", [False, True])
def test_equals_the_reference_step_by_step(normuon):
    start = initial_params()
    expected = reference(start, rates(), normuon=normuon)
    for step, (got, want) in enumerate(zip(run(start, normuon), expected, strict=True)):
        for name in MATRICES:
            np.testing.assert_allclose(
                got[name], want[name], rtol=0, atol=TOLERANCE, err_msg=f"{name}, step {step}"
            )
    assert all(np.abs(want[name] - start[name]).max() > 5e-3 for name in MATRICES)


# Rounding of float32 in the iterations, which enlarge small singular values several hundred times.
TOLERANCE = 1e-6


@pytest.mark.parametrize("normuon", [False, True])
def test_the_comparison_would_notice(normuon):
    """Each hyperparameter, changed in the reference only, is more than the tolerance away."""
    *_, got = run(initial_params(), normuon)
    for change in ({"momentum": 0.949}, {"decay": 3e-4}, {"rms": 0.201}, {"b2": 0.899})[
        : 3 + normuon
    ]:
        *_, want = reference(initial_params(), rates(), normuon=normuon, **change)
        away = max(np.abs(got[name] - want[name]).max() for name in MATRICES)
        assert away > 3 * TOLERANCE, change


def test_all_other_parameters_are_the_other_optimisers():
    """Bit for bit those of StableAdamW by itself."""
    others = [name for name in SHAPES if name not in MATRICES]
    adamw = stable_adamw(**ADAMW)
    start = {name: jnp.asarray(initial_params()[name]) for name in others}
    *_, got = run(initial_params(), True)

    @jax.jit
    def step(params, state, gradients, rate):
        updates, state = adamw.update(gradients, state, params, learning_rate=rate)
        return optax.apply_updates(params, updates), state

    params, state = start, adamw.init(start)
    for t, rate in enumerate(rates()):
        gradients = {name: gradients_of(t)[name] for name in others}
        params, state = step(params, state, gradients, jnp.float32(rate))
    for name in others:
        np.testing.assert_array_equal(got[name], params[name])


@pytest.mark.parametrize("normuon", [False, True])
def test_steps_that_are_not_taken_leave_no_trace(normuon):
    """With NaN for gradients; also when the very first step is one."""
    *_, never = run(initial_params(), normuon)
    *_, got = run(initial_params(), normuon, bad_steps=(0, 7))
    for name in SHAPES:
        np.testing.assert_array_equal(got[name], never[name])


@pytest.mark.parametrize(
    ("dtype", "spread", "atol"),
    [(jnp.float32, (0.68, 1.21), 3e-4), (jnp.bfloat16, (0.64, 1.23), 0.15)],
)
@pytest.mark.parametrize("shape", [(64, 64), (64, 96), (96, 64)])
def test_singular_values_come_near_one_and_vectors_stay(dtype, spread, atol, shape):
    """By NumPy's SVD, of gradients whose singular values spread over two orders of magnitude."""
    rng = np.random.default_rng(5)
    u, _, vt = np.linalg.svd(rng.normal(size=(4, *shape)), full_matrices=False)
    values = np.logspace(0, -2, 64)
    x = 1e-4 * (u * values) @ vt
    o = np.asarray(jax.jit(newton_schulz)(jnp.asarray(x, dtype)), np.float64)
    found = np.linalg.svd(o, compute_uv=False)
    assert spread[0] < found.min()
    assert found.max() < spread[1]
    # What the iterations do to a number, written out: nothing else happens to a singular value.
    expected = values / np.linalg.norm(values)
    for _ in range(5):
        expected = 3.4445 * expected - 4.7750 * expected**3 + 2.0315 * expected**5
    in_its_basis = u.swapaxes(1, 2) @ o @ vt.swapaxes(1, 2)
    np.testing.assert_allclose(
        in_its_basis, np.broadcast_to(np.diag(expected), (4, 64, 64)), rtol=0, atol=atol
    )


@pytest.mark.parametrize("normuon", [False, True])
def test_updates_have_the_size_of_adamws(normuon):
    """Root mean square 0.2 of each matrix: as good as exactly for NorMuon, by the iterations' spread for Muon."""
    start = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    ours = optimizer(normuon)
    params = nested(start)
    changes, _ = jax.jit(ours.update)(
        nested(gradients_of(0)), ours.init(params), params, learning_rate=1.0
    )
    changes = flattened(changes)
    for name in MATRICES:
        for part in take_out(name, changes[name]):
            rms = np.sqrt(np.mean(np.square(part)))
            assert rms == pytest.approx(0.2, rel=1e-5 if normuon else 0.2)
            if normuon:  # at the first step all neurons' updates are of one size
                each = np.sqrt(np.mean(np.square(part), axis=0))
                np.testing.assert_allclose(each, 0.2, rtol=1e-4)


def test_the_state_is_float32_whatever_the_iterations_are():
    params = jax.tree.map(jnp.asarray, nested(initial_params()))
    ours = optimizer(True, jnp.bfloat16)
    state = ours.init(params)
    assert state.nu["layer"]["wqkv"].shape == (3, 8)
    assert state.nu["layer"]["wi"].shape == (2, 12)
    changes, after = jax.jit(ours.update)(params, state, params, learning_rate=1e-3)
    assert {x.dtype.name for x in jax.tree.leaves(after)} == {"float32", "int32"}
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert {x.dtype.name for x in jax.tree.leaves(changes)} == {"float32"}
