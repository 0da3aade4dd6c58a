"""Merges in many ways, scored by held-out loss: which density and which weights suit which group of languages."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict

from mmbert_jax.checks import check_corpus
from mmbert_jax.checksums import sha256
from mmbert_jax.errors import UserError
from mmbert_jax.evaluate.heldout import Results, by_group, evaluate
from mmbert_jax.files import nan_for_null, read_json, write_json
from mmbert_jax.merge.checks import read_finite
from mmbert_jax.merge.merge import merge
from mmbert_jax.merge.models import StoredModel
from mmbert_jax.merge.recipe import Recipe, make_recipe
from mmbert_jax.parallel.mesh import make_mesh
from mmbert_jax.parallel.sharding import param_shardings
from mmbert_jax.places import Place
from mmbert_jax.run import SUMS

RESULTS = "sweep.json"
Score = Callable[[Mapping[str, Any]], Results]


def grid(
    method: str,
    models: int,
    weights: Sequence[Sequence[float] | None],
    settings: Mapping[str, Sequence[float]],
) -> list[Recipe]:
    """Recipes of all combinations of weights and of the values of every setting.

    Raises:
      UserError: see `make_recipe`.
    """
    recipes = []
    for chosen in weights:
        for values in itertools.product(*settings.values()):
            given = dict(zip(settings, values, strict=True))
            recipes.append(make_recipe(method, models, chosen, given))
    return recipes


def make_score(config: ConfigDict, model: StoredModel) -> Score:
    """A function from flat parameters of `model`'s shape to held-out results by language, on one device.

    Raises:
      UserError: the corpus was prepared with another tokeniser than the model's.
    """
    check_corpus(model.meta, config.data)
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    shardings, run = param_shardings(model.config, mesh), evaluate(config, mesh)

    def score(flat: Mapping[str, Any]) -> Results:
        results = run(jax.device_put(unflatten_dict(dict(flat), sep="/"), shardings))
        if not results:
            raise UserError(
                f"{config.data.corpus} has no held-out rows of {config.data.row_length} tokens"
            )
        return results

    return score


def sweep(
    folder: Place,
    recipes: Sequence[Recipe],
    base: StoredModel | None,
    models: Sequence[StoredModel],
    score: Score,
    groups: Mapping[str, Sequence[str]],
    evaluated_on: Mapping[str, Any],
    say: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """Scores the base, every model and every recipe; writes `sweep.json` after each, and goes on from what is there.

    Args:
      folder: exists; holds nothing, or a sweep.
      groups: of languages.
      evaluated_on: what decides the scores besides the models; a sweep with another one is not gone on with.
      say: told each result as it comes.

    Returns:
      Name -> {"held_out_groups", "held_out", and of a recipe "weights" and "settings"}.

    Raises:
      UserError: the folder holds a sweep of other models or on other text.
    """
    inputs = {
        "base": _identity(base) if base else None,
        "models": [_identity(model) for model in models],
        **evaluated_on,
    }
    path = folder / RESULTS
    points = {}
    if path.exists():
        found = read_json(path)
        if changed := _changes(found["inputs"], inputs):
            raise UserError(
                f"{path} is a sweep over something else: {changed}; choose another --output"
            )
        points = nan_for_null(found["points"])

    parents = [*([("base", base)] if base else []), *((model.path, model) for model in models)]
    for name, model in parents:
        if name not in points:
            results = score({tensor: read_finite(model, tensor)[0] for tensor in model.shapes})
            points[name] = _point(results, groups)
            _write(path, inputs, points)
        say(_line(name, points[name]))
    for recipe in recipes:
        name = recipe_name(recipe)
        if name not in points:
            results = score({tensor: x for tensor, x, _ in merge(recipe, base, models)})
            points[name] = _point(results, groups) | {
                "weights": list(recipe.weights),
                "settings": recipe.settings,
            }
            _write(path, inputs, points)
        say(_line(name, points[name]))
    return points


def _identity(model: StoredModel) -> dict[str, Any]:
    """What tells a model from another one at the same path: a run that was trained on has another newest checkpoint."""
    return {
        "path": model.path,
        "step": model.meta.get("step"),
        "sums": sha256(model.folder / SUMS),
    }


def _changes(before: Any, now: Any, name: str = "") -> str | None:
    """The first value that is another one, with its name; None where all are equal."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        parts = [(f"{name} {key}", before.get(key), now.get(key)) for key in {**now, **before}]
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        parts = [
            (f"{name} {i}", *pair) for i, pair in enumerate(zip(before, now, strict=True), start=1)
        ]
    else:
        return None if before == now else f"{name.strip()} was {before}, and is {now}"
    return next((found for n, b, a in parts if (found := _changes(b, a, n))), None)


def recipe_name(recipe: Recipe) -> str:
    """E.g. "ties 0.5:0.5:2 density 0.5 lambda 1"."""
    weights = ":".join(f"{weight:g}" for weight in recipe.weights)
    settings = "".join(f" {name} {value:g}" for name, value in recipe.settings.items())
    return f"{recipe.method} {weights}{settings}"


def best_by_group(points: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, float]]:
    """Group -> the merge with the lowest loss, and that loss; one that is no number counts as the highest."""
    merged = {name: point for name, point in points.items() if "weights" in point}
    groups = next(iter(merged.values()))["held_out_groups"]
    best = {}
    for group in groups:
        losses = {name: point["held_out_groups"][group]["loss"] for name, point in merged.items()}
        name = min(losses, key=lambda name: (math.isnan(losses[name]), losses[name]))
        best[group] = name, losses[name]
    return best


def _point(results: Results, groups: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    return {"held_out_groups": by_group(results, groups), "held_out": results}


def _line(name: str, point: Mapping[str, Any]) -> str:
    losses = (f"{group} {r['loss']:.4f}" for group, r in point["held_out_groups"].items())
    return f"{name}: " + ", ".join(losses)


def _write(path: Place, inputs: Mapping[str, Any], points: Mapping[str, Any]) -> None:
    write_json(path, {"inputs": inputs, "points": points})
