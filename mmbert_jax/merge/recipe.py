"""A merge as a recipe, carried out tensor by tensor over models on disk."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from mmbert_jax.errors import UserError
from mmbert_jax.merge.averages import exponential_weights, linear, slerp
from mmbert_jax.merge.dare import dare_ties, draw_mask
from mmbert_jax.merge.models import StoredModel
from mmbert_jax.merge.report import Outcome
from mmbert_jax.merge.task_vectors import Conflicts, task_arithmetic
from mmbert_jax.merge.ties import ties

# Method -> its settings and what they are where the user gives none. Methods with `lambda` add to a base.
METHODS = {
    "ties": {"density": 0.5, "lambda": 1.0},
    "dare_ties": {"density": 0.5, "lambda": 1.0, "seed": 0},
    "task_arithmetic": {"lambda": 1.0},
    "linear": {},
    "ema": {"decay": 0.8},
    "slerp": {"t": 0.5},
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to merge.

    Attributes:
      method: of METHODS.
      weights: one for each model.
      settings: of the method, all of them.
    """

    method: str
    weights: tuple[float, ...]
    settings: dict[str, float]

    @property
    def has_base(self) -> bool:
        return "lambda" in METHODS[self.method]


def make_recipe(
    method: str, models: int, weights: Sequence[float] | None, settings: dict[str, float]
) -> Recipe:
    """A recipe for so many models, checked; weights and settings that are not given are the method's own.

    Raises:
      UserError: a setting that the method does not have or that is out of range, weights that do not fit.
    """
    own = METHODS[method]
    for name in settings:
        if name not in own:
            raise UserError(
                f"--{name} says nothing to --method {method}, which has"
                f" {', '.join(f'--{setting}' for setting in own) or 'no settings but --weights'}"
            )
    settings = own | settings
    for name in ("density", "decay", "t"):
        if name in settings and not 0 <= settings[name] <= 1:
            raise UserError(f"--{name} {settings[name]} is outside 0 to 1")
    if settings.get("seed", 0) < 0:
        raise UserError(f"--seed {settings['seed']}: it has to be 0 or more")
    if method in ("ema", "slerp"):
        if weights:
            raise UserError(
                f"--weights says nothing to --method {method}: --{next(iter(own))} does"
            )
        if method == "slerp" and models != 2:
            raise UserError(
                f"--method slerp goes from one model to another: give two --models, not {models}"
            )
        if method == "slerp":
            weights = [1 - settings["t"], settings["t"]]
        else:
            weights = exponential_weights(models, settings["decay"])
    weights = tuple(weights or [1.0] * models)
    if len(weights) != models:
        raise UserError(
            f"--weights has {len(weights)} numbers for {models} models; give one for each"
        )
    if method in ("ties", "dare_ties", "linear") and not all(weight > 0 for weight in weights):
        raise UserError(f"--weights {list(weights)}: every weight has to be above 0")
    return Recipe(method, weights, settings)


def merge(
    recipe: Recipe, base: StoredModel | None, models: Sequence[StoredModel]
) -> Iterator[tuple[str, np.ndarray, Outcome]]:
    """Merges models of one shape, holding of each no more than one tensor.

    Args:
      base: what the models were trained from; None for a method that has none.

    Yields:
      Name, merged tensor in the dtype that the base (or the first model) stores, and what the merge did to it.
    """
    for name in (base or models[0]).shapes:
        stored = (base or models[0]).read(name)
        reference = stored.astype(np.float32)
        tensors = (model.read(name).astype(np.float32) for model in models)
        merged, conflicts = _merge_tensor(recipe, name, reference, tensors)
        yield (
            name,
            merged.astype(stored.dtype),
            Outcome.of(merged, reference, conflicts),
        )


def _merge_tensor(
    recipe: Recipe, name: str, base: np.ndarray, tensors: Iterator[np.ndarray]
) -> tuple[np.ndarray, Conflicts | None]:
    settings, weights = recipe.settings, recipe.weights
    match recipe.method:
        case "ties":
            return ties(
                base, tensors, weights, density=settings["density"], scale=settings["lambda"]
            )
        case "dare_ties":
            masks = (
                draw_mask(
                    base.shape, settings["density"], seed=int(settings["seed"]), name=name, model=i
                )
                for i in range(len(weights))
            )
            return dare_ties(base, tensors, weights, masks, scale=settings["lambda"])
        case "task_arithmetic":
            return task_arithmetic(base, tensors, weights, scale=settings["lambda"])
        case "linear" | "ema":
            return linear(tensors, weights), None
        case "slerp":
            return slerp(*tensors, settings["t"]), None
    raise ValueError(f"no merging method {recipe.method!r}")
