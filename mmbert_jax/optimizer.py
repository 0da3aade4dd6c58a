"""The optimiser that a config names, and how its state lies on a mesh.

A config is read by its fields alone, so that the step also runs where `ml_collections` is not installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from mmbert_jax.axes import RULES
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.model.heads import Params, abstract_model, init_params
from mmbert_jax.optim.muon import Matrix, iteration_flops, muon
from mmbert_jax.optim.stable_adamw import stable_adamw
from mmbert_jax.parallel.sharding import param_shardings, replicated
from mmbert_jax.parallel.spread import spread

if TYPE_CHECKING:
    from ml_collections import ConfigDict

# Dimensions that number matrices, and dimensions whose entries are looked up or told apart, not mixed with each other.
_SEVERAL, _ENTRIES = ("qkv", "glu"), ("vocab", "classes")


def optimizer(
    config: ConfigDict, mesh: Mesh | None = None
) -> optax.GradientTransformationExtraArgs:
    """The optimiser of a config. Without a mesh one device does all of its work."""
    c = config.optimizer
    adamw = stable_adamw(
        b1=c.b1, b2=c.b2, eps=c.eps, weight_decay=c.weight_decay, peak_lr=c.peak_lr
    )
    if c.name == "stable_adamw":
        return adamw

    def share_out(function, layout):
        return function if mesh is None else spread(function, mesh, *layout)

    return muon(
        matrices=hidden_matrices(ModelConfig.from_config(config.model), mesh),
        rest=adamw,
        momentum=c.momentum,
        weight_decay=c.weight_decay,
        peak_lr=c.peak_lr,
        dtype=jnp.dtype(config.dtype),
        b2=c.b2 if c.name == "normuon" else None,
        eps=c.eps,
        spread=share_out,
    )


def why_new_moments(config: ConfigDict, meta: Mapping[str, Any]) -> str:
    """Why a phase leaves the moments of a checkpoint, by its meta, where they are; empty where it goes on with them."""
    if not config.init_moments:
        return "gives its parameters alone"
    theirs = meta["config"].get("optimizer") or {"name": config.optimizer.name}
    before = theirs.get("name", "stable_adamw")  # from before there were others
    if before != config.optimizer.name:
        return f"was trained by {before}, not by {config.optimizer.name}"
    return ""


def hidden_matrices(config: ModelConfig, mesh: Mesh | None = None) -> dict[str, Matrix]:
    """The parameters that mix hidden states, by path: all of two dimensions or more but embeddings and classifiers."""
    _, state = abstract_model(config)
    found = {}
    for path, variable in nnx.to_flat_state(state):
        names = variable.get_metadata()["logical_axes"]
        if len(names) < 2 or set(names) & set(_ENTRIES):
            continue
        dimensions = [i for i, name in enumerate(names) if name not in _SEVERAL]
        # The residual stream's dimension is one side, and as first one the side of the inputs.
        cut = 1 if names[0] == "embed" else len(dimensions) - 1
        inputs, outputs = tuple(dimensions[:cut]), tuple(dimensions[cut:])
        layout = tuple(_mesh_axis([names[i] for i in side], mesh) for side in (inputs, outputs))
        found["/".join(map(str, path))] = Matrix(inputs, outputs, layout)
    return found


def matrix_flops(config: ConfigDict, mesh: Mesh) -> float:
    """FLOPs of the optimiser's products in a step, on the device that has most to do: none of StableAdamW."""
    if config.optimizer.name == "stable_adamw":
        return 0
    model = ModelConfig.from_config(config.model)
    params = flatten_dict(jax.eval_shape(lambda: init_params(model, config.seed)), sep="/")
    return iteration_flops(hidden_matrices(model, mesh), params, mesh.size)


def _mesh_axis(names: list[str], mesh: Mesh | None) -> str | None:
    """The axis of more than one device over which a side of a matrix is spread, by its first dimension."""
    axis = RULES.get(names[0])
    return axis if mesh and axis and mesh.shape[axis] > 1 else None


def init_optimizer(config: ConfigDict, params: Params) -> Any:
    return optimizer(config).init(params)


def optimizer_shardings(config: ConfigDict, mesh: Mesh) -> Any:
    """Shardings of the optimiser's state: moments lie like their parameters, all else is on every device."""
    model = ModelConfig.from_config(config.model)
    shapes = flatten_dict(jax.eval_shape(lambda: init_params(model, config.seed)))
    shardings = flatten_dict(param_shardings(model, mesh))

    def sharding(path, x):
        name = tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))
        like = shapes.get(name)
        return shardings[name] if like is not None and like.shape == x.shape else replicated(mesh)

    state = jax.eval_shape(lambda: init_optimizer(config, init_params(model, config.seed)))
    return jax.tree.map_with_path(sharding, state)
