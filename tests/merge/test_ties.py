"""TIES against references written from its formula, one of them entry by entry, and against its properties."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis.extra import numpy as arrays

from mmbert_jax.errors import UserError
from mmbert_jax.merge.checkpoints import check_same, describe, merge, merged_meta
from mmbert_jax.merge.ties import ties, trim


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


@pytest.mark.parametrize("density", [0.0, 0.003, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.5, 2.0, 1.25)])
def test_equals_mergekit(density, weights):
    """mergekit is no dependency: the test runs where it is installed."""
    merge_methods = pytest.importorskip("mergekit.merge_methods")
    torch = pytest.importorskip("torch")
    base, models = draw(seed=2, shape=(64, 48), dtype=np.float32)
    parameters = {
        "weight": list(weights),
        "density": [density] * 3,
        "lambda": 0.7,
        "normalize": True,
    }
    theirs = merge_methods.merge_tensors(
        [torch.from_numpy(x) for x in (base, *models)],
        "ties",
        parameters=parameters | {"int8_mask": False},
        base_index=0,
    ).numpy()
    ours, _ = ties(base, models, weights, density=density, scale=0.7)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-7)


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


def tree(seed):
    rng = np.random.default_rng(seed)
    return {
        "embeddings": {"tokens": rng.normal(size=(10, 4)).astype(np.float32)},
        "layers": {
            str(i): {"mlp": {"wi": rng.normal(size=(4, 2, 3)).astype(np.float32)}} for i in range(2)
        },
    }


def meta(row_length=64, **extra):
    return {
        "config": {"model": {"hidden_size": 4}, "data": {"row_length": row_length}},
        "step": 5,
        "phase": "a",
    } | extra


def test_merges_every_tensor_by_itself_and_reports_groups():
    base, models = tree(0), [tree(1), tree(2)]
    merged, counts = merge(base, models, [1.0, 1.0], density=0.5, scale=1.0)
    expected, _ = ties(
        base["layers"]["1"]["mlp"]["wi"],
        [model["layers"]["1"]["mlp"]["wi"] for model in models],
        [1.0, 1.0],
        density=0.5,
    )
    np.testing.assert_array_equal(merged["layers"]["1"]["mlp"]["wi"], expected)
    table = describe(counts, num_models=2)
    assert [line.split()[:3] for line in table.splitlines()[1:4]] == [
        ["embeddings/tokens", "40", "50.0%"],
        ["layers/mlp/wi", "48", "50.0%"],
        ["all", "88", "50.0%"],
    ]


def test_refuses_models_of_another_shape_or_tokeniser():
    base = (tree(0), meta(tokenizer={"sha256": "a"}))
    check_same(base, (tree(1), meta(tokenizer={"sha256": "a"})), "m")
    with pytest.raises(UserError, match="m: trained with another tokeniser"):
        check_same(base, (tree(1), meta(tokenizer={"sha256": "b"})), "m")
    other = meta(config={"model": {"hidden_size": 8}, "data": {"row_length": 64}})
    with pytest.raises(UserError, match=r"m: config.model.hidden_size is 8, the base's is 4"):
        check_same(base, (tree(1), other), "m")
    smaller = tree(1)
    del smaller["layers"]["1"]
    with pytest.raises(UserError, match="m: layers/1/mlp/wi has shape None"):
        check_same(base, (smaller, meta()), "m")


def test_meta_records_recipe_and_parents():
    recipe = {"method": "ties", "density": 0.5, "lambda": 1.0, "weights": [1.0, 2.0]}
    models = [("x", meta(128, languages=["eng", "fra"])), ("y", meta(64, languages=["kin"]))]
    merged = merged_meta(
        recipe, ("b", meta(64, languages=["eng"], held_out_groups={"all": {}})), models
    )
    assert merged["merge"]["base"] == {"path": "b", "phase": "a", "step": 5, "tokens": None}
    assert [parent["path"] for parent in merged["merge"]["models"]] == ["x", "y"]
    assert merged["merge"]["density"] == 0.5
    assert merged["languages"] == ["eng", "fra", "kin"]
    assert merged["held_out_groups"] == {}
    assert (merged["config"]["data"]["row_length"], merged["step"]) == (128, 0)
