"""Which keys a query sees, as one interval a query: the only mask that the attention kernels know.

Segments of a packed row are contiguous and the window is symmetric, so query i sees the keys `[lo_i, hi_i)`, and both
ends are non-decreasing along the row. The mask is symmetric too, so the same arrays serve the gradients of keys and
values.
"""

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Ranges:
    """Key intervals of a batch of packed rows.

    Attributes:
      lo: int32 [B, L], the first key that query i sees.
      hi: int32 [B, L], one past the last key that query i sees; always at least `lo + 1`.
      window: bound on the distance |i - j| of what is seen, known when tracing; None where the row is the bound.
    """

    lo: jax.Array
    hi: jax.Array
    window: int | None = dataclasses.field(metadata={"static": True}, default=None)


def ranges(segment_ids: jax.Array, window: int | None = None) -> Ranges:
    """Computes the key intervals of packed rows.

    Args:
      segment_ids: int32 [B, L], contiguous segments, 0 is padding.
      window: largest distance |i - j| inside a segment; None for global attention. mmBERT's "sliding window 128" is
        64, that is 129 keys.

    Returns:
      `Ranges`. A padding token sees itself alone: nothing becomes NaN and both ends stay monotone.
    """
    length = segment_ids.shape[-1]
    i = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), segment_ids.shape)
    edge = segment_ids[:, 1:] != segment_ids[:, :-1]
    always = jnp.ones_like(segment_ids[:, :1], dtype=bool)
    starts = jnp.concatenate([always, edge], axis=1)
    ends = jnp.concatenate([edge, always], axis=1)
    lo = jax.lax.cummax(jnp.where(starts, i, 0), axis=1)
    hi = jax.lax.cummin(jnp.where(ends, i + 1, length), axis=1, reverse=True)
    if window is not None:
        lo = jnp.maximum(lo, i - window)
        hi = jnp.minimum(hi, i + window + 1)
    padding = segment_ids == 0
    return Ranges(jnp.where(padding, i, lo), jnp.where(padding, i + 1, hi), window)
