"""Masked-LM targets, drawn on the device from (seed, row number): the same whatever the batch, mesh or restart.

Letters: B batch, L row length, M slots for targets in a row.
"""

import jax
import jax.numpy as jnp

from mmbert_jax.model.row_keys import row_keys

# Disjoint ranges [start, stop) of ids, in order.
Ranges = tuple[tuple[int, int], ...]


def mask_tokens(
    key: jax.Array,
    rows: jax.Array,
    tokens: jax.Array,
    *,
    ratio: float,
    vocabulary: int,
    reserved: Ranges,
    mask_id: int,
    mask_share: float = 0.8,
    random_share: float = 0.1,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Chooses targets among the ordinary tokens of every row and corrupts them.

    A row has `ratio` times as many targets as it has ordinary tokens, so that one that is not full is masked no more
    than others: rounded to the nearest, but one at least where there is an ordinary token.

    Unlike ModernBERT's trainer, special tokens are never chosen, random tokens come from the whole vocabulary, and
    every row has a draw of its own.

    Args:
      key: key of the run.
      rows: uint32 [B, 2], number of each row in the order of the data (`row_keys.count_rows`).
      tokens: int32 [B, L].
      ratio: share of a row's ordinary tokens that are targets.
      vocabulary: one more than the tokeniser's largest id; an embedding may have more rows.
      reserved: ids of special tokens, padding among them, and those that the tokeniser has no piece for: never chosen,
        never drawn as a random token. All others below `vocabulary` are ordinary tokens.
      mask_id: the mask token's.
      mask_share, random_share: shares of the targets that become the mask token or a random token; the others stay.

    Returns:
      inputs int32 [B, L], target positions int32 [B, M], labels int32 [B, M], weights float32 [B, M] (0 or 1), with
      M = `num_targets(ratio, L)`. A slot of weight 0 is no target: its token is left as it is.
    """
    slots = num_targets(ratio, tokens.shape[1])
    reserved = tuple(
        (start, min(stop, vocabulary)) for start, stop in reserved if start < vocabulary
    )
    # Those at the head of the vocabulary, where most have them, take one comparison.
    head, rest = (
        (reserved[0][1], reserved[1:]) if reserved[:1] and not reserved[0][0] else (0, reserved)
    )
    numbered = vocabulary - sum(stop - start for start, stop in rest)

    def one_row(row_key, row):
        choose, corrupt, draw = jax.random.split(row_key, 3)
        ordinary = row >= head
        for start, stop in rest:
            ordinary &= (row < start) | (row >= stop)
        count = ordinary.sum()
        targets = jnp.minimum(jnp.maximum(jnp.round(ratio * count), 1), count)
        # Ordinary tokens first, in random order.
        priority = jnp.where(ordinary, jax.random.uniform(choose, row.shape), -1.0)
        _, positions = jax.lax.top_k(priority, slots)
        real = jnp.arange(slots) < targets
        labels = row[positions]
        share = jax.random.uniform(corrupt, (slots,))
        noise = jax.random.randint(draw, (slots,), head, numbered, row.dtype)
        for start, stop in rest:
            noise = jnp.where(noise >= start, noise + (stop - start), noise)
        replaced = jnp.where(
            share < mask_share, mask_id, jnp.where(share < mask_share + random_share, noise, labels)
        )
        inputs = row.at[positions].set(jnp.where(real, replaced, labels))
        return inputs, positions, labels, real.astype(jnp.float32)

    return jax.vmap(one_row)(row_keys(key, rows), tokens)


def num_targets(ratio: float, row_length: int) -> int:
    """Slots for targets in a row, as many as a row of ordinary tokens alone has: static, so that shapes are."""
    return round(ratio * row_length)
