"""Where a model computes: rows spread over all devices of this process, in the precision that was asked for."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmbert_jax.axes import AXES, BATCH_AXES
from mmbert_jax.hf.sentence_transformers import SentenceModules
from mmbert_jax.parallel.mesh import make_mesh

if TYPE_CHECKING:
    from mmbert_jax.inference.model import Model


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh whose data axis has these devices, by default all that this process has."""
    sizes = dict.fromkeys(AXES, 1) | {"data": -1}
    return make_mesh(sizes, devices or jax.local_devices())


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The arrays of a tree, on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def replicate_modules(modules: SentenceModules | None, mesh: Mesh) -> SentenceModules | None:
    """The same modules, their weights on every device."""
    if modules is None:
        return None
    dense = tuple(
        dataclasses.replace(
            layer, weight=replicate(layer.weight, mesh), bias=replicate(layer.bias, mesh)
        )
        for layer in modules.dense
    )
    return dataclasses.replace(modules, dense=dense)


def spread(arrays: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Arrays [B, ...], each device its B / devices rows."""
    return jax.device_put(dict(arrays), NamedSharding(mesh, PartitionSpec(BATCH_AXES)))


@contextmanager
def computing(model: "Model") -> Iterator[None]:
    """On the model's devices; float32 is float32, not the TF32 or bfloat16 that accelerators make of its products."""
    precision = "highest" if model.dtype == "float32" else None
    with jax.set_mesh(model.mesh), jax.default_matmul_precision(precision):
        yield
