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

from collections.abc import Iterable, Sequence

import numpy as np

from mmbert_jax.merge.task_vectors import Conflicts, combine


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
    magnitude.partition(magnitude.size - keep)
    border = magnitude[magnitude.size - keep]
    del magnitude  # as large as the tensor, which may be two thirds of a model
    flat = delta.reshape(-1)
    kept = (flat > border) | (flat < -border)
    at_border = np.flatnonzero((flat == border) | (flat == -border))
    kept[at_border[: keep - np.count_nonzero(kept)]] = True
    return np.where(kept.reshape(delta.shape), delta, np.zeros((), delta.dtype))


def ties(
    base: np.ndarray,
    models: Iterable[np.ndarray],
    weights: Sequence[float],
    *,
    density: float,
    scale: float = 1.0,
) -> tuple[np.ndarray, Conflicts]:
    """Merges one tensor; computes in the base's dtype and returns that dtype.

    Args:
      base, models: arrays of one shape and dtype; an iterator of models is read one at a time.
      weights: one for each model, above 0; only their ratios matter, as the mean is normalised.
      density: share of each task vector that is kept, 0 to 1.
      scale: lambda, by which the merged task vector is multiplied.
    """
    deltas = [trim(model - base, density) for model in models]
    return combine(base, deltas, weights, scale=scale, elect=True)
