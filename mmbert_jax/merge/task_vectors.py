"""Sums of task vectors, of one tensor: what task arithmetic, TIES, DARE, DELLA and breadcrumbs share.

With base b, models t_i and weights w_i, task arithmetic (Ilharco et al., "Editing Models with Task Arithmetic", 2023)
is

    d_i = w_i * sparse(t_i - b)                      task vectors, of which `sparsify` keeps a part
    D   = sum_i d_i
    result = b + lambda * D

and TIES (Yadav et al., "TIES-Merging: Resolving Interference When Merging Models", 2023), as mergekit defines it,

    s   = +1 where sum_i d_i >= 0, else -1           elect a sign
    m_i = [sign(d_i) == s]
    D   = sum_i m_i d_i

Normalised, D is divided by the weights that went into it, sum_i w_i or sum_i m_i w_i, a divisor of 0 counting as 1.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

# Entries at a time: what is computed beside the task vectors stays small.
CHUNK = 1 << 20
NO_DIVISOR = 1e-8


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


def combine(
    base: np.ndarray,
    deltas: Sequence[np.ndarray],
    weights: Sequence[float],
    *,
    scale: float,
    elect: bool,
    normalize: bool,
) -> tuple[np.ndarray, Conflicts]:
    """Adds what task vectors sum up to, in the base's dtype.

    Args:
      base, deltas: arrays of one shape and dtype; the task vectors with zeros where nothing is kept of them.
      weights: one for each; a negative one takes away what a model has learnt.
      scale: lambda, by which the sum is multiplied.
      elect: whether only entries count that agree with the elected sign.
      normalize: whether the sum is divided by its weights, so that only their ratios matter.
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
        else:
            divisor = np.asarray(sum(weights), dtype)
        if normalize:
            merged /= np.where(np.abs(divisor) < NO_DIVISOR, dtype.type(1), divisor)
        result[part] = flat_base[part] + dtype.type(scale) * merged
    return result.reshape(base.shape), Conflicts(base.size, kept, changed, conflicts)
