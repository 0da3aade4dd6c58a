"""StableAdamW: AdamW whose step shrinks when the gradient outgrows its second moment.

Wortsman et al. 2023 (arXiv 2304.13013) put AdaFactor's update clipping into AdamW, so that no gradient clipping is
needed. This is the variant that ModernBERT and mmBERT trained with: debiased betas instead of a bias correction of
the moments, and a fully decoupled weight decay, per tensor

    beta^ = (beta - beta^t) / (1 - beta^t)                          t = 1, 2, ...
    m     = beta1^ m + (1 - beta1^) g
    v     = beta2^ v + (1 - beta2^) g^2
    r     = sqrt(mean(g^2 / max(v, eps^2)))                         one number per tensor
    eta   = lr / max(1, r)
    p     = (1 - eta / peak_lr * weight_decay) p - eta m / (sqrt(v) + eps)

Since `r` is a mean over a tensor, what counts as one tensor is part of the definition: query, key and value as one,
both halves of the gated linear unit as one, each layer for itself. Stacking or splitting parameters changes training.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class StableAdamWState(NamedTuple):
    count: jax.Array  # int32 [], updates done
    mu: optax.Updates  # first moments, float32, shaped as the parameters
    nu: optax.Updates  # second moments, float32, shaped as the parameters


def stable_adamw(
    *, b1: float, b2: float, eps: float, weight_decay: float, peak_lr: float
) -> optax.GradientTransformationExtraArgs:
    """StableAdamW with the learning rate as an argument of `update`.

    The learning rate follows the count of tokens, which the host knows and the optimiser does not; so it comes in as a
    scalar, traced, and no schedule is compiled in:

        updates, state = optimizer.update(gradients, state, params, learning_rate=lr)
        params = optax.apply_updates(params, updates)

    With `apply=False`, a scalar that may be traced, parameters and state stay as they are, whatever the gradients.

    Args:
      b1, b2: decay rates of the moments.
      eps: added to the root of the second moment; its square bounds the second moment from below in `r`.
      weight_decay: the share of a weight that one step at `peak_lr` takes away. Unlike in `optax.adamw` it is not
        multiplied by the learning rate. Tensors of one dimension (norms and biases) are not decayed.
      peak_lr: the largest learning rate of the schedule, which scales the decay.
    """

    def init(params: optax.Params) -> StableAdamWState:
        def zeros(params):
            return jax.tree.map(lambda p: jnp.zeros_like(p, dtype=jnp.float32), params)

        return StableAdamWState(jnp.zeros([], jnp.int32), zeros(params), zeros(params))

    def update(gradients, state, params, *, learning_rate, apply=True, **unused_extra_args):
        del unused_extra_args
        count = optax.safe_increment(state.count)
        share1, share2 = _share_of_gradient(b1, count), _share_of_gradient(b2, count)
        # Without the gradient and with these three at 0 what follows gives the old state, bit for bit. A choice between
        # old and new state at the end would cost a pass over memory: the new second moments are needed for `r`.
        count = jnp.where(apply, count, state.count)
        share1, share2, learning_rate = (
            jnp.where(apply, x, 0.0) for x in (share1, share2, learning_rate)
        )
        gradients = jax.tree.map(lambda g: jnp.where(apply, g.astype(jnp.float32), 0), gradients)
        mu = jax.tree.map(lambda m, g: (1 - share1) * m + share1 * g, state.mu, gradients)
        nu = jax.tree.map(lambda v, g: (1 - share2) * v + share2 * g * g, state.nu, gradients)

        def step(p, g, m, v):
            r = jnp.sqrt(jnp.mean(g * g / jnp.maximum(v, eps**2)))
            eta = learning_rate / jnp.maximum(1.0, r)
            change = -eta * m / (jnp.sqrt(v) + eps)
            if p.ndim > 1:
                change -= eta / peak_lr * weight_decay * p
            return change.astype(p.dtype)

        return jax.tree.map(step, params, gradients, mu, nu), StableAdamWState(count, mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)


def _share_of_gradient(beta: float, count: jax.Array) -> jax.Array | float:
    """1 - beta^ = (1 - beta) / (1 - beta^t), written so that float32 loses no digits for beta near 1."""
    if beta == 0:  # no memory; the logarithm below has none either
        return 1.0
    return (1 - beta) / -jnp.expm1(count.astype(jnp.float32) * math.log(beta))
