"""The one public attention function; every implementation takes the same key ranges and gives the same numbers."""

from typing import Literal

import jax

from mmbert_jax.kernels.ranges import Ranges
from mmbert_jax.kernels.xla import attention_xla

Implementation = Literal["xla"]


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    ranges: Ranges,
    *,
    implementation: Implementation | None = None,
) -> jax.Array:
    """Softmax attention in which query i sees the keys `[lo_i, hi_i)`.

    Args:
      q, k, v: float [B, L, H, D], rotary embedding already applied. Scores are scaled by 1 / sqrt(D).
      ranges: key intervals from `ranges.ranges`, one for global and one for local layers of a batch.
      implementation: None takes the best one for the platform (see `implementation_for`).

    Returns:
      [B, L, H, D] in v's dtype. Scores and softmax are float32.

    Raises:
      ValueError: shapes disagree, or the implementation is unknown.
    """
    if not q.shape == k.shape == v.shape or ranges.lo.shape != q.shape[:2]:
        raise ValueError(
            f"attention wants q, k, v of one shape [B, L, H, D] and ranges [B, L]; got {q.shape}, {k.shape}, {v.shape}"
            f" and {ranges.lo.shape}"
        )
    implementation = implementation or implementation_for(jax.default_backend())[0]
    if implementation != "xla":
        raise ValueError(f"unknown attention implementation {implementation!r}; known: 'xla'")
    return attention_xla(q, k, v, ranges)


def implementation_for(platform: str) -> tuple[Implementation, str]:
    """The implementation used on a platform, and why, for the line that is printed at start-up."""
    return "xla", f"blocked XLA attention, the only implementation so far, on {platform}"
