"""Random keys of rows: what is drawn for a row depends on its number alone, not on batch, mesh or microbatch.

A phase may have more than 2^32 rows, and nothing on a device counts in 64 bits: a row's number is two words, high and
low.

Letters: B rows.
"""

import jax
import jax.numpy as jnp
import numpy as np


def in_words(row: int) -> np.ndarray:
    """The number of a row, below 2^64, as the device counts it: uint32 [2], high word first."""
    return np.array(divmod(row, 2**32), np.uint32)


def count_rows(first: jax.Array, count: int, start: jax.Array | int = 0) -> jax.Array:
    """Numbers of `count` rows that follow each other, `start` (below 2^31) after `first`, uint32 [2]: uint32 [B, 2]."""
    low = first[1] + jnp.arange(count, dtype=jnp.uint32) + jnp.asarray(start, jnp.uint32)
    high = first[0] + (low < first[1]).astype(jnp.uint32)
    return jnp.stack([high, low], axis=-1)


def row_keys(key: jax.Array, rows: jax.Array) -> jax.Array:
    """A key for each row [B], from a key and the rows' numbers, uint32 [B, 2]."""
    return jax.vmap(lambda row: jax.random.fold_in(jax.random.fold_in(key, row[0]), row[1]))(rows)
