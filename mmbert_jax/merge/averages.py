"""Averages of models without a base, of one tensor: weighted means and SLERP."""

from collections.abc import Iterable, Sequence

import numpy as np

# Beyond this cosine (or its negative) the arc is as good as straight, and dividing by its sine is not safe.
STRAIGHT = 0.9995
SMALLEST_NORM = 1e-8


def linear(
    models: Iterable[np.ndarray], weights: Sequence[float], *, normalize: bool = True
) -> np.ndarray:
    """Weighted mean of arrays of one shape and dtype (Wortsman et al., "Model soups", 2022); returns that dtype.

    Args:
      models: an iterator is read one at a time.
      weights: one for each model; only their ratios matter, their sum must not be 0.
      normalize: False for the weighted sum.
    """
    total = None
    for model, weight in zip(models, weights, strict=True):
        term = model * model.dtype.type(weight)
        total = term if total is None else np.add(total, term, out=total)
    if normalize:
        total /= total.dtype.type(sum(weights))
    return total


def exponential_weights(count: int, decay: float) -> list[float]:
    """Weights of an exponential moving average over `count` checkpoints, oldest first; they sum to 1.

    A checkpoint counts `decay` times the next one. The oldest has no extra weight, unlike in a running average that
    starts from it.
    """
    powers = [decay ** (count - 1 - i) for i in range(count)]
    return [power / sum(powers) for power in powers]


def slerp(first: np.ndarray, second: np.ndarray, t: float) -> np.ndarray:
    """The point at `t` on the arc between two tensors, each taken as one long vector; 0 is the first, 1 the second.

    With theta the angle between them, sin((1 - t) theta) / sin(theta) * first + sin(t theta) / sin(theta) * second;
    their lengths are interpolated along with their directions. Nearly parallel, opposite or zero vectors are
    interpolated linearly. Shoemake, "Animating rotation with quaternion curves", 1985.
    """
    cosine = cosine_similarity(first, second)
    if abs(cosine) > STRAIGHT:
        a, b = 1 - t, t
    else:
        theta = np.arccos(cosine)
        a, b = np.sin((1 - t) * theta) / np.sin(theta), np.sin(t * theta) / np.sin(theta)
    result = first * first.dtype.type(a)
    result += second * second.dtype.type(b)
    return result


def cosine_similarity(first: np.ndarray, second: np.ndarray) -> float:
    """Of two tensors as vectors, summed in float64; a vector of (nearly) no length is divided by 1 instead."""
    a, b = first.reshape(-1), second.reshape(-1)
    norms = (float(np.sqrt(np.einsum("i,i->", x, x, dtype=np.float64))) for x in (a, b))
    norm_a, norm_b = (norm if norm > SMALLEST_NORM else 1.0 for norm in norms)
    product = float(np.einsum("i,i->", a, b, dtype=np.float64))
    return float(np.clip(product / (norm_a * norm_b), -1, 1))
