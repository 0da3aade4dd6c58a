"""TIES against references written from its formula, one of them entry by entry, and against its properties."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from by_recipe import ties
from hypothesis.extra import numpy as arrays

from mmbert_jax.merge.sparsify import trim


def reference(base, models, weights, density, scale):
    """The formula in plain Python over single numbers: no array operation that the implementation could share."""
    flat = [float(x) for x in base.ravel()]
    keep = max(1, int(density * len(flat)))
    deltas = []
    for model, weight in zip(models, weights, strict=True):
        delta = [float(t) - b for t, b in zip(model.ravel(), flat, strict=True)]
        largest = sorted(range(len(delta)), key=lambda i: -abs(delta[i]))[
            :keep
        ]  # stable: the first of equals
        deltas.append([weight * d if i in set(largest) else 0.0 for i, d in enumerate(delta)])
    result = []
    for i, b in enumerate(flat):
        sign = 1 if sum(d[i] for d in deltas) >= 0 else -1
        members = [(d[i], w) for d, w in zip(deltas, weights, strict=True) if d[i] * sign > 0]
        divisor = sum(w for _, w in members) or 1.0
        result.append(b + scale * sum(d for d, _ in members) / divisor)
    return np.array(result).reshape(base.shape)


def draw(seed, shape=(7, 13), models=3, dtype=np.float64):
    rng = np.random.default_rng(seed)
    base = rng.normal(size=shape).astype(dtype)
    return base, [(base + 0.1 * rng.normal(size=shape)).astype(dtype) for _ in range(models)]


@pytest.mark.parametrize("density", [0.01, 0.2, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.5, 2.0, 1.25)])
@pytest.mark.parametrize("scale", [1.0, 0.4])
def test_equals_the_formula_in_float64(density, weights, scale):
    base, models = draw(seed=0)
    merged, _ = ties(base, models, weights, density=density, scale=scale)
    np.testing.assert_allclose(
        merged, reference(base, models, weights, density, scale), rtol=0, atol=1e-15
    )


def test_float32_is_the_formula_within_rounding():
    base, models = draw(seed=1, shape=(40, 30), dtype=np.float32)
    merged, _ = ties(base, models, (1.0, 1.0, 1.0), density=0.5)
    assert merged.dtype == np.float32
    np.testing.assert_allclose(
        merged, reference(base, models, (1, 1, 1), 0.5, 1.0), rtol=0, atol=1e-6
    )


@hypothesis.given(
    delta=arrays.arrays(
        np.float32, st.integers(1, 60), elements=st.sampled_from([-2, -1, -0.5, 0, 0.5, 1, 2])
    ),
    density=st.floats(0, 1),
)
@hypothesis.settings(deadline=None, max_examples=200)
def test_trim_keeps_exactly_the_largest(delta, density):
    """Many equal magnitudes: still exactly that many entries, none smaller than one that was dropped."""
    kept = trim(delta, density)
    keep = max(1, int(density * delta.size)) if density > 0 else 0
    changed = kept != delta
    assert np.all(kept[changed] == 0)
    assert np.count_nonzero(kept) == min(keep, np.count_nonzero(delta))
    if changed.any() and np.count_nonzero(kept):
        assert np.abs(delta[changed]).max() <= np.abs(kept[kept != 0]).min()
    assert trim(delta, density) is not delta


def test_trim_takes_the_first_of_equals():
    np.testing.assert_array_equal(
        trim(np.array([1.0, -1.0, 1.0, -1.0]), 0.5), [1.0, -1.0, 0.0, 0.0]
    )


def test_density_1_of_one_model_is_that_model_and_density_0_is_the_base():
    base, (model,) = draw(seed=3, models=1)
    np.testing.assert_allclose(ties(base, [model], [3.0], density=1.0)[0], model, atol=1e-15)
    np.testing.assert_array_equal(ties(base, [model], [3.0], density=0.0)[0], base)


def test_models_that_did_not_move_leave_the_base_and_do_not_dilute_one_that_did():
    base, (model,) = draw(seed=4, models=1)
    np.testing.assert_array_equal(ties(base, [base, base], [1, 1], density=0.5)[0], base)
    np.testing.assert_allclose(
        ties(base, [base, model, base], [1, 1, 1], density=1.0)[0], model, atol=1e-15
    )


def test_order_and_common_factor_of_weights_do_not_matter():
    base, models = draw(seed=5)
    merged, counts = ties(base, models, [1.0, 2.0, 3.0], density=0.4)
    turned, turned_counts = ties(base, models[::-1], [30.0, 20.0, 10.0], density=0.4)
    np.testing.assert_allclose(merged, turned, atol=1e-15)
    assert counts == turned_counts


def test_sign_of_the_larger_sum_wins():
    base = np.zeros(4)
    models = [np.array([3.0, 1.0, -1.0, 2.0]), np.array([-1.0, -3.0, -3.0, -2.0])]
    merged, counts = ties(base, models, [1.0, 1.0], density=1.0)
    np.testing.assert_array_equal(merged, [3.0, -3.0, -2.0, 2.0])  # a sum of 0 counts as positive
    assert (counts.size, counts.kept, counts.changed, counts.conflicts) == (4, 8, 4, 3)


def test_inputs_are_left_alone():
    base, models = draw(seed=6)
    copies = [x.copy() for x in (base, *models)]
    ties(base, models, [1, 1, 1], density=0.5)
    for x, copy in zip((base, *models), copies, strict=True):
        np.testing.assert_array_equal(x, copy)
