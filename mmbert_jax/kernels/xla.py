"""Attention in plain XLA, for every platform: exact, O(L x window) on local layers, memory linear in L on global ones.

Letters: B batch, L row length, H heads, D head dim, N blocks, Q queries of a block, S keys that a block may see.
"""

import math

import jax
import jax.numpy as jnp

from mmbert_jax.kernels.ranges import Ranges

# Local layers: queries in blocks at least this long, each against its own block and the two beside it.
_LOCAL_BLOCK = 64
# Global layers: queries in blocks of this length against the whole row, one block after the other.
_GLOBAL_BLOCK = 512


def attention_xla(q: jax.Array, k: jax.Array, v: jax.Array, ranges: Ranges) -> jax.Array:
    """Softmax attention over key ranges; see `attention.attention` for shapes and dtypes."""
    length = q.shape[1]
    local_block = max(_LOCAL_BLOCK, ranges.window or 0)
    if ranges.window is not None and length > 3 * local_block:
        return _in_whole_blocks(_local, local_block, q, k, v, ranges)
    if length > _GLOBAL_BLOCK:
        return _in_whole_blocks(_global, _GLOBAL_BLOCK, q, k, v, ranges)
    positions = jnp.arange(length)
    return _block(q, k, v, ranges.lo, ranges.hi, positions)


def _in_whole_blocks(function, block, q, k, v, ranges):
    """Calls `function(block, ...)` on rows padded to whole blocks; the added tokens see nothing but themselves."""
    length = q.shape[1]
    extra = -length % block
    if not extra:
        return function(block, q, k, v, ranges.lo, ranges.hi)
    q, k, v = (jnp.pad(x, ((0, 0), (0, extra), (0, 0), (0, 0))) for x in (q, k, v))
    own = jnp.broadcast_to(jnp.arange(length, length + extra, dtype=jnp.int32), (q.shape[0], extra))
    lo = jnp.concatenate([ranges.lo, own], axis=1)
    hi = jnp.concatenate([ranges.hi, own + 1], axis=1)
    return function(block, q, k, v, lo, hi)[:, :length]


# Scores are recomputed in the backward pass, here and below: saving them would cost L x S floats a head and layer.
@jax.checkpoint
def _block(q, k, v, lo, hi, key_positions):
    """Queries [..., Q, H, D] against keys and values [..., S, H, D]; lo, hi [..., Q]; key_positions [..., S]."""
    scores = jnp.einsum("...qhd,...shd->...hqs", q, k, preferred_element_type=jnp.float32)
    scores = scores * (1.0 / math.sqrt(q.shape[-1]))
    seen = (key_positions[..., None, :] >= lo[..., None]) & (
        key_positions[..., None, :] < hi[..., None]
    )
    # Every query sees at least itself, so no row of scores is all -inf.
    scores = jnp.where(seen[..., None, :, :], scores, -jnp.inf)
    probabilities = jax.nn.softmax(scores, axis=-1)
    return jnp.einsum("...hqs,...shd->...qhd", probabilities.astype(v.dtype), v)


def _local(block, q, k, v, lo, hi):
    """All blocks at once, each against three: a window no longer than a block reaches no further."""
    batch, length, heads, depth = q.shape
    count = length // block

    def neighbours(x):  # [B, L, H, D] -> [B, N, 3 block, H, D]
        x = x.reshape(batch, count, block, heads, depth)
        x = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
        return jnp.concatenate([x[:, :-2], x[:, 1:-1], x[:, 2:]], axis=2)

    key_positions = (jnp.arange(count)[:, None] - 1) * block + jnp.arange(3 * block)  # [N, S]
    blocks = (batch, count, block)
    out = _block(
        q.reshape(*blocks, heads, depth),
        neighbours(k),
        neighbours(v),
        lo.reshape(blocks),
        hi.reshape(blocks),
        key_positions,
    )
    return out.reshape(q.shape)


def _global(block, q, k, v, lo, hi):
    """One block of queries after the other against the whole row: block x L scores at a time."""
    batch, length, heads, depth = q.shape
    count = length // block
    key_positions = jnp.arange(length)

    def one(_, x):
        q_block, lo_block, hi_block = x
        return None, _block(q_block, k, v, lo_block, hi_block, key_positions)

    blocks_first = (
        q.reshape(batch, count, block, heads, depth).swapaxes(0, 1),
        lo.reshape(batch, count, block).swapaxes(0, 1),
        hi.reshape(batch, count, block).swapaxes(0, 1),
    )
    _, out = jax.lax.scan(one, None, blocks_first)  # [N, B, Q, H, D]
    return out.swapaxes(0, 1).reshape(q.shape)
