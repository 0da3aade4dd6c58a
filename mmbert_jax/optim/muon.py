"""Muon and NorMuon for the matrices of hidden layers, beside another optimiser for all other parameters.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) takes the momentum's singular directions, each at about
the same length, found by five Newton-Schulz iterations. Its scale and weight decay are those of Liu et al. 2025 (arXiv
2502.16982): an update has the root mean square that AdamW's has, so learning rates and weight decays carry over.
NorMuon (Li et al. 2025, arXiv 2510.05491) then gives all neurons updates of one size, by a second moment for each. Of
a matrix [r, c] from r inputs to c neurons

    m = momentum m + (1 - momentum) g
    O = newton_schulz(momentum m + (1 - momentum) g)                 Nesterov's momentum, as Jordan et al.
    Muon:      d = 0.2 sqrt(max(r, c)) O
    NorMuon:   v = b2 v + (1 - b2) mean(O^2, over inputs)            one number for each neuron
               N = O / (sqrt(v) + eps)
               d = 0.2 sqrt(r c) N / |N|
    p = (1 - lr / peak_lr * weight_decay) p - lr d

Neither needs a bias correction: the scale of m is lost in O, that of v in N / |N|.

What counts as one matrix is part of the definition. Query, key and value are one each, over all heads, and so are both
halves of the gated linear unit: fused, they are one array for speed alone, and Jordan et al. found them better apart.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

ITERATIONS = 5
# Root mean square of AdamW's updates, by Liu et al.
UPDATE_RMS = 0.2

# From matrices [n, r, c] and second moments of their neurons [n, c] to directions and new second moments.
Directions = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
# Mesh axes over which the rows and the columns of a matrix are spread.
Layout = tuple[str | None, str | None]


class Matrix(NamedTuple):
    """How a parameter holds matrices. Dimensions that are neither inputs nor outputs number several of them."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    layout: Layout = (None, None)


class MuonState(NamedTuple):
    rest: Any  # state of the other optimiser
    mu: optax.Updates  # momentum, float32, shaped as the parameters that hold matrices
    nu: (
        optax.Updates
    )  # NorMuon: second moments of the neurons, float32 [matrices, outputs] of each; Muon: empty


def muon(
    *,
    matrices: Mapping[str, Matrix],
    rest: optax.GradientTransformationExtraArgs,
    momentum: float,
    weight_decay: float,
    peak_lr: float,
    dtype: jnp.dtype,
    b2: float | None = None,
    eps: float = 1e-8,
    spread: Callable[[Directions, Layout], Directions] = lambda directions, layout: directions,
) -> optax.GradientTransformationExtraArgs:
    """Muon, or NorMuon where `b2` is given; `update` takes what that of `stable_adamw` takes.

    Args:
      matrices: the parameters that are Muon's, by their paths in a tree of dicts ("layers/3/attn/wqkv").
      rest: optimises all others; its `update` takes the same arguments.
      momentum: decay rate of the momentum.
      weight_decay: the share of a weight that one step at `peak_lr` takes away.
      peak_lr: the largest learning rate of the schedule, which scales the decay.
      dtype: of the iterations, and of what devices exchange for them.
      b2, eps: decay rate of NorMuon's second moments, and what is added to their roots.
      spread: makes of a function of matrices one that shares them out over devices.
    """

    def split(tree):
        flat = flatten_dict(tree, sep="/")
        ours = {path: flat.pop(path) for path in matrices}
        return ours, unflatten_dict(flat, sep="/")

    def init(params: optax.Params) -> MuonState:
        ours, others = split(params)
        mu = {path: jnp.zeros(p.shape, jnp.float32) for path, p in ours.items()}
        nu = {path: jnp.zeros(_stack(x, matrices[path])[:, 0].shape) for path, x in mu.items()}
        nu = {} if b2 is None else nu
        return MuonState(
            rest.init(others), unflatten_dict(mu, sep="/"), unflatten_dict(nu, sep="/")
        )

    def update(gradients, state, params, *, learning_rate, apply=True, **unused_extra_args):
        del unused_extra_args
        (g, rest_g), (p, rest_p) = split(gradients), split(params)
        rest_changes, rest_state = rest.update(
            rest_g, state.rest, rest_p, learning_rate=learning_rate, apply=apply
        )
        # Without the gradient and with these two at 0 what follows gives the old state, bit for bit.
        share, rate = (jnp.where(apply, x, 0.0) for x in (1 - momentum, learning_rate))
        g = jax.tree.map(lambda g: jnp.where(apply, g.astype(jnp.float32), 0), g)
        mu, nu = (flatten_dict(x, sep="/") for x in (state.mu, state.nu))
        mu = jax.tree.map(lambda m, g: (1 - share) * m + share * g, mu, g)
        ahead = jax.tree.map(lambda m, g: momentum * m + (1 - momentum) * g, mu, g)
        with jax.named_scope("muon"):
            directions, new_nu = in_stacks(ahead, nu)
        nu = jax.tree.map(lambda old, new: jnp.where(apply, new, old), nu, new_nu)

        def change(p, direction):
            return (-rate * (direction + weight_decay / peak_lr * p)).astype(p.dtype)

        changes = flatten_dict(rest_changes, sep="/") | jax.tree.map(change, p, directions)
        mu, nu, changes = (unflatten_dict(x, sep="/") for x in (mu, nu, changes))
        return changes, MuonState(rest_state, mu, nu)

    def in_stacks(updates, nu):
        """Directions float32, in the shapes of the updates, and new second moments: all equal matrices at once."""
        directions, new_nu = {}, {}
        for (_, layout), paths in group(matrices, updates).items():
            parts = [_stack(updates[path], matrices[path]).astype(dtype) for path in paths]
            counts = [len(part) for part in parts]
            x = jnp.concatenate(parts)
            # Muon has none, and takes an array without columns through the same path.
            v = jnp.concatenate([nu[path] for path in paths]) if nu else jnp.zeros((len(x), 0))
            x, v = spread(one_stack, layout)(x, v)
            ends = [sum(counts[: i + 1]) for i in range(len(counts))]
            for path, end, count in zip(paths, ends, counts, strict=True):
                like, own = updates[path], slice(end - count, end)
                directions[path] = _unstack(x[own], matrices[path], like.shape).astype(jnp.float32)
                if nu:
                    new_nu[path] = v[own]
        return directions, new_nu

    def one_stack(x, v):
        _, r, c = x.shape
        o = newton_schulz(x).astype(jnp.float32)
        if b2 is None:
            return (UPDATE_RMS * max(r, c) ** 0.5 * o).astype(x.dtype), v
        v = b2 * v + (1 - b2) * jnp.mean(o * o, axis=1)
        o = o / (jnp.sqrt(v)[:, None] + eps)
        norm = jnp.linalg.norm(o, axis=(1, 2), keepdims=True)
        return (UPDATE_RMS * (r * c) ** 0.5 / jnp.maximum(norm, eps) * o).astype(x.dtype), v

    return optax.GradientTransformationExtraArgs(init, update)


def newton_schulz(x: jax.Array) -> jax.Array:
    """Matrices [n, r, c] -> those with the same singular vectors and singular values near 1.

    From 0.68 to 1.21, where they were above 0.002 of the matrix's norm; smaller ones grow up to 485 times, zeros stay.
    In bfloat16 from 0.66 to 1.21, and the whole 5% off.
    """
    # optax has the iterations as a transformation with a momentum; without one they are all that it does.
    each = optax.contrib.scale_by_muon(
        ns_steps=ITERATIONS,
        beta=0.0,
        nesterov=False,
        weight_dimension_numbers=optax.contrib.MuonDimensionNumbers(1, 2),
    )
    return each.update(x, each.init(x))[0]


def group(
    matrices: Mapping[str, Matrix], params: Mapping[str, Any]
) -> dict[tuple[tuple[int, int], Layout], list[str]]:
    """Paths of parameters by the shape [r, c] and the layout of their matrices: what is one stack."""
    groups = {}
    for path, matrix in matrices.items():
        shape = _matrix_shape(params[path].shape, matrix)
        groups.setdefault((shape, matrix.layout), []).append(path)
    return groups


def iteration_flops(
    matrices: Mapping[str, Matrix], params: Mapping[str, Any], devices: int
) -> float:
    """FLOPs of all iterations of a step on the device that has most to do."""
    total = 0
    for ((r, c), _), paths in group(matrices, params).items():
        several = sum(math.prod(params[path].shape) for path in paths) // (r * c)
        short, long = min(r, c), max(r, c)
        # x x^T, its square, and their sum times x.
        one = 2 * short**2 * long + 2 * short**3 + 2 * short**2 * long
        total += -(-several // devices) * ITERATIONS * one
    return total


def _matrix_shape(shape: tuple[int, ...], matrix: Matrix) -> tuple[int, int]:
    inputs, outputs = (math.prod(shape[i] for i in side) for side in matrix[:2])
    return inputs, outputs


def _order(matrix: Matrix, ndim: int) -> tuple[int, ...]:
    sides = (*matrix.inputs, *matrix.outputs)
    return (*(i for i in range(ndim) if i not in sides), *sides)


def _stack(x: jax.Array, matrix: Matrix) -> jax.Array:
    """[matrices, r, c]."""
    shape = _matrix_shape(x.shape, matrix)
    return x.transpose(_order(matrix, x.ndim)).reshape(-1, *shape)


def _unstack(x: jax.Array, matrix: Matrix, shape: tuple[int, ...]) -> jax.Array:
    order = _order(matrix, len(shape))
    back = [order.index(i) for i in range(len(shape))]
    return x.reshape([shape[i] for i in order]).transpose(back)
