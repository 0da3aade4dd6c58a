"""ModernBERT's encoder (Warner et al., 2024) over packed rows, as mmBERT trains it.

Letters: B batch, L row length, D hidden size, H heads, K head dim, F GLU intermediate size, V vocabulary.

Every parameter carries the logical names of its dimensions; `parallel/sharding.py` maps them to mesh axes.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from mmbert_jax.kernels.attention import attention, spread_rows
from mmbert_jax.kernels.ranges import Ranges, ranges
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.model.rope import rope_table, rotated

# "Full megatron" initialisation of ModernBERT's trainer.
INIT_STDDEV = 0.02


def parameter(
    key: jax.Array, shape: tuple[int, ...], axes: tuple[str, ...], stddev: float = INIT_STDDEV
) -> nnx.Param:
    """A float32 weight, drawn from a normal distribution that is cut off at two sigma."""
    value = jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.float32) * stddev
    return nnx.Param(value, logical_axes=axes)


def scale(size: int) -> nnx.Param:
    """The weight of a layer norm."""
    return nnx.Param(jnp.ones(size, jnp.float32), logical_axes=("norm",))


def layer_norm(
    x: jax.Array, weight: nnx.Param, eps: float, dtype: jnp.dtype, shift: jax.Array | None = None
) -> jax.Array:
    """Layer norm without bias, computed in float32, returned in `dtype`.

    Args:
      shift: `middle(x)`, where x is a sum better that of its terms, see there.
    """
    shift = middle(x) if shift is None else shift
    return _layer_norm(eps, dtype, x, weight[...], jax.lax.stop_gradient(shift))


def middle(*terms: jax.Array) -> jax.Array:
    """A value from the middle of each row of a sum of arrays [..., D], float32 [..., 1]: the median of the first three.

    From the terms, so that a GPU has it before it adds them up, and takes a norm's sums in the same pass over memory.
    """
    first = sum(x[..., :3].astype(jnp.float32) for x in terms)
    a, b, c = jnp.split(first, 3, axis=-1)
    return jnp.maximum(jnp.minimum(a, b), jnp.minimum(jnp.maximum(a, b), c))


# The backward pass starts again from x, which the residual stream keeps anyway, and three numbers a token: left to
# itself, autodiff keeps float32 copies of x.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _layer_norm(eps, dtype, x, weight, shift):
    return _layer_norm_fwd(eps, dtype, x, weight, shift)[0]


def _layer_norm_fwd(eps, dtype, x, weight, shift):
    # Both sums in one pass over x. E[y^2] - E[y]^2 loses what E[y]^2 is above the variance, so y is x less a value from
    # its middle: exact where the mean is far above the deviation, and small unless two of its first three are outliers.
    shifted = x.astype(jnp.float32) - shift
    mean = shifted.mean(axis=-1, keepdims=True)
    variance = jnp.square(shifted).mean(axis=-1, keepdims=True) - jnp.square(mean)
    inverse = jax.lax.rsqrt(jnp.maximum(variance, 0) + eps)
    return ((shifted - mean) * inverse * weight).astype(dtype), (x, weight, shift, mean, inverse)


def _layer_norm_bwd(eps, dtype, residuals, gradient):
    x, weight, *statistics = residuals
    # Else XLA computes them from x again wherever they are used, and sums the weight's gradient in one pass more.
    shift, mean, inverse = jax.lax.optimization_barrier(statistics)
    normed = (x.astype(jnp.float32) - shift - mean) * inverse
    gradient = gradient.astype(jnp.float32)
    d_normed = gradient * weight
    along = (d_normed * normed).mean(axis=-1, keepdims=True)
    dx = inverse * (d_normed - d_normed.mean(axis=-1, keepdims=True) - normed * along)
    return dx.astype(x.dtype), (gradient * normed).sum(axis=tuple(range(x.ndim - 1))), None


_layer_norm.defvjp(_layer_norm_fwd, _layer_norm_bwd)


def matmul(equation: str, x: jax.Array, weight: nnx.Param) -> jax.Array:
    """einsum with the weight cast to x's dtype: parameters stay float32, products run in the compute dtype."""
    return jnp.einsum(equation, x, weight[...].astype(x.dtype))


def dropout(x: jax.Array, rate: float, keys: jax.Array | None) -> jax.Array:
    """Drops elements of x [B, ...] with probability `rate`, to 16 bits.

    Args:
      keys: one for each row [B]; None means evaluation, which drops nothing.
    """
    if keys is None or rate == 0.0:
        return x
    # A random word serves two elements: drawing is what dropout costs. Behind the barrier it is done once, for the
    # backward pass too; XLA would rather draw again than keep a bit.
    shape = (*x.shape[1:-1], -(-x.shape[-1] // 2))
    words = jax.vmap(lambda key: jax.random.bits(key, shape, jnp.uint32))(keys)
    threshold = round(rate * 2**16)
    halves = jax.lax.optimization_barrier(
        ((words & 0xFFFF) >= threshold, (words >> 16) >= threshold)
    )
    keep = jnp.concatenate(halves, axis=-1)[..., : x.shape[-1]]
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


@jax.custom_vjp
def geglu(x: jax.Array) -> jax.Array:
    """gelu(x[..., 0, :]) * x[..., 1, :] for x [..., 2, F], with the exact (erf) GELU, computed in float32."""
    return _geglu_fwd(x)[0]


def _geglu_fwd(x):
    first, second = (x[..., i, :].astype(jnp.float32) for i in (0, 1))
    return (first * _normal_cdf(first) * second).astype(x.dtype), x


def _geglu_bwd(x, gradient):
    return (
        jax.lax.platform_dependent(
            x, gradient, cuda=_geglu_bwd_by_index, default=_geglu_bwd_halves
        ),
    )


def _geglu_bwd_halves(x, gradient):
    first, second = (x[..., i, :].astype(jnp.float32) for i in (0, 1))
    gradient, cdf = gradient.astype(jnp.float32), _normal_cdf(first)
    density = jnp.exp(-0.5 * jnp.square(first)) * (1 / math.sqrt(2 * math.pi))
    d_first = gradient * second * (cdf + first * density)
    return jnp.stack([d_first, gradient * first * cdf], axis=-2).astype(x.dtype)


def _geglu_bwd_by_index(x, gradient):
    """On a GPU this waits for arithmetic, not for memory: so it is one loop, with half the operations of XLA's erf.

    erfc(z) = P(t) exp(-z^2) with t = 1 / (1 + 0.3275911 z) for z >= 0, to 1.5e-7: Abramowitz and Stegun 7.1.26. The
    density needs the same exponential.
    """
    wide = x.astype(jnp.float32)
    other = jax.lax.rev(wide, (x.ndim - 2,))
    is_first = jnp.arange(2)[:, None] == 0
    first, second = jnp.where(is_first, wide, other), jnp.where(is_first, other, wide)
    exponential = jnp.exp(-0.5 * jnp.square(first))
    t = 1 / (1 + (0.3275911 * math.sqrt(0.5)) * jnp.abs(first))
    coefficients = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
    tail = 0.5 * exponential * t * functools.reduce(lambda p, c: p * t + c, coefficients)
    cdf = jnp.where(first > 0, 1 - tail, tail)
    density = exponential * (1 / math.sqrt(2 * math.pi))
    slope = jnp.where(is_first, second * (cdf + first * density), first * cdf)
    return (gradient.astype(jnp.float32)[..., None, :] * slope).astype(x.dtype)


def _normal_cdf(x):
    return 0.5 + 0.5 * jax.lax.erf(x * math.sqrt(0.5))


geglu.defvjp(_geglu_fwd, _geglu_bwd)


@jax.custom_vjp
def fence(x: jax.Array) -> jax.Array:
    """Identity that XLA does not fuse across, forward and backward.

    Without it XLA:CPU recomputes the whole residual chain in every fusion, at a cost that grows with the square of the
    depth (docs/log.md). On other platforms fusions stay linear in depth by themselves, and it is left out.
    """
    return jax.lax.platform_dependent(x, cpu=jax.lax.optimization_barrier, default=lambda x: x)


fence.defvjp(lambda x: (fence(x), None), lambda _, gradient: (fence(gradient),))


class Attention(nnx.Module):
    """Self-attention with a fused projection laid out (3, heads, head dim), without biases."""

    def __init__(self, config: ModelConfig, *, is_global: bool, rngs: nnx.Rngs):
        d, h, k = config.hidden_size, config.num_heads, config.head_dim
        self.wqkv = parameter(rngs.params(), (d, 3, h, k), ("embed", "qkv", "heads", "head_dim"))
        self.wo = parameter(
            rngs.params(), (h, k, d), ("heads", "head_dim", "embed"), _residual_stddev(config)
        )
        self.is_global = is_global
        self.dropout_rate = config.attention_output_dropout

    def __call__(self, x, key_ranges: Ranges, table, dropout_keys):
        q, k, v = rotated(matmul("bld,dthk->blthk", x, self.wqkv), table)
        out = attention(q, k, v, key_ranges)
        return dropout(matmul("blhk,hkd->bld", out, self.wo), self.dropout_rate, dropout_keys)


class GatedMlp(nnx.Module):
    """Feed-forward layer with a gated linear unit (`geglu`), without biases."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        d, f = config.hidden_size, config.intermediate_size
        self.wi = parameter(rngs.params(), (d, 2, f), ("embed", "glu", "mlp"))
        self.wo = parameter(rngs.params(), (f, d), ("mlp", "embed"), _residual_stddev(config))

    def __call__(self, x):
        return matmul("blf,fd->bld", geglu(matmul("bld,dgf->blgf", x, self.wi)), self.wo)


class Layer(nnx.Module):
    """Pre-norm layer; the first of a model has no attention norm, since the embedding's norm stands before it."""

    def __init__(self, config: ModelConfig, index: int, *, rngs: nnx.Rngs):
        self.attn_norm = None if index == 0 else scale(config.hidden_size)
        self.attn = Attention(config, is_global=config.is_global(index), rngs=rngs)
        self.mlp_norm = scale(config.hidden_size)
        self.mlp = GatedMlp(config, rngs=rngs)
        self.eps = config.norm_eps

    def __call__(self, x, shift, key_ranges: Ranges, table, dropout_keys):
        """From x and its `middle` to those of the next layer."""
        h = x if self.attn_norm is None else layer_norm(x, self.attn_norm, self.eps, x.dtype, shift)
        x, shift = _add(x, self.attn(h, key_ranges, table, dropout_keys))
        h = layer_norm(x, self.mlp_norm, self.eps, x.dtype, shift)
        return _add(x, self.mlp(h))


class Embeddings(nnx.Module):
    """Token embedding and its norm; there are no position or type embeddings."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.tokens = parameter(
            rngs.params(), (config.vocab_size, config.hidden_size), ("vocab", "embed")
        )
        self.norm = scale(config.hidden_size)
        self.eps = config.norm_eps

    def __call__(self, tokens, dtype):
        return layer_norm(jnp.take(self.tokens[...], tokens, axis=0), self.norm, self.eps, dtype)


class Encoder(nnx.Module):
    """The encoder without a head.

    Called with tokens, segment_ids, positions (int32 [B, L]), a compute dtype and, in training, keys for dropout [B];
    returns hidden states [B, L, D] in the compute dtype, after the final norm.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embeddings = Embeddings(config, rngs=rngs)
        self.layers = nnx.List([Layer(config, i, rngs=rngs) for i in range(config.num_layers)])
        self.final_norm = scale(config.hidden_size)

    def __call__(
        self,
        tokens: jax.Array,
        segment_ids: jax.Array,
        positions: jax.Array,
        dtype: jnp.dtype = jnp.float32,
        dropout_keys: jax.Array | None = None,
    ) -> jax.Array:
        config = self.config
        global_ranges = ranges(segment_ids)
        local_ranges = ranges(segment_ids, config.attention_window // 2)
        global_table = rope_table(positions, config.head_dim, config.global_rope_theta)
        local_table = rope_table(positions, config.head_dim, config.local_rope_theta)
        x, shift = spread_rows(self.embeddings(tokens, dtype)), None
        for i, layer in enumerate(self.layers):
            keys = dropout_keys if dropout_keys is None else _of_layer(dropout_keys, i)
            if config.is_global(i):
                x, shift = layer(x, shift, global_ranges, global_table, keys)
            else:
                x, shift = layer(x, shift, local_ranges, local_table, keys)
        return layer_norm(x, self.final_norm, config.norm_eps, dtype, shift)


def _add(x, update):
    """The residual stream after a layer's update, and its middle."""
    return fence(x + update), middle(x, update)


def _of_layer(keys, index):
    return jax.vmap(jax.random.fold_in, (0, None))(keys, index)


def _residual_stddev(config: ModelConfig) -> float:
    """Projections into the residual stream start smaller, so that its variance does not grow with depth."""
    return INIT_STDDEV / math.sqrt(2 * config.num_layers)
