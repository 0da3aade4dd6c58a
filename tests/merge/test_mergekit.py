"""Every method against mergekit, entry by entry: on random tensors, on edge cases, and on three small checkpoints.

mergekit is no dependency; `bash tools/setup_peers.sh mergekit` installs it beside the environment.
"""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from by_recipe import merged
from stored_models import CONFIG, write_checkpoint, write_folder

from mmbert_jax.hf.names import table
from mmbert_jax.merge.merge import as_rows, merge
from mmbert_jax.merge.models import open_model
from mmbert_jax.merge.recipe import (
    MAY_HAVE_BASE,
    METHODS,
    NEED_BASE,
    TASK_VECTORS,
    WEIGHTED,
    by_tensor,
    depth,
    make_recipe,
)
from mmbert_jax.merge.recipe_file import read_recipe_file, to_recipe
from mmbert_jax.merge.sparsify import draw
from mmbert_jax.model.heads import MLM, SEQUENCES, HeadConfig

ROOT = Path(__file__).resolve().parents[2]
MERGEKIT = ROOT / ".peers" / "mergekit"
pytestmark = pytest.mark.skipif(
    not MERGEKIT.is_dir(), reason="no .peers/mergekit: run `bash tools/setup_peers.sh mergekit`"
)

Case = dict[str, object]
SPARSE = [method for method in METHODS if "density" in METHODS[method]]


def with_mergekit(cases: dict[str, Case], folder: Path) -> dict[str, np.ndarray]:
    """What mergekit makes of each case: method, tensors, parameters, base and perhaps draws."""
    arrays = {}
    for name, case in cases.items():
        arrays[f"{name}/method"] = np.array(case["method"])
        arrays[f"{name}/tensors"] = np.stack(case["tensors"])
        arrays[f"{name}/parameters"] = np.array(json.dumps(case["parameters"]))
        arrays[f"{name}/base"] = np.array(case["base"])
        if "draws" in case:
            arrays[f"{name}/draws"] = np.stack(case["draws"])
    np.savez(folder / "cases.npz", **arrays)
    script = Path(__file__).with_name("with_mergekit.py")
    result = subprocess.run(
        [sys.executable, str(script), str(folder / "cases.npz"), str(folder / "results.npz")],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(MERGEKIT)},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    with np.load(folder / "results.npz") as results:
        return dict(results)


def around(seed, shape=(64, 48), models=3, amount=0.01):
    rng = np.random.default_rng(seed)
    base = rng.normal(size=shape).astype(np.float32)
    return base, [
        (base + amount * rng.normal(size=shape)).astype(np.float32) for _ in range(models)
    ]


def case(method, base, models, weights=None, *, inputs=0, name="x", exact=False, **settings):
    """One tensor merged here, and the same for mergekit, with the same draws.

    Args:
      exact: whether mergekit computes in float64: in float32 it takes models that are nearly parallel for parallel.
    """
    ours, _ = merged(method, base, models, weights, inputs=inputs, **settings)
    return ours, their_case(method, base, models, weights, inputs, name, exact, settings)


def their_case(method, base, models, weights, inputs, name, exact, settings):
    settings = METHODS[method] | settings
    settings["lambda"] = settings.pop("scale", settings.get("lambda", 1.0))
    seed = settings.pop("seed", 0)
    weights = list(weights or [1.0] * len(models))
    if method in TASK_VECTORS:
        parameters = settings | {
            "weight": weights,
            "normalize": method != "task_arithmetic",
            "rescale": method.startswith(("dare", "della")),
        }
    elif method in WEIGHTED:
        parameters = {"weight": weights}
    else:
        parameters = {key: settings[key] for key in METHODS[method]}
    tensors = [*([] if base is None else [base]), *models]
    shape = as_rows(models[0], inputs).shape if method.startswith("della") else models[0].shape
    if method.startswith("della"):
        tensors = [as_rows(x, inputs) for x in tensors]
    found = {
        "method": method,
        "tensors": [x.astype(np.float64) for x in tensors] if exact else tensors,
        "parameters": parameters,
        "base": 0 if base is not None or method == "slerp" else -1,
    }
    if method.startswith(("dare", "della")):
        found["draws"] = [draw(shape, seed=seed, name=name, model=i) for i in range(len(models))]
    return found


def random_cases():
    base, models = around(0)
    for weights in ((1.0, 1.0, 1.0), (0.5, 2.0, 1.25)):
        for density in (0.0, 0.003, 0.2, 0.5, 1.0):
            for method in SPARSE:
                if not (
                    method.startswith("della") and density == 0.003
                ):  # epsilon would be too small
                    settings = {"epsilon": 0.1} if method.startswith("della") else {}
                    yield (
                        f"{method} {weights} {density}",
                        case(method, base, models, weights, density=density, scale=0.7, **settings),
                    )
        yield f"arithmetic {weights}", case("task_arithmetic", base, models, weights, scale=0.7)
        yield f"linear {weights}", case("linear", None, models, weights)
        yield f"multislerp {weights}", case("multislerp", None, models, weights)
        yield f"multislerp around base {weights}", case("multislerp", base, models, weights)
    for gamma in (0.0, 0.1, 0.9):
        yield f"gamma {gamma}", case("breadcrumbs", base, models, density=0.4, gamma=gamma)
    yield "arithmetic negation", case("task_arithmetic", base, models, (1.0, -0.5, 0.25))
    for t in (0.0, 0.3, 0.5, 1.0):
        yield f"slerp {t}", case("slerp", None, [base, around(1)[0]], t=t)
        yield f"slerp nearly parallel {t}", case("slerp", None, [base, models[0]], t=t)
        yield f"slerp opposite {t}", case("slerp", None, [base, -base], t=t)
    far = [around(seed)[0] for seed in range(4)]
    for amount in (0.01, 1.0):
        near = [(base + amount * x).astype(np.float32) for x in far]
        for k in (1, 2, 4):
            yield f"karcher {amount} {k}", case("karcher", None, near[:k], exact=True)
            yield f"multislerp {amount} {k}", case("multislerp", None, near[:k])
            if k > 1:
                yield f"model stock {amount} {k}", case("model_stock", base, near[:k])
    yield "karcher, one step", case("karcher", None, far, exact=True, max_iter=1)


def edge_cases():
    base, (model, other, _) = around(2)
    zero = np.zeros_like(base)
    rng = np.random.default_rng(3)
    # As many equal magnitudes as the density keeps: more would leave it to mergekit's sort which of them to take.
    equal = np.where(rng.random(base.shape) < 0.5, 0.25, -0.25).astype(np.float32)
    half = np.zeros(base.size, np.float32)
    half[: base.size // 2] = equal.reshape(-1)[: base.size // 2]
    half = half.reshape(base.shape)
    for density in (0.0, 0.5, 1.0):
        for method in SPARSE:
            for what, weights, models in (
                ("nothing moved", (1, 1), [base] * 2),
                ("one moved", (1, 2, 1), [base, model, base]),
                ("alike", (1, 1), [model, model]),
            ):
                yield (
                    f"{method} {what} {density}",
                    case(method, base, models, weights, density=density),
                )
        yield f"equal {density}", case("ties", zero, [half, half], density=density)
    yield "opposite and equal", case("ties", zero, [equal, -equal], density=1.0)
    yield "opposite and equal, dare", case("dare_ties", zero, [equal, -equal], density=0.5)
    yield "one entry", case("ties", base[:1, :1], [model[:1, :1]], density=0.5)
    for method in SPARSE:
        yield f"vector {method}", case(method, base[0], [model[0], other[0]], (1, 3), density=0.5)
    yield "arithmetic nothing moved", case("task_arithmetic", base, [base, base])
    yield "slerp zero", case("slerp", None, [zero, model], t=0.4)
    yield "slerp zeros", case("slerp", None, [zero, zero], t=0.4)
    for method in ("karcher", "multislerp"):
        yield f"{method} zeros", case(method, None, [zero, zero])
        yield f"{method} one zero", case(method, None, [model, zero, other], exact=True)
        yield f"{method} opposite", case(method, None, [model, -model])
        yield f"{method} alike", case(method, None, [model, model, model], exact=True)
    yield "multislerp one moved", case("multislerp", base, [base, model, other])
    for what, models in (
        ("nothing moved", [base, base]),
        ("alike", [model, model]),
        ("opposite", [2 * base - model, model]),
        ("one moved", [base, model]),
    ):
        yield f"model stock {what}", case("model_stock", base, models)


def test_functions_equal_mergekit(tmp_path):
    cases = dict([*random_cases(), *edge_cases()])
    theirs = with_mergekit({name: case for name, (_, case) in cases.items()}, tmp_path)
    assert len(theirs) == len(cases) > 150
    for name, (ours, _) in cases.items():
        np.testing.assert_allclose(
            ours.reshape(theirs[name].shape), theirs[name], rtol=0, atol=1e-6, err_msg=name
        )


def small_models(folder: Path, head: HeadConfig) -> Iterator[tuple[str, np.ndarray, Case]]:
    """Merged tensors of three models and their base, from disk, by every method; as checkpoints and as folders."""
    weights = [1.0, 0.5, 2.0]
    for kind, write in (("checkpoint", write_checkpoint), ("folder", write_folder)):
        paths = [folder / f"{kind}{i}" for i in range(4)]
        for i, path in enumerate(paths):
            write(path, seed=i, amount=0.02 * i, head=head)
        opened = [open_model(path) for path in paths]
        # As stored: the two kinds lay out a tensor differently. Read once, as all methods merge the same.
        stored = {m.path: {name: m.read(name) for name in m.shapes} for m in opened}
        base, *models = (dataclasses.replace(m, read=stored[m.path].__getitem__) for m in opened)
        inputs = (
            {row.ours: row.inputs for row in table(CONFIG, head)} if kind == "checkpoint" else {}
        )
        for method in METHODS:
            if method == "ema":  # a linear mean
                continue
            parents = models[:2] if method == "slerp" else models
            has_base = method in (*NEED_BASE, *MAY_HAVE_BASE)
            given = weights if method in WEIGHTED else None
            settings = {"t": 0.3} if method == "slerp" else {}
            recipe = make_recipe(method, len(parents), given, settings)
            for name, result, _ in merge(recipe, base if has_base else None, parents):
                theirs = their_case(
                    method,
                    stored[base.path][name] if has_base else None,
                    [stored[model.path][name] for model in parents],
                    given,
                    inputs.get(name, 0),
                    name,
                    method in ("karcher", "multislerp"),
                    settings,
                )
                rows = as_rows(result, inputs.get(name, 0)) if "della" in method else result
                yield f"{kind} {method} {name}", rows, theirs


@pytest.mark.parametrize("kind", [MLM, SEQUENCES])
def test_merges_of_small_models_equal_mergekit(kind, tmp_path):
    labels = ("bad", "good", "so so") if kind == SEQUENCES else ()
    head = HeadConfig(kind, labels=labels, dense_bias=kind == SEQUENCES)
    ours = {name: (result, case) for name, result, case in small_models(tmp_path, head)}
    theirs = with_mergekit({name: case for name, (_, case) in ours.items()}, tmp_path)
    assert len(theirs) == 2 * (len(METHODS) - 1) * len(table(CONFIG, head))
    for name, (result, _) in ours.items():
        np.testing.assert_allclose(
            result.reshape(theirs[name].shape), theirs[name], rtol=0, atol=1e-6, err_msg=name
        )


def test_settings_by_tensor_are_mergekits(tmp_path):
    """Filters, values spread over layers and the order of places, resolved by mergekit's own function."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    recipe = to_recipe(read_recipe_file(tmp_path / "recipe.yaml"), [1, 1])
    names = [row.theirs for row in table(CONFIG)]
    ours = by_tensor(recipe, names, CONFIG.num_layers)
    script = Path(__file__).with_name("with_mergekit.py")
    result = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "recipe.yaml")],
        input=json.dumps({name: depth(name, CONFIG.num_layers) for name in names}),
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(MERGEKIT)},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    theirs = json.loads(result.stdout)
    for name, parameters in ours.items():
        assert list(parameters.weights) == pytest.approx(theirs[name]["weight"]), name
        assert parameters.settings["density"] == pytest.approx(theirs[name]["density"]), name
        assert parameters.settings["lambda"] == pytest.approx(theirs[name]["lambda"]), name
        assert (recipe.normalize, recipe.rescale) == (
            theirs[name]["normalize"],
            theirs[name]["rescale"],
        )
    assert len({parameters.weights for parameters in ours.values()}) > 3


# Each place that may hold a parameter, and both forms that a value may have.
RECIPE = """\
merge_method: dare_ties
base_model: base
models:
  - model: base
  - model: one
    parameters:
      weight:
        - filter: mlp
          value: [0.1, 0.5]
        - filter: norm
          value: 2
  - model: two
    parameters:
      density: [0.2, 0.4, 1.0]
parameters:
  weight:
    - filter: layers.1.
      value: 3e-1
    - value: 0.7
  density: 0.9
  lambda: {filter: "*", value: 0.8}
"""
