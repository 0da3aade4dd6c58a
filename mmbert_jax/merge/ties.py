"""TIES merging (Yadav et al., "TIES-Merging: Resolving Interference When Merging Models", 2023), of one tensor.

With base b, models t_i, weights w_i and density p, as mergekit defines it:

    d_i = t_i - b                                    task vectors
    d_i = d_i where |d_i| is among the max(1, int(p * size)) largest of the tensor, else 0      (trim)
    d_i = w_i * d_i
    s   = +1 where sum_i d_i >= 0, else -1                                                      (elect a sign)
    m_i = [sign(d_i) == s]
    D   = sum_i m_i d_i / sum_i m_i w_i, a divisor of 0 counting as 1                           (disjoint mean)
    result = b + lambda * D
"""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Conflicts:
    """What trimming and sign election did to a tensor.

    Attributes:
      size: entries of the tensor.
      kept: entries of all task vectors left by trimming that are not zero.
      changed: entries where at least one task vector is left.
      conflicts: entries where the weighted task vectors that are left have both signs.
    """

    size: int
    kept: int
    changed: int
    conflicts: int


def trim(delta: np.ndarray, density: float) -> np.ndarray:
    """A copy of `delta` with all but its `max(1, int(density * size))` largest magnitudes set to zero.

    Of equal magnitudes at the border the first in memory order are kept, so that exactly that many are left and the
    result does not depend on a sort. Density 0 keeps nothing, density 1 everything.
    """
    if density >= 1:
        return delta.copy()
    if density <= 0 or delta.size == 0:
        return np.zeros_like(delta)
    keep = max(1, int(density * delta.size))
    magnitude = np.abs(delta).reshape(-1)
    border = np.partition(magnitude, magnitude.size - keep)[magnitude.size - keep]
    kept = magnitude > border
    at_border = np.flatnonzero(magnitude == border)
    kept[at_border[: keep - np.count_nonzero(kept)]] = True
    return np.where(kept.reshape(delta.shape), delta, np.zeros((), delta.dtype))


def ties(
    base: np.ndarray,
    models: Sequence[np.ndarray],
    weights: Sequence[float],
    *,
    density: float,
    scale: float = 1.0,
) -> tuple[np.ndarray, Conflicts]:
    """Merges one tensor; computes in the base's dtype and returns that dtype.

    Args:
      base, models: arrays of one shape and dtype.
      weights: one for each model; only their ratios matter, as the mean is normalised.
      density: share of each task vector that is kept, 0 to 1.
      scale: lambda, by which the merged task vector is multiplied.
    """
    dtype = base.dtype
    total = np.zeros_like(base)
    deltas = []
    for model, weight in zip(models, weights, strict=True):
        delta = trim(model - base, density)
        delta *= dtype.type(weight)
        total += delta
        deltas.append(delta)
    positive = total >= 0
    merged, divisor = np.zeros_like(base), np.zeros_like(base)
    any_up, any_down = np.zeros(base.shape, bool), np.zeros(base.shape, bool)
    kept = 0
    for delta, weight in zip(deltas, weights, strict=True):
        up, down = delta > 0, delta < 0
        agrees = np.where(positive, up, down)
        merged += np.where(agrees, delta, dtype.type(0))
        divisor += agrees * dtype.type(weight)
        any_up |= up
        any_down |= down
        kept += np.count_nonzero(up) + np.count_nonzero(down)
    merged /= np.where(divisor == 0, dtype.type(1), divisor)
    counts = Conflicts(
        size=base.size,
        kept=kept,
        changed=int(np.count_nonzero(any_up | any_down)),
        conflicts=int(np.count_nonzero(any_up & any_down)),
    )
    return base + dtype.type(scale) * merged, counts
