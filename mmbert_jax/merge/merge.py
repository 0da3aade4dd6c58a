"""Merging models on disk by a recipe, tensor by tensor."""

import itertools
from collections.abc import Iterator, Mapping, Sequence

import ml_dtypes  # noqa: F401  for NumPy's bfloat16
import numpy as np

from mmbert_jax.errors import UserError
from mmbert_jax.hf.names import table
from mmbert_jax.merge import angles, averages, sparsify
from mmbert_jax.merge.checks import check_finite, read_finite
from mmbert_jax.merge.models import CHECKPOINT, StoredModel
from mmbert_jax.merge.recipe import ELECTING, Parameters, Recipe, by_tensor
from mmbert_jax.merge.report import Outcome
from mmbert_jax.merge.task_vectors import Conflicts, combine
from mmbert_jax.model.heads import HeadConfig


def merge(
    recipe: Recipe, base: StoredModel | None, models: Sequence[StoredModel]
) -> Iterator[tuple[str, np.ndarray, Outcome]]:
    """Merges models of one shape, holding of each no more than one tensor.

    Args:
      base: what the models were trained from; None for a method that has none.

    Yields:
      Name, merged tensor in the recipe's dtype or the one that the base (or the first model) stores, and what the merge
      did to it.

    Raises:
      UserError: a tensor with an entry that is no number, or that the dtype cannot hold; see also `recipe.by_tensor`.
    """
    first = base or models[0]
    parameters = by_tensor(recipe, first.shapes, first.config.num_layers)
    inputs = _inputs(first)
    for name in first.shapes:
        reference, dtype = read_finite(first, name)
        if recipe.dtype:
            dtype = np.dtype(recipe.dtype)
        others = (read_finite(model, name)[0] for model in (models if base else models[1:]))
        tensors = others if base else itertools.chain([reference], others)
        try:
            merged, conflicts = merge_tensor(
                recipe,
                parameters[name],
                name,
                reference if base else None,
                tensors,
                inputs.get(name, 0),
            )
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        outcome = Outcome.of(merged, reference, conflicts)
        # What does not fit becomes infinite, which is told below.
        with np.errstate(over="ignore"):
            cast = merged.astype(dtype, copy=False)
        check_finite(name, merged, cast)
        yield name, cast, outcome


def merge_tensor(
    recipe: Recipe,
    parameters: Parameters,
    name: str,
    base: np.ndarray | None,
    tensors: Iterator[np.ndarray],
    inputs: int = 0,
) -> tuple[np.ndarray, Conflicts | None]:
    """Merges one tensor, in the dtype that the models have.

    Args:
      parameters: what the recipe says of this tensor.
      name: the tensor's, on which random draws depend.
      base: None where there is none.
      tensors: of the models, read one at a time.
      inputs: how many leading dimensions are a linear layer's inputs; 0 for [out, in] and what is no linear layer.

    Returns:
      The merged tensor, and what became of the task vectors where the method sums them up.
    """
    weights, settings = parameters.weights, parameters.settings
    match recipe.method:
        case "linear" | "ema":
            return averages.linear(tensors, weights, normalize=recipe.normalize), None
        case "slerp":
            return averages.slerp(*tensors, settings["t"]), None
        case "karcher":
            return angles.karcher(
                list(tensors), max_iter=int(settings["max_iter"]), tol=settings["tol"]
            ), None
        case "multislerp":
            deltas = [tensor if base is None else tensor - base for tensor in tensors]
            return angles.multislerp(deltas, weights, base=base, normalize=recipe.normalize), None
        case "model_stock":
            return angles.model_stock(base, [tensor - base for tensor in tensors]), None
    deltas = []
    for i, tensor in enumerate(tensors):
        own = {key: x[i] if isinstance(x, list) else x for key, x in settings.items()}
        deltas.append(_sparse(recipe, tensor - base, own, name, i, inputs))
    return combine(
        base,
        deltas,
        weights,
        scale=settings["lambda"],
        elect=recipe.method in ELECTING,
        normalize=recipe.normalize,
    )


def _sparse(
    recipe: Recipe,
    delta: np.ndarray,
    settings: Mapping[str, float],
    name: str,
    model: int,
    inputs: int,
) -> np.ndarray:
    """What a method keeps of a model's task vector."""

    def drawn(shape: tuple[int, ...]) -> np.ndarray:
        return sparsify.draw(shape, seed=int(settings["seed"]), name=name, model=model)

    match recipe.method.removesuffix("_ties").removesuffix("_linear"):
        case "task_arithmetic":
            return delta
        case "ties":
            kept = sparsify.trim(delta, settings["density"])
        case "breadcrumbs":
            kept = sparsify.trim_outliers(delta, settings["density"], settings["gamma"])
        case "dare":
            kept = sparsify.drop(delta, settings["density"], drawn(delta.shape))
        case "della":
            rows = as_rows(delta, inputs)
            kept = sparsify.drop_by_rank(
                rows, settings["density"], settings["epsilon"], drawn(rows.shape)
            )
            kept = (kept.T if inputs else kept).reshape(delta.shape)
    return sparsify.restore_norm(kept, delta) if recipe.rescale else kept


def as_rows(tensor: np.ndarray, inputs: int) -> np.ndarray:
    """A linear layer's weight as [out, in], a row for all that one output reads; others by their last dimension."""
    if not inputs:
        return tensor.reshape(-1, tensor.shape[-1] if tensor.ndim else 1)
    return tensor.reshape(int(np.prod(tensor.shape[:inputs])), -1).T


def _inputs(model: StoredModel) -> dict[str, int]:
    if model.kind != CHECKPOINT:  # [out, in] already
        return {}
    head = HeadConfig.from_config(model.meta["config"])
    return {row.ours: row.inputs for row in table(model.config, head)}
