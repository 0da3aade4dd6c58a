"""The device mesh: data, fsdp and tensor axes, any of which may be 1."""

import math
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import AxisType, Mesh

from mmbert_jax.axes import AXES
from mmbert_jax.errors import UserError


def mesh_shape(sizes: Mapping[str, int], count: int) -> tuple[int, ...]:
    """Sizes of the axes of `config.mesh` on `count` devices.

    Args:
      sizes: size of each axis; -1 for at most one of them takes all devices that are left.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    shape = [int(sizes[axis]) for axis in AXES]
    if shape.count(-1) == 1:
        known = -1 * math.prod(shape)
        shape[shape.index(-1)] = count // known if known else 0
    if min(shape) < 1 or math.prod(shape) != count:
        asked = ", ".join(f"{axis}={sizes[axis]}" for axis in AXES)
        raise UserError(
            f"config.mesh: {asked} does not make {count} devices: the sizes must multiply to that number,"
            " and one of them may be -1"
        )
    return tuple(shape)


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Builds the mesh of `config.mesh`; errors as of `mesh_shape`.

    Args:
      devices: all devices of the job by default.
    """
    devices = list(devices or jax.devices())
    shape = mesh_shape(sizes, len(devices))
    # Auto axes: XLA propagates shardings from the arguments; nothing in the model names an axis of the mesh.
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)
