"""Which entries of a task vector are kept, of one tensor: four ways, as mergekit defines them.

magnitude    the largest (TIES: Yadav et al., "Resolving Interference When Merging Models", 2023)
random       each alike (DARE: Yu et al., "Language Models are Super Mario", 2024)
by rank      the larger within its row, the likelier (DELLA: Deep et al., "Reducing Interference in Model Merging
             through Magnitude-Based Sampling", 2024)
breadcrumbs  the largest but for the very largest (Davari and Belilovsky, "Model Breadcrumbs", 2024)

What a random draw decides comes as numbers in [0, 1), one an entry: an entry is kept where its number is below its
probability. So a draw depends on seed, tensor and model alone, and two implementations can be given the same one.
"""

import zlib

import numpy as np

# Entries at a time where ranks are computed: 8 bytes an entry, several times.
CHUNK = 1 << 20
# Norms below this are not restored: there is nothing to scale.
SMALLEST_NORM = 1e-7


def draw(shape: tuple[int, ...], *, seed: int, name: str, model: int) -> np.ndarray:
    """Numbers in [0, 1), float32: a draw of its own for every seed, tensor's name and model's number."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), model])
    return rng.random(shape, np.float32)


def trim(delta: np.ndarray, density: float) -> np.ndarray:
    """A copy of `delta` with all but its `max(1, int(density * size))` largest magnitudes set to zero.

    Of equal magnitudes at the border the first in memory order are kept, so that exactly that many are left and the
    result does not depend on a sort. Density 0 keeps nothing, density 1 everything.
    """
    if density >= 1:
        return delta.copy()
    if density <= 0 or delta.size == 0:
        return np.zeros_like(delta)
    return _where(_largest(delta, max(1, int(density * delta.size))), delta)


def trim_outliers(delta: np.ndarray, density: float, gamma: float) -> np.ndarray:
    """A copy of `delta` with `int(density * size)` entries, the largest but for the `int(gamma * size)` very largest.

    Fewer of the very largest go where otherwise too few entries would be left. Density 1 keeps everything.
    """
    if density >= 1:
        return delta.copy()
    kept, outliers = int(density * delta.size), int(gamma * delta.size)
    small = max(0, delta.size - kept - outliers)
    mask = _largest(delta, delta.size - small)
    mask &= ~_largest(delta, delta.size - small - kept)
    return _where(mask, delta)


def drop(delta: np.ndarray, density: float, drawn: np.ndarray) -> np.ndarray:
    """A copy of `delta`, every entry kept with probability `density`; `drawn` (see `draw`) is of its shape."""
    return _where(drawn < density, delta)


def drop_by_rank(
    delta: np.ndarray, density: float, epsilon: float, drawn: np.ndarray
) -> np.ndarray:
    """A copy of `delta` in which an entry is kept with probability density - epsilon (the smallest of its row) to
    density + epsilon (the largest), evenly by rank; a row of one entry with `density`.

    Args:
      delta: [rows, entries of a row].
      density: 0 keeps nothing and 1 everything, whatever epsilon is; else density +- epsilon lie within 0 and 1.
      drawn: of its shape, see `draw`.
    """
    if density >= 1:
        return delta.copy()
    if density <= 0:
        return np.zeros_like(delta)
    result = np.zeros_like(delta)
    rows, length = delta.shape
    some = max(1, CHUNK // max(1, length))
    for start in range(0, rows, some):
        part = slice(start, start + some)
        order = np.abs(delta[part]).argsort(axis=1, kind="stable")
        ranks = np.empty(order.shape, delta.dtype)
        np.put_along_axis(ranks, order, np.arange(length, dtype=delta.dtype)[None], axis=1)
        ranks = ranks / (length - 1) if length > 1 else np.full_like(ranks, 0.5)
        probability = (density - epsilon) + ranks * 2 * epsilon
        np.copyto(result[part], delta[part], where=drawn[part] < probability)
    return result


def restore_norm(kept: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """Scales `kept`, in place, to the L1 norm of the task vector that it was taken from.

    Where entries are dropped at random that is in expectation the papers' 1 / density, but a tensor in which few
    entries carry most of the norm does not grow or shrink by the luck of the draw.
    """
    before = np.abs(delta).sum(dtype=np.float64)
    after = np.abs(kept).sum(dtype=np.float64)
    if before >= SMALLEST_NORM and after >= SMALLEST_NORM:
        kept *= delta.dtype.type(before / after)
    return kept


def _largest(delta: np.ndarray, count: int) -> np.ndarray:
    """Where the `count` largest magnitudes are, bool; the first in memory order of those that are equal."""
    if count <= 0 or count >= delta.size:
        return np.full(delta.shape, count > 0)
    magnitude = np.abs(delta).reshape(-1)
    magnitude.partition(magnitude.size - count)
    border = magnitude[magnitude.size - count]
    del magnitude  # as large as the tensor, which may be two thirds of a model
    flat = delta.reshape(-1)
    mask = (flat > border) | (flat < -border)
    at_border = np.flatnonzero((flat == border) | (flat == -border))
    mask[at_border[: count - np.count_nonzero(mask)]] = True
    return mask.reshape(delta.shape)


def _where(mask: np.ndarray, delta: np.ndarray) -> np.ndarray:
    return np.where(mask, delta, np.zeros((), delta.dtype))
