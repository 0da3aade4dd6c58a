"""Averages and sums of task vectors against their formulae in float64, and against their properties."""

import itertools

import numpy as np
import pytest

from mmbert_jax.errors import UserError
from mmbert_jax.merge.averages import exponential_weights, linear, slerp
from mmbert_jax.merge.dare import draw_mask, drop
from mmbert_jax.merge.recipe import make_recipe
from mmbert_jax.merge.task_vectors import CHUNK, task_arithmetic


def draw(seed, shape=(11, 7)):
    return np.random.default_rng(seed).normal(size=shape)


def test_linear_is_the_weighted_mean_and_leaves_its_inputs_alone():
    models = [draw(seed) for seed in range(3)]
    copies = [x.copy() for x in models]
    expected = np.average(np.stack(models), axis=0, weights=[1, 2, 0.5])
    np.testing.assert_allclose(linear(iter(models), [1, 2, 0.5]), expected, atol=1e-15)
    np.testing.assert_array_equal(models, copies)
    assert linear([models[0].astype(np.float32)], [3.0]).dtype == np.float32


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, 1.0])
def test_exponential_weights_are_those_of_a_running_average(decay):
    """x <- decay x + new, started from nothing and divided by what the weights add up to."""
    values, running, total = [3.0, -1.0, 4.0, 1.5], 0.0, 0.0
    for value in values:
        running, total = decay * running + value, decay * total + 1
    assert np.dot(exponential_weights(4, decay), values) == pytest.approx(running / total)
    assert sum(exponential_weights(4, decay)) == pytest.approx(1)


def test_slerp_stays_on_the_circle_at_even_steps():
    first, second = draw(0), draw(1)
    second *= np.linalg.norm(first) / np.linalg.norm(second)
    points = [slerp(first, second, t).reshape(-1) for t in np.linspace(0, 1, 6)]
    np.testing.assert_allclose([np.linalg.norm(p) for p in points], np.linalg.norm(first))
    angles = [np.arccos(a @ b / np.linalg.norm(first) ** 2) for a, b in itertools.pairwise(points)]
    np.testing.assert_allclose(angles, angles[0], rtol=1e-6)
    np.testing.assert_allclose(points[0], first.reshape(-1), atol=1e-15)


def test_task_arithmetic_adds_and_takes_away():
    base, one, two = draw(0), draw(1), draw(2)
    merged, counts = task_arithmetic(base, [one, two], [1.0, -0.5], scale=0.4)
    np.testing.assert_allclose(merged, base + 0.4 * ((one - base) - 0.5 * (two - base)), atol=1e-14)
    back, _ = task_arithmetic(base, [one], [1.0])
    np.testing.assert_allclose(back, one, atol=1e-15)
    opposite = (one - base) * -(two - base) < 0
    assert counts.conflicts == np.count_nonzero(opposite)


def test_tensors_longer_than_a_chunk():
    base, model = draw(0, (2 * CHUNK + 3,)), draw(1, (2 * CHUNK + 3,))
    merged, counts = task_arithmetic(base, [model], [0.5])
    np.testing.assert_allclose(merged, (base + model) / 2, atol=1e-14)
    assert counts.changed == base.size


def test_dropping_keeps_the_share_and_the_norm_and_repeats_by_seed():
    delta = draw(0, (200, 300)).astype(np.float32)
    mask = draw_mask(delta.shape, 0.2, seed=1, name="x", model=0)
    kept = drop(delta, mask)
    assert np.count_nonzero(kept) / kept.size == pytest.approx(0.2, abs=0.01)
    assert np.abs(kept).sum() == pytest.approx(np.abs(delta).sum(), rel=1e-5)
    np.testing.assert_array_equal(mask, draw_mask(delta.shape, 0.2, seed=1, name="x", model=0))
    for other in ({"seed": 2}, {"name": "y"}, {"model": 1}):
        arguments = {"seed": 1, "name": "x", "model": 0} | other
        assert np.any(mask != draw_mask(delta.shape, 0.2, **arguments))


def test_recipes_fill_in_what_is_not_given():
    recipe = make_recipe("ties", 2, None, {})
    assert (recipe.weights, recipe.settings) == ((1.0, 1.0), {"density": 0.5, "lambda": 1.0})
    assert make_recipe("slerp", 2, None, {"t": 0.25}).weights == (0.75, 0.25)
    assert make_recipe("task_arithmetic", 1, [-1.0], {}).weights == (-1.0,)
    with pytest.raises(UserError, match="--seed says nothing to --method ties"):
        make_recipe("ties", 2, None, {"seed": 1})
