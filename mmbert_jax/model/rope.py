"""Rotary position embedding, not interleaved (the halves of a head are rotated against each other).

Su et al., "RoFormer", 2021; layout as in ModernBERT's `apply_rotary_pos_emb`.
"""

import jax
import jax.numpy as jnp
import numpy as np


def rope_table(positions: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines, each float32 [B, L, 1, head_dim / 2], for positions int32 [B, L]."""
    # Rounded to float32 twice, like the tables that published weights were trained with: a frequency one bit off is an
    # angle 5e-4 off at position 8191.
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / head_dim
    frequencies = np.float32(1) / np.power(float(theta), exponents, dtype=np.float64).astype(
        np.float32
    )
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]


@jax.custom_vjp
def rotated(qkv: jax.Array, table: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
    """Queries and keys of qkv [B, L, 3, H, head_dim] rotated, values as they are: three arrays [B, L, H, head_dim]."""
    return apply_rope(qkv[:, :, 0], table), apply_rope(qkv[:, :, 1], table), qkv[:, :, 2]


def _rotated_bwd(table, gradients):
    """A rotation's transpose is the rotation back: one pass, where autodiff pads and adds."""
    cos, sin = table
    dq, dk, dv = gradients
    back = (cos, -sin)
    return jnp.stack([apply_rope(dq, back), apply_rope(dk, back), dv], axis=2), (None, None)


rotated.defvjp(lambda qkv, table: (rotated(qkv, table), table), _rotated_bwd)


def apply_rope(x: jax.Array, table: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates x [B, L, H, head_dim] in float32; returns x's dtype."""
    return jax.lax.platform_dependent(x, *table, cuda=_rotate_by_index, default=_rotate_halves)


def _rotate_halves(x, cos, sin):
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def _rotate_by_index(x, cos, sin):
    """On a GPU swapping the halves is an index of one loop, where a concatenation splits it; TPUs move data for it."""
    halves = x.reshape(*x.shape[:-1], 2, x.shape[-1] // 2).astype(jnp.float32)
    turned = jax.lax.rev(halves, (halves.ndim - 2,)) * jnp.stack([-sin, sin], axis=-2)
    return (halves * cos[..., None, :] + turned).reshape(x.shape).astype(x.dtype)
