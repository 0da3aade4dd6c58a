"""Sums of task vectors, of one tensor: what TIES, DARE and task arithmetic share.

Task arithmetic (Ilharco et al., "Editing Models with Task Arithmetic", 2023) is

    result = b + lambda * sum_i w_i (t_i - b).
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

# Entries at a time: what is computed beside the task vectors stays small.
CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Conflicts:
    """What became of the task vectors of a tensor.

    Attributes:
      size: entries of the tensor.
      kept: entries of all task vectors that are not zero.
      changed: entries where at least one task vector is not zero.
      conflicts: entries where the weighted task vectors have both signs.
    """

    size: int
    kept: int
    changed: int
    conflicts: int


def task_arithmetic(
    base: np.ndarray,
    models: Iterable[np.ndarray],
    weights: Sequence[float],
    *,
    scale: float = 1.0,
) -> tuple[np.ndarray, Conflicts]:
    """Adds weighted task vectors to the base; a negative weight takes away what a model has learnt.

    Args:
      base, models: arrays of one shape and dtype; an iterator of models is read one at a time.
      weights: one for each model; they are not normalised.
      scale: lambda, by which the sum is multiplied.
    """
    deltas = [model - base for model in models]
    return combine(base, deltas, weights, scale=scale, elect=False)


def combine(
    base: np.ndarray,
    deltas: Sequence[np.ndarray],
    weights: Sequence[float],
    *,
    scale: float,
    elect: bool,
) -> tuple[np.ndarray, Conflicts]:
    """base + scale * (sum of w_i d_i), or with `elect` the disjoint mean of those that agree with the elected sign.

    Computes in the base's dtype.
    """
    dtype = base.dtype
    factors = [dtype.type(weight) for weight in weights]
    flats = [delta.reshape(-1) for delta in deltas]
    if len(flats) != len(factors):
        raise ValueError(f"{len(factors)} weights for {len(flats)} models")
    flat_base, result = base.reshape(-1), np.empty(base.size, dtype)
    kept = changed = conflicts = 0
    for start in range(0, base.size, CHUNK):
        part = slice(start, start + CHUNK)
        weighted = [flat[part] * factor for flat, factor in zip(flats, factors, strict=True)]
        up, down = [d > 0 for d in weighted], [d < 0 for d in weighted]
        any_up, any_down = np.any(up, axis=0), np.any(down, axis=0)
        kept += np.count_nonzero(up) + np.count_nonzero(down)
        changed += np.count_nonzero(any_up | any_down)
        conflicts += np.count_nonzero(any_up & any_down)

        merged = sum(weighted, np.zeros_like(flat_base[part]))
        if elect:
            agrees = np.where(merged >= 0, up, down)
            merged = np.where(agrees, weighted, dtype.type(0)).sum(axis=0)
            divisor = sum(a * factor for a, factor in zip(agrees, factors, strict=True))
            merged /= np.where(divisor == 0, dtype.type(1), divisor)
        result[part] = flat_base[part] + dtype.type(scale) * merged
    return result.reshape(base.shape), Conflicts(base.size, kept, changed, conflicts)
