"""The shardings of parameters and batches that follow from the table in `axes.py`."""

from collections.abc import Mapping

import jax
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from mmbert_jax.axes import BATCH_AXES, RULES
from mmbert_jax.errors import UserError
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.model.heads import Params, abstract_model, param_dict
from mmbert_jax.parallel.processes import together


def param_shardings(config: ModelConfig, mesh: Mesh) -> Params:
    """`NamedSharding` of every parameter, in the tree of `init_params`.

    Raises:
      UserError: a dimension does not divide over its mesh axis.
    """
    _, state = abstract_model(config)

    def sharding(path, variable: nnx.Param) -> NamedSharding:
        spec = []
        for size, name in zip(variable.shape, variable.get_metadata()["logical_axes"], strict=True):
            axis = RULES.get(name)
            if axis is not None and size % mesh.shape[axis]:
                where = "/".join(str(key) for key in path)
                raise UserError(
                    f"config.mesh.{axis}={mesh.shape[axis]} does not divide dimension {name!r} ({size}) of {where}"
                )
            spec.append(axis)
        return NamedSharding(mesh, PartitionSpec(*spec))

    flat = [(path, sharding(path, variable)) for path, variable in nnx.to_flat_state(state)]
    return param_dict(nnx.from_flat_state(flat))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, *, leading: int = 0) -> NamedSharding:
    """Rows over the data and fsdp axes, after `leading` dimensions that every device has whole."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * leading, BATCH_AXES))


def check_rows(mesh: Mesh | AbstractMesh, rows: int, name: str) -> None:
    """Raises UserError unless rows spread evenly over the mesh; `name` is the config field to mend."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % shards:
        raise UserError(f"{name}={rows} must be a multiple of data x fsdp = {shards} devices")


def local_rows(mesh: Mesh, rows: int, name: str) -> np.ndarray:
    """Which rows of a batch lie on this process's devices: int64 [n], ascending.

    Processes that share rows, since a tensor axis spans them, have the same; the rows need not be neighbours.

    Raises:
      UserError: as of `check_rows`.
    """
    check_rows(mesh, rows, name)
    places = batch_sharding(mesh).addressable_devices_indices_map((rows,)).values()
    return np.unique([row for (place,) in places for row in range(*place.indices(rows))])


def put_rows(mesh: Mesh, rows: int, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Makes a batch of `rows` rows on all devices from each process's `local_rows` of it.

    Args:
      batch: arrays [n, L] or [A, n, L], n = len(local_rows).
    """
    together("putting rows on the devices")
    mine = local_rows(mesh, rows, "rows")

    def put(x: np.ndarray) -> jax.Array:
        def shard(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[-2].indices(rows)
            first = np.searchsorted(mine, start)
            return x[..., first : first + stop - start, :]

        shape = (*x.shape[:-2], rows, x.shape[-1])
        return jax.make_array_from_callback(shape, batch_sharding(mesh, leading=x.ndim - 2), shard)

    return {name: put(x) for name, x in batch.items()}
