"""One table from the logical names of parameter dimensions to mesh axes, and the shardings that follow from it."""

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmbert_jax.errors import UserError
from mmbert_jax.kernels.attention import BATCH_AXES, HEADS_AXIS
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.model.heads import Params, abstract_model, param_dict

# Dimensions that are not named here are whole on every device.
RULES = {"vocab": "tensor", "heads": HEADS_AXIS, "mlp": "tensor", "embed": "fsdp"}


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


def rows_per_process(mesh: Mesh, rows: int, name: str) -> int:
    """Checks that a number of rows spreads evenly over the mesh; returns this process's part.

    Raises:
      UserError: it does not; `name` is the config field to mend.
    """
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % shards or rows % jax.process_count():
        raise UserError(
            f"{name}={rows} must be a multiple of data x fsdp = {shards} devices and of {jax.process_count()} processes"
        )
    return rows // jax.process_count()
