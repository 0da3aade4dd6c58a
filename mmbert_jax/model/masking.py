"""Masked-LM targets, drawn on the device from (seed, row number): the same whatever the batch, mesh or restart.

Letters: B batch, L row length, M targets a row.
"""

import jax
import jax.numpy as jnp

# pad, eos, bos, unk, mask: never chosen, never drawn as a random token.
NUM_SPECIAL_IDS = 5
MASK_ID = 4


def mask_tokens(
    key: jax.Array,
    row_ids: jax.Array,
    tokens: jax.Array,
    *,
    num_targets: int,
    vocab_size: int,
    mask_share: float = 0.8,
    random_share: float = 0.1,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Chooses a fixed number of targets in every row and corrupts them.

    Unlike ModernBERT's trainer, special tokens are never chosen, random tokens come from the whole vocabulary, and
    every row has a draw of its own.

    Args:
      key: key of the run.
      row_ids: uint32 [B], number of each row in the order of the data.
      tokens: int32 [B, L].
      num_targets: M, static; a row with fewer ordinary tokens leaves the rest of its slots at weight 0.
      mask_share, random_share: shares of the targets that become `<mask>` or a random token; the others stay.

    Returns:
      inputs int32 [B, L], target positions int32 [B, M], labels int32 [B, M], weights float32 [B, M] (0 or 1).
    """

    def one_row(row_id, row):
        choose, corrupt, draw = jax.random.split(jax.random.fold_in(key, row_id), 3)
        priority = jnp.where(row < NUM_SPECIAL_IDS, -1.0, jax.random.uniform(choose, row.shape))
        top, positions = jax.lax.top_k(priority, num_targets)
        real = top >= 0
        labels = row[positions]
        share = jax.random.uniform(corrupt, (num_targets,))
        noise = jax.random.randint(draw, (num_targets,), NUM_SPECIAL_IDS, vocab_size, row.dtype)
        replaced = jnp.where(
            share < mask_share, MASK_ID, jnp.where(share < mask_share + random_share, noise, labels)
        )
        inputs = row.at[positions].set(jnp.where(real, replaced, labels))
        return inputs, positions, labels, real.astype(jnp.float32)

    return jax.vmap(one_row)(row_ids, tokens)


def num_targets(mask_ratio: float, row_length: int) -> int:
    """Targets of a full row: the same number in every row, so that shapes are static."""
    return round(mask_ratio * row_length)
