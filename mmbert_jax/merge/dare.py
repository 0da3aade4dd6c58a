"""DARE (Yu et al., "Language Models are Super Mario", 2024) before TIES' sign election, of one tensor.

Entries of a task vector are dropped at random, each alike, and what is left is scaled up. The scale restores the task
vector's L1 norm, as mergekit does it; in expectation that is the paper's 1 / density, but a tensor in which few entries
carry most of the norm does not grow or shrink by the luck of the draw.
"""

import zlib
from collections.abc import Iterable, Sequence

import numpy as np

from mmbert_jax.merge.task_vectors import Conflicts, combine

# Norms below this are not restored: there is nothing to scale.
SMALLEST_NORM = 1e-7


def draw_mask(
    shape: tuple[int, ...], density: float, *, seed: int, name: str, model: int
) -> np.ndarray:
    """Which entries of a task vector are kept, bool: a draw of its own for every tensor's name and model's number."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), model])
    return rng.random(shape, np.float32) < density


def drop(delta: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A copy of `delta` with zeros where the mask is False, scaled to the L1 norm that it had."""
    kept = np.where(mask, delta, np.zeros((), delta.dtype))
    before = np.abs(delta).sum(dtype=np.float64)
    after = np.abs(kept).sum(dtype=np.float64)
    if before >= SMALLEST_NORM and after >= SMALLEST_NORM:
        kept *= delta.dtype.type(before / after)
    return kept


def dare_ties(
    base: np.ndarray,
    models: Iterable[np.ndarray],
    weights: Sequence[float],
    masks: Iterable[np.ndarray],
    *,
    scale: float = 1.0,
) -> tuple[np.ndarray, Conflicts]:
    """Merges one tensor like `ties`, with dropping in the place of trimming.

    Args:
      base, models: arrays of one shape and dtype; an iterator of models is read one at a time.
      weights: one for each model, above 0; only their ratios matter.
      masks: bool, one for each model, of the tensor's shape; see `draw_mask`.
      scale: lambda, by which the merged task vector is multiplied.
    """
    deltas = [drop(model - base, mask) for model, mask in zip(models, masks, strict=True)]
    return combine(base, deltas, weights, scale=scale, elect=True)
