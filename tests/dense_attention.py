"""Attention as its definition says it, dense and in float64 NumPy: what every kernel is compared with."""

import numpy as np


def dense_mask(segment_ids, window):
    """[B, L, L]: what attention may see, straight from the definition. A padding token sees itself."""
    i = np.arange(segment_ids.shape[1])
    same = (segment_ids[:, :, None] == segment_ids[:, None, :]) & (segment_ids[:, :, None] > 0)
    near = np.abs(i[:, None] - i[None]) <= (window if window is not None else len(i))
    return (same & near) | np.eye(len(i), dtype=bool)


def dense_attention(q, k, v, mask):
    """Softmax attention [B, L, H, D] in float64."""
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
    scores = np.where(mask[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhqk,bkhd->bqhd", weights, v), weights


def dense_gradients(q, k, v, mask, cotangent):
    """Gradients of sum(out * cotangent), written out by hand in float64."""
    _, p = dense_attention(q, k, v, mask)
    dv = np.einsum("bhqk,bqhd->bkhd", p, cotangent)
    dp = np.einsum("bqhd,bkhd->bhqk", cotangent, v)
    ds = p * (dp - (dp * p).sum(-1, keepdims=True)) / np.sqrt(q.shape[-1])
    return np.einsum("bhqk,bkhd->bqhd", ds, k), np.einsum("bhqk,bqhd->bkhd", ds, q), dv


def segments(lengths, row_length):
    row = np.zeros(row_length, np.int32)
    np.put(row, np.arange(sum(lengths)), np.repeat(np.arange(1, len(lengths) + 1), lengths))
    return row


PACKINGS = {
    "one document": [700],
    "all padding": [],
    "segments of one token": [1] * 130,
    "block edges and their neighbours": [63, 1, 64, 65, 127, 128, 129],
    "window edges": [63, 64, 65, 66, 128, 129, 130],
    "beyond a global block": [511, 2, 150],
}
