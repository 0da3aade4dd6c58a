"""StableAdamW against a NumPy reference in float64, written from the formula, and against `torch-optimi`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmbert_jax.optim.stable_adamw import StableAdamWState, stable_adamw

PEAK = 8e-4
HYPER = {"b1": 0.9, "b2": 0.95, "eps": 1e-8, "weight_decay": 8e-5, "peak_lr": PEAK}
SHAPES = {
    "wqkv": (8, 3, 2, 4),
    "embedding": (40, 8),
    "norm": (8,),
    "bias": (40,),
    "untouched": (6, 5),
}
STEPS = 50


def reference(params, gradients_of, rates, *, b1, b2, eps, weight_decay, peak_lr):
    """FACTS.md, 'Optimisation', tensor by tensor in float64; yields the parameters after each step."""
    p = {name: x.astype(np.float64) for name, x in params.items()}
    m = {name: np.zeros_like(x) for name, x in p.items()}
    v = {name: np.zeros_like(x) for name, x in p.items()}
    for t, rate in enumerate(rates, start=1):
        b1_hat = (b1 - b1**t) / (1 - b1**t)
        b2_hat = (b2 - b2**t) / (1 - b2**t)
        for name, g in gradients_of(t - 1).items():
            g = g.astype(np.float64)
            m[name] = b1_hat * m[name] + (1 - b1_hat) * g
            v[name] = b2_hat * v[name] + (1 - b2_hat) * g**2
            r = np.sqrt(np.mean(g**2 / np.maximum(v[name], eps**2)))
            eta = rate / max(1.0, r)
            if p[name].ndim > 1:
                p[name] = p[name] * (1 - eta / peak_lr * weight_decay)
            p[name] = p[name] - eta * m[name] / (np.sqrt(v[name]) + eps)
        yield {name: x.copy() for name, x in p.items()}


def initial_params():
    rng = np.random.default_rng(0)
    return {name: rng.normal(0, 0.05, shape).astype(np.float32) for name, shape in SHAPES.items()}


def gradients_of(step):
    """Gradients of very different scales; a spike at step 30; one tensor never gets any, one none for a while."""
    rng = np.random.default_rng([1, step])
    scale = {"wqkv": 1e-2, "embedding": 1e-5, "norm": 1.0, "bias": 1e-9, "untouched": 0.0}
    gradients = {}
    for name, shape in SHAPES.items():
        g = rng.normal(0, scale[name], shape)
        if step == 30:
            g *= 1000
        if name == "norm" and 5 <= step < 12:
            g *= 0
        if name == "embedding":  # as of an embedding: most entries are not in the batch
            g *= rng.random((shape[0], 1)) < 0.2
        gradients[name] = g.astype(np.float32)
    return gradients


def rates():
    """Warm-up, stable, decay."""
    return [PEAK * min(1, t / 10, (STEPS - t) / 15) for t in range(STEPS)]


def run(params, gradients_of, rates, hyper):
    optimizer = stable_adamw(**hyper)
    params = jax.tree.map(jnp.asarray, params)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, gradients, rate):
        updates, state = optimizer.update(gradients, state, params, learning_rate=rate)
        return optax.apply_updates(params, updates), state

    for t, rate in enumerate(rates):
        params, state = step(params, state, gradients_of(t), jnp.float32(rate))
        yield {name: np.asarray(x) for name, x in params.items()}
    assert step._cache_size() == 1, "a new learning rate must not recompile"


@pytest.mark.parametrize("change", [{}, {"b1": 0.0}, {"b2": 0.999}, {"weight_decay": 0.0}])
def test_equals_the_reference_step_by_step(change):
    start = initial_params()
    expected = reference(start, gradients_of, rates(), **(HYPER | change))
    pairs = zip(run(start, gradients_of, rates(), HYPER | change), expected, strict=True)
    for step, (got, want) in enumerate(pairs):
        for name in SHAPES:
            # Float32 rounding of parameters of size 0.05 adds up over the steps.
            np.testing.assert_allclose(
                got[name],
                want[name],
                rtol=0,
                atol=2e-8 * (step + 2),
                err_msg=f"{name}, step {step}",
            )
    moved = {name: np.abs(want[name] - start[name]).max() for name in SHAPES}
    assert all(moved[name] > 1e-3 for name in SHAPES if name != "untouched")


@pytest.mark.parametrize(
    "change",
    [{"b1": 0.95}, {"b2": 0.98}, {"eps": 1e-6}, {"weight_decay": 8e-4}, {"peak_lr": 2 * PEAK}],
)
def test_the_comparison_would_notice(change):
    """Each hyperparameter, changed in the reference only, is more than the tolerance away."""
    start = initial_params()
    *_, want = reference(start, gradients_of, rates(), **(HYPER | change))
    *_, got = run(start, gradients_of, rates(), HYPER)
    difference = max(np.abs(got[name] - want[name]).max() for name in SHAPES)
    assert difference > 2e-8 * (STEPS + 2)


def test_spike_shrinks_the_step_of_its_tensor_alone():
    """A gradient 1000 times larger than usual moves its tensor no further than r allows, and no other tensor."""
    params = {"a": np.ones((4, 4), np.float32), "b": np.ones((4, 4), np.float32)}
    hyper = HYPER | {"weight_decay": 0.0}

    def steady(step):
        return {"a": np.full((4, 4), 1e-3, np.float32), "b": np.full((4, 4), 1e-3, np.float32)}

    def spike(step):
        return steady(step) | ({"a": np.full((4, 4), 1.0, np.float32)} if step == 19 else {})

    *_, before, after = run(params, spike, [PEAK] * 20, hyper)
    *_, _steady_before, steady_after = run(params, steady, [PEAK] * 20, hyper)
    np.testing.assert_array_equal(after["b"], steady_after["b"])
    # By hand: v = (0.05 * 1) / (1 - 0.95^20) after the spike, r = 1 / sqrt(v), m ~ 0.1 / (1 - 0.9^20).
    v = 0.05 / (1 - 0.95**20)
    m = 0.1 / (1 - 0.9**20)
    expected = PEAK / (1 / np.sqrt(v)) * m / np.sqrt(v)
    np.testing.assert_allclose(before["a"] - after["a"], expected, rtol=0.02)


def test_r_is_of_the_whole_tensor():
    """What counts as one tensor matters: halves with different spikes share one r when they are one tensor."""
    rng = np.random.default_rng(3)
    whole = rng.normal(size=(2, 6, 6)).astype(np.float32)

    def gradients(step):
        g = np.random.default_rng([4, step]).normal(0, 1e-2, whole.shape).astype(np.float32)
        g[0] *= 100 if step == 9 else 1
        return g

    *_, joined = run({"w": whole}, lambda t: {"w": gradients(t)}, [PEAK] * 10, HYPER)
    split_start = {"w0": whole[0], "w1": whole[1]}
    *_, split = run(
        split_start, lambda t: {"w0": gradients(t)[0], "w1": gradients(t)[1]}, [PEAK] * 10, HYPER
    )
    assert np.abs(joined["w"][1] - split["w1"]).max() > 1e-5


def test_state_is_float32_and_shaped_as_the_parameters():
    params = {"w": jnp.ones((3, 4), jnp.bfloat16), "b": jnp.ones((4,), jnp.float32)}
    optimizer = stable_adamw(**HYPER)
    state = optimizer.init(params)
    assert isinstance(state, StableAdamWState)
    assert state.count.dtype == jnp.int32
    updates, state = optimizer.update(params, state, params, learning_rate=1e-3)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves((state.mu, state.nu)))
    assert jax.tree.map(jnp.shape, state.nu) == jax.tree.map(jnp.shape, params)
    assert updates["w"].dtype == jnp.bfloat16
    # The train loop shards the moments as the parameters through this function of optax.
    marked = optax.tree_utils.tree_map_params(optimizer, lambda x: "moment", state)
    assert marked.mu == marked.nu == {"w": "moment", "b": "moment"}


def test_equals_optimi():
    """The implementation that ModernBERT trained with (float32, on torch), where it is installed."""
    torch = pytest.importorskip("torch")
    optimi = pytest.importorskip("optimi")
    start = initial_params()
    tensors = {name: torch.nn.Parameter(torch.tensor(x)) for name, x in start.items()}
    groups = [
        {"params": [x for x in tensors.values() if x.ndim > 1]},
        {"params": [x for x in tensors.values() if x.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = optimi.StableAdamW(
        groups,
        lr=PEAK,
        betas=(HYPER["b1"], HYPER["b2"]),
        eps=HYPER["eps"],
        weight_decay=HYPER["weight_decay"],
        decouple_lr=True,
        max_lr=PEAK,
        kahan_sum=False,
        triton=False,
    )
    for step, got in enumerate(run(start, gradients_of, rates(), HYPER)):
        for group in optimizer.param_groups:
            group["lr"] = rates()[step]
        for name, g in gradients_of(step).items():
            tensors[name].grad = torch.tensor(g)
        optimizer.step()
        for name in SHAPES:
            np.testing.assert_allclose(
                got[name],
                tensors[name].detach().numpy(),
                rtol=0,
                atol=2e-8 * (step + 2),
                err_msg=f"{name}, step {step}",
            )
