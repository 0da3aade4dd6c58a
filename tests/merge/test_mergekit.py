"""Every method against mergekit, entry by entry: on random tensors, on edge cases, and on three small checkpoints.

mergekit is no dependency; `bash tools/setup_peers.sh mergekit` installs it beside the environment.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from stored_models import CONFIG, write_checkpoint, write_folder

from mmbert_jax.hf.names import table
from mmbert_jax.merge.averages import linear, slerp
from mmbert_jax.merge.dare import dare_ties, draw_mask
from mmbert_jax.merge.models import open_model
from mmbert_jax.merge.recipe import make_recipe, merge
from mmbert_jax.merge.task_vectors import task_arithmetic
from mmbert_jax.merge.ties import ties

ROOT = Path(__file__).resolve().parents[2]
MERGEKIT = ROOT / ".peers" / "mergekit"
pytestmark = pytest.mark.skipif(
    not MERGEKIT.is_dir(), reason="no .peers/mergekit: run `bash tools/setup_peers.sh mergekit`"
)

Case = dict[str, object]


def with_mergekit(cases: dict[str, Case], folder: Path) -> dict[str, np.ndarray]:
    """What mergekit makes of each case: method, tensors, parameters, base and perhaps masks."""
    arrays = {}
    for name, case in cases.items():
        arrays[f"{name}/method"] = np.array(case["method"])
        arrays[f"{name}/tensors"] = np.stack(case["tensors"])
        arrays[f"{name}/parameters"] = np.array(json.dumps(case["parameters"]))
        arrays[f"{name}/base"] = np.array(case["base"])
        if "masks" in case:
            arrays[f"{name}/masks"] = np.stack(case["masks"])
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


def draw(seed, shape=(64, 48), models=3, amount=0.01):
    rng = np.random.default_rng(seed)
    base = rng.normal(size=shape).astype(np.float32)
    return base, [
        (base + amount * rng.normal(size=shape)).astype(np.float32) for _ in range(models)
    ]


def ties_case(base, models, weights, density, scale):
    parameters = {
        "weight": list(weights),
        "density": [density] * len(models),
        "lambda": scale,
        "normalize": True,
        "int8_mask": False,
    }
    ours, _ = ties(base, models, weights, density=density, scale=scale)
    case = {"method": "ties", "tensors": [base, *models], "parameters": parameters, "base": 0}
    return ours, case


def dare_case(base, models, weights, density, scale):
    masks = [draw_mask(base.shape, density, seed=7, name="x", model=i) for i in range(len(models))]
    parameters = {
        "weight": list(weights),
        "density": [density] * len(models),
        "lambda": scale,
        "normalize": True,
        "rescale": True,
        "int8_mask": False,
    }
    ours, _ = dare_ties(base, models, weights, masks, scale=scale)
    case = {"method": "dare_ties", "tensors": [base, *models], "parameters": parameters, "base": 0}
    # mergekit draws nothing where everything is kept
    return ours, case | ({"masks": masks} if density < 1 else {})


def arithmetic_case(base, models, weights, scale):
    parameters = {"weight": list(weights), "lambda": scale, "normalize": False, "int8_mask": False}
    ours, _ = task_arithmetic(base, models, weights, scale=scale)
    case = {
        "method": "task_arithmetic",
        "tensors": [base, *models],
        "parameters": parameters,
        "base": 0,
    }
    return ours, case


def linear_case(models, weights):
    case = {
        "method": "linear",
        "tensors": models,
        "parameters": {"weight": list(weights)},
        "base": -1,
    }
    return linear(models, weights), case


def slerp_case(first, second, t):
    case = {"method": "slerp", "tensors": [first, second], "parameters": {"t": t}, "base": 0}
    return slerp(first, second, t), case


def random_cases():
    base, models = draw(0)
    for weights in ((1.0, 1.0, 1.0), (0.5, 2.0, 1.25)):
        for density in (0.0, 0.003, 0.2, 0.5, 1.0):
            yield f"ties {weights} {density}", ties_case(base, models, weights, density, 0.7)
            yield f"dare {weights} {density}", dare_case(base, models, weights, density, 0.7)
        yield f"arithmetic {weights}", arithmetic_case(base, models, weights, 0.7)
        yield f"linear {weights}", linear_case(models, weights)
    yield "arithmetic negation", arithmetic_case(base, models, (1.0, -0.5, 0.25), 1.0)
    for t in (0.0, 0.3, 0.5, 1.0):
        yield f"slerp {t}", slerp_case(base, draw(1)[0], t)
        yield f"slerp nearly parallel {t}", slerp_case(base, models[0], t)
        yield f"slerp opposite {t}", slerp_case(base, -base, t)


def edge_cases():
    base, (model, other, _) = draw(2)
    zero = np.zeros_like(base)
    rng = np.random.default_rng(3)
    # As many equal magnitudes as the density keeps: more would leave it to mergekit's sort which of them to take.
    equal = np.where(rng.random(base.shape) < 0.5, 0.25, -0.25).astype(np.float32)
    half = np.zeros(base.size, np.float32)
    half[: base.size // 2] = equal.reshape(-1)[: base.size // 2]
    half = half.reshape(base.shape)
    for density in (0.0, 0.5, 1.0):
        for make in (ties_case, dare_case):
            yield (
                f"{make.__name__} nothing moved {density}",
                make(base, [base] * 2, (1, 1), density, 1),
            )
            yield (
                f"{make.__name__} one moved {density}",
                make(base, [base, model, base], (1, 2, 1), density, 1),
            )
            yield f"{make.__name__} alike {density}", make(base, [model, model], (1, 1), density, 1)
        yield f"equal {density}", ties_case(zero, [half, half], (1, 1), density, 1)
    yield "opposite and equal", ties_case(zero, [equal, -equal], (1, 1), 1.0, 1)
    yield "opposite and equal, dare", dare_case(zero, [equal, -equal], (1, 1), 0.5, 1)
    yield "one entry", ties_case(base[:1, :1], [model[:1, :1]], (1,), 0.5, 1)
    yield "vector", ties_case(base[0], [model[0], other[0]], (1, 3), 0.5, 1)
    yield "arithmetic nothing moved", arithmetic_case(base, [base, base], (1, 1), 1)
    yield "slerp zero", slerp_case(zero, model, 0.4)
    yield "slerp zeros", slerp_case(zero, zero, 0.4)


def test_functions_equal_mergekit(tmp_path):
    cases = dict([*random_cases(), *edge_cases()])
    theirs = with_mergekit({name: case for name, (_, case) in cases.items()}, tmp_path)
    assert len(theirs) == len(cases) > 50
    for name, (ours, _) in cases.items():
        np.testing.assert_allclose(ours, theirs[name], rtol=0, atol=1e-6, err_msg=name)


def small_models(folder: Path) -> Iterator[tuple[str, np.ndarray, Case]]:
    """Merged tensors of three models and their base, from disk, by every method; as checkpoints and as folders."""
    weights = [1.0, 0.5, 2.0]
    for kind, write in (("checkpoint", write_checkpoint), ("folder", write_folder)):
        paths = [folder / f"{kind}{i}" for i in range(4)]
        for i, path in enumerate(paths):
            write(path, seed=i, amount=0.02 * i)
        base, *models = (open_model(path) for path in paths)
        # As stored: the two kinds lay out a tensor differently, and a mask is drawn in that layout.
        stored = {m.path: {name: m.read(name) for name in m.shapes} for m in (base, *models)}
        shared = {"weight": weights, "density": [0.5] * 3, "lambda": 1.0, "int8_mask": False}
        normalised = shared | {"normalize": True}
        for method, sources, parameters in (
            ("ties", [base, *models], normalised),
            ("dare_ties", [base, *models], normalised | {"rescale": True}),
            ("task_arithmetic", [base, *models], shared | {"normalize": False}),
            ("linear", models, {"weight": weights}),
            ("slerp", models[:2], {"t": 0.3}),
        ):
            merged = sources[1:] if sources[0] is base else sources
            slerp_t = {"t": 0.3} if method == "slerp" else {}
            recipe = make_recipe(method, len(merged), None if slerp_t else weights, slerp_t)
            for name, tensor, _ in merge(recipe, base if merged is not sources else None, merged):
                case = {
                    "method": method,
                    "tensors": [stored[model.path][name] for model in sources],
                    "parameters": parameters,
                    "base": -1 if method == "linear" else 0,
                }
                if method == "dare_ties":
                    case["masks"] = [
                        draw_mask(tensor.shape, 0.5, seed=0, name=name, model=i) for i in range(3)
                    ]
                yield f"{kind} {method} {name}", tensor, case


def test_merges_of_small_models_equal_mergekit(tmp_path):
    merged = {name: (tensor, case) for name, tensor, case in small_models(tmp_path)}
    theirs = with_mergekit({name: case for name, (_, case) in merged.items()}, tmp_path)
    assert len(theirs) == 2 * 5 * len(table(CONFIG))
    for name, (tensor, _) in merged.items():
        np.testing.assert_allclose(tensor, theirs[name], rtol=0, atol=1e-6, err_msg=name)
