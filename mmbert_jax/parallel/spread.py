"""Work on many matrices of one shape, shared out over the devices of a mesh, however the matrices lie on them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec


def spread(function: Callable, mesh: Mesh, rows: str | None, columns: str | None) -> Callable:
    """A function of matrices of which each device computes a part, on whole matrices.

    Devices that have parts of the same matrices exchange them (all-to-all), before and after; the other devices have
    the same ones, each takes its own of them, and all are gathered at the end.

    Args:
      function: from x [n, r, c] and v [n, k] to arrays of the same shapes, each of the n for itself.
      rows, columns: axes of the mesh over which r and c are spread, if any; they divide r and c.
    """
    sides = [(axis, i) for i, axis in ((1, rows), (2, columns)) if axis and mesh.shape[axis] > 1]
    parts = tuple(axis for axis, _ in sides)
    copies = tuple(axis for axis in mesh.axis_names if axis not in parts)
    every = (*copies, *parts)  # the order in which the n are numbered

    def on_a_device(x, v):
        # XLA:CPU would take the parts of an exchange straight from what x was put together of, in several layouts,
        # and then refuse them.
        x = jax.lax.optimization_barrier(x)
        x, v = _own(x, copies, mesh), _own(v, every, mesh)
        for axis, side in sides:
            x = jax.lax.all_to_all(x, axis, split_axis=0, concat_axis=side, tiled=True)
        x, v = function(x, v)
        for axis, side in reversed(sides):
            x = jax.lax.all_to_all(x, axis, split_axis=side, concat_axis=0, tiled=True)
        return tuple(
            jax.lax.all_gather(y, axes, axis=0, tiled=True) for y, axes in ((x, copies), (v, every))
        )

    x_spec, whole = (
        PartitionSpec(None, *(axis if axis in parts else None for axis in (rows, columns))),
        PartitionSpec(),
    )
    on_all = jax.shard_map(
        on_a_device,
        mesh=mesh,
        in_specs=(x_spec, whole),
        out_specs=(x_spec, whole),
        check_vma=False,  # it does not see that what was gathered is the same everywhere
    )

    def spread_out(x, v):
        missing = -len(x) % mesh.size
        padded = (jnp.pad(y, ((0, missing), *((0, 0),) * (y.ndim - 1))) for y in (x, v))
        return tuple(y[: len(x)] for y in on_all(*padded))

    return function if mesh.size == 1 else spread_out


def _own(x: jax.Array, axes: tuple[str, ...], mesh: Mesh) -> jax.Array:
    """A device's part of the first dimension, by its place on these axes."""
    size = len(x)
    for axis in axes:
        size //= mesh.shape[axis]
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axes) * size, size)
