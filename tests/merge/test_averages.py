"""Averages and sums of task vectors against their formulae in float64, and against their properties."""

import itertools

import numpy as np
import pytest
from by_recipe import merged

from mmbert_jax.errors import UserError
from mmbert_jax.merge.averages import exponential_weights, linear, slerp
from mmbert_jax.merge.recipe import make_recipe
from mmbert_jax.merge.sparsify import CHUNK as RANKED
from mmbert_jax.merge.sparsify import draw, drop, drop_by_rank, restore_norm, trim_outliers
from mmbert_jax.merge.task_vectors import CHUNK


def random(seed, shape=(11, 7)):
    return np.random.default_rng(seed).normal(size=shape)


def test_linear_is_the_weighted_mean_and_leaves_its_inputs_alone():
    models = [random(seed) for seed in range(3)]
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
    first, second = random(0), random(1)
    second *= np.linalg.norm(first) / np.linalg.norm(second)
    points = [slerp(first, second, t).reshape(-1) for t in np.linspace(0, 1, 6)]
    np.testing.assert_allclose([np.linalg.norm(p) for p in points], np.linalg.norm(first))
    angles = [np.arccos(a @ b / np.linalg.norm(first) ** 2) for a, b in itertools.pairwise(points)]
    np.testing.assert_allclose(angles, angles[0], rtol=1e-6)
    np.testing.assert_allclose(points[0], first.reshape(-1), atol=1e-15)


def test_task_arithmetic_adds_and_takes_away():
    base, one, two = random(0), random(1), random(2)
    result, counts = merged("task_arithmetic", base, [one, two], [1.0, -0.5], scale=0.4)
    np.testing.assert_allclose(result, base + 0.4 * ((one - base) - 0.5 * (two - base)), atol=1e-14)
    back, _ = merged("task_arithmetic", base, [one], [1.0])
    np.testing.assert_allclose(back, one, atol=1e-15)
    opposite = (one - base) * -(two - base) < 0
    assert counts.conflicts == np.count_nonzero(opposite)


def test_tensors_longer_than_a_chunk():
    base, model = random(0, (2 * CHUNK + 3,)), random(1, (2 * CHUNK + 3,))
    result, counts = merged("task_arithmetic", base, [model], [0.5])
    np.testing.assert_allclose(result, (base + model) / 2, atol=1e-14)
    assert counts.changed == base.size


def test_dropping_keeps_the_share_and_the_norm_and_repeats_by_seed():
    delta = random(0, (200, 300)).astype(np.float32)
    drawn = draw(delta.shape, seed=1, name="x", model=0)
    kept = restore_norm(drop(delta, 0.2, drawn), delta)
    assert np.count_nonzero(kept) / kept.size == pytest.approx(0.2, abs=0.01)
    assert np.abs(kept).sum() == pytest.approx(np.abs(delta).sum(), rel=1e-5)
    np.testing.assert_array_equal(drawn, draw(delta.shape, seed=1, name="x", model=0))
    for other in ({"seed": 2}, {"name": "y"}, {"model": 1}):
        arguments = {"seed": 1, "name": "x", "model": 0} | other
        assert np.any(drawn != draw(delta.shape, **arguments))


def test_dropping_by_rank_keeps_larger_entries_more_often():
    """Over many rows the share kept at each rank is its probability, whatever the block that a row is ranked in."""
    rows = 1 + 2 * RANKED // 10
    delta = random(0, (rows, 10)).astype(np.float32)
    kept = drop_by_rank(delta, 0.4, 0.3, draw(delta.shape, seed=0, name="x", model=0))
    order = np.abs(delta).argsort(axis=1)
    shares = np.take_along_axis(kept != 0, order, axis=1).mean(axis=0)
    np.testing.assert_allclose(shares, np.linspace(0.1, 0.7, 10), atol=0.005)
    one = drop_by_rank(delta[:, :1], 0.4, 0.3, draw((rows, 1), seed=0, name="x", model=0))
    assert np.count_nonzero(one) / rows == pytest.approx(0.4, abs=0.005)


def test_breadcrumbs_leave_out_the_smallest_and_the_very_largest():
    delta = np.array([[5.0, -1.0, 3.0, -4.0, 2.0, 6.0, -7.0, 0.5, 8.0, -9.0]])
    np.testing.assert_array_equal(
        trim_outliers(delta, 0.4, 0.2), [[5.0, 0, 0, -4.0, 0, 6.0, -7.0, 0, 0, 0]]
    )
    # No more of the largest go than leave what density asks for.
    assert np.count_nonzero(trim_outliers(delta, 0.9, 0.5)) == 9
    equal = np.ones(10)
    assert np.count_nonzero(trim_outliers(equal, 0.4, 0.2)) == 4


def test_karcher_mean_is_where_the_pulls_balance():
    """The defining equation: the logarithms of all directions at the mean add up to nothing."""
    models = [random(seed) for seed in range(4)]
    units = [x / np.linalg.norm(x) for x in models]
    mean, _ = merged("karcher", None, models, max_iter=100, tol=1e-12)
    assert np.linalg.norm(mean) == pytest.approx(np.mean([np.linalg.norm(x) for x in models]))
    mean /= np.linalg.norm(mean)
    pull = 0
    for unit in units:
        angle = np.arccos(np.vdot(mean, unit))
        pull = pull + angle / np.sin(angle) * (unit - np.cos(angle) * mean)
    np.testing.assert_allclose(pull, 0, atol=1e-9)
    for order in ([1, 0], [0, 1]):  # opposite: either is as good, and the first is taken
        opposite = [models[0], -models[0]]
        result, _ = merged("karcher", None, [opposite[i] for i in order])
        np.testing.assert_allclose(result, opposite[order[0]], atol=1e-12)


def test_three_directions_that_balance_each_other_have_no_mean_one():
    turned = [np.array([np.cos(a), np.sin(a)]) for a in (0, 2 * np.pi / 3, -2 * np.pi / 3)]
    with pytest.raises(UserError, match="balance each other out"):
        merged("multislerp", None, turned)


def test_recipes_fill_in_what_is_not_given():
    recipe = make_recipe("ties", 2, None, {})
    assert (recipe.weights, recipe.settings) == ((1.0, 1.0), {"density": 0.5, "lambda": 1.0})
    assert make_recipe("slerp", 2, None, {"t": 0.25}).weights == (0.75, 0.25)
    assert make_recipe("task_arithmetic", 1, [-1.0], {}).weights == (-1.0,)
    with pytest.raises(UserError, match="--seed says nothing to --method ties"):
        make_recipe("ties", 2, None, {"seed": 1})
