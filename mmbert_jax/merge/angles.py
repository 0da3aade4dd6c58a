"""Averages whose weights follow from the angles between models, of one tensor, taken as one long vector.

What comes out is a weighted sum of what goes in, and the weights need no more than the inner products of the inputs. So
they are found in float64 among as many numbers as there are pairs of models; the tensors are read once for the inner
products and once for the sum, and iterations cost nothing.
"""

from collections.abc import Sequence

import numpy as np

from mmbert_jax.errors import UserError

# Entries at a time: what is computed in float64 beside the tensors stays small.
CHUNK = 1 << 18
# Added to lengths before dividing by them, as mergekit does it.
EPSILON = 1e-8
# Unit vectors whose mean is shorter than this balance each other out.
BALANCED = 1e-7
# The least product of two lengths by which `model_stock` divides.
SMALLEST_PRODUCT = 1e-6


def karcher(models: Sequence[np.ndarray], *, max_iter: int, tol: float) -> np.ndarray:
    """The Karcher mean on the sphere, scaled to the mean length: the direction with the least sum of squared angles.

    Found by gradient steps from the mean direction (Karcher, "Riemannian center of mass", 1977), as many as
    `max_iter` or until one is shorter than `tol`. Models shorter than `tol` have no direction.
    """
    products = gram(models)
    lengths = np.sqrt(np.diag(products))
    directed = lengths > tol
    if not directed.any():
        return np.zeros_like(models[0])
    units = products[np.ix_(directed, directed)] / np.outer(lengths[directed], lengths[directed])
    share = 1 / len(units)

    def length(c: np.ndarray) -> float:
        return float(np.sqrt(max(c @ units @ c, 0.0)))

    mean = np.full(len(units), share)  # as weights of the unit vectors, like all that follows
    mean = np.eye(len(units))[0] if length(mean) < tol else mean / length(mean)
    for _ in range(max_iter):
        cosines = np.clip(units @ mean, -1, 1)
        angles = np.arccos(cosines)
        sines = np.sin(angles)
        # Along the mean there is nowhere to go, and opposite to it no direction is nearer than another.
        pulls = np.where(sines < tol, 0.0, share * angles / np.maximum(sines, tol))
        step = pulls - (pulls @ cosines) * mean
        size = length(step)
        if size < tol:
            break
        mean = np.cos(size) * mean + np.sin(size) / size * step
        mean /= length(mean)
    weights = np.zeros(len(models))
    weights[directed] = lengths.mean() * mean / lengths[directed]
    return weighted_sum(models, weights)


def multislerp(
    models: Sequence[np.ndarray],
    weights: Sequence[float],
    *,
    base: np.ndarray | None = None,
    normalize: bool = True,
) -> np.ndarray:
    """SLERP between any number of models: a weighted mean in the tangent space at their mean direction, put back on the
    sphere and scaled to the weighted mean length (Goddard, "Multi-SLERP", as in mergekit).

    Args:
      models: of one shape and dtype; with a base they are its task vectors, the model minus the base.
      weights: one for each; normalised by their sum, which must not be 0, unless `normalize` is off.
      base: the sphere's centre, added to the result.

    Raises:
      UserError: three directions or more balance each other out: there is no mean one.
    """
    if len(models) == 1:
        return weighted_sum(models, [1.0], base)
    weights = np.asarray(weights, np.float64)
    if normalize:
        weights = weights / weights.sum()
    products = gram(models)
    lengths = np.sqrt(np.diag(products))
    scales = 1 / (lengths + EPSILON)
    units = products * np.outer(scales, scales)
    mean_length = np.sqrt(max(weights @ units @ weights, 0.0))
    if mean_length < BALANCED:
        if len(models) > 2 and lengths.any():
            raise UserError(
                "the models' directions balance each other out, so that there is no mean one; choose other weights"
            )
        return weighted_sum(models, weights, base)
    mean = weights / mean_length  # as weights of the unit vectors, like all that follows
    tangent = weights - (weights @ (units @ mean)) * mean
    size = np.sqrt(max(tangent @ units @ tangent, 0.0)) + EPSILON
    result = np.cos(size) * mean + np.sin(size) / size * tangent
    return weighted_sum(models, result * scales * (lengths @ weights), base)


def model_stock(base: np.ndarray, deltas: Sequence[np.ndarray]) -> np.ndarray:
    """Between the base and the models' mean, the nearer to the mean the smaller the angles between task vectors.

    With k task vectors and c the mean cosine of their pairs, base + k c / (1 + (k - 1) c) * mean of the task vectors;
    the base where that denominator vanishes. Jang et al., "Model Stock: All we need is just a few fine-tuned models",
    2024.

    Args:
      deltas: task vectors, two or more.
    """
    products, count = gram(deltas), len(deltas)
    lengths = np.sqrt(np.diag(products))
    cosines = products / np.maximum(np.outer(lengths, lengths), SMALLEST_PRODUCT)
    cosine = np.clip(cosines[np.triu_indices(count, 1)], -1, 1).mean()
    denominator = 1 + (count - 1) * cosine
    t = 0.0 if abs(denominator) < 1e-6 else count * cosine / denominator
    return weighted_sum(deltas, [t / count] * count, base)


def gram(tensors: Sequence[np.ndarray]) -> np.ndarray:
    """Inner products of all pairs, float64 [n, n]."""
    flats = [tensor.reshape(-1) for tensor in tensors]
    products = np.zeros((len(flats), len(flats)))
    for start in range(0, flats[0].size, CHUNK):
        part = np.stack([flat[start : start + CHUNK] for flat in flats]).astype(np.float64)
        products += part @ part.T
    return products


def weighted_sum(
    tensors: Sequence[np.ndarray], weights: Sequence[float], base: np.ndarray | None = None
) -> np.ndarray:
    """base + sum of w_i x_i, summed in float64, in the tensors' dtype."""
    flats = [tensor.reshape(-1) for tensor in tensors]
    result = np.empty(flats[0].size, flats[0].dtype)
    for start in range(0, result.size, CHUNK):
        part = slice(start, start + CHUNK)
        total = np.zeros(result[part].size)
        if base is not None:
            total += base.reshape(-1)[part]
        for flat, weight in zip(flats, weights, strict=True):
            total += float(weight) * flat[part].astype(np.float64)
        result[part] = total
    return result.reshape(tensors[0].shape)
