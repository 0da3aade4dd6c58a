"""The one public attention function; every implementation takes the same key ranges and gives the same numbers."""

import functools
import importlib
import math
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Literal, get_args

import jax
from jax.sharding import Mesh, PartitionSpec

from mmbert_jax.axes import BATCH_AXES, HEADS_AXIS
from mmbert_jax.kernels.ranges import Ranges

# Modules beside this one, each with `unsupported`, `forward` and `backward`; `xla` says what they take and give.
Implementation = Literal["hopper", "tpu", "xla"]

# What the names of NVIDIA's Hopper GPUs have in them; GH200 is one of them.
_HOPPER = ("H100", "H200", "H800", "H20")


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    ranges: Ranges,
    *,
    implementation: Implementation | None = None,
) -> jax.Array:
    """Softmax attention in which query i sees the keys `[lo_i, hi_i)`.

    Under a mesh (`jax.set_mesh`, or `jax.sharding.use_abstract_mesh` inside a jitted function) each device computes its
    own rows and heads, and the mesh's devices decide the implementation: so a program can be compiled for machines
    that are not there.

    Args:
      q, k, v: float [B, L, H, D], rotary embedding already applied. Scores are scaled by 1 / sqrt(D).
      ranges: key intervals from `ranges.ranges`, one for global and one for local layers of a batch.
      implementation: None takes the best one for the devices (see `implementation_for`).

    Returns:
      [B, L, H, D] in v's dtype. Scores and softmax are float32.

    Raises:
      ValueError: shapes disagree, or the implementation that is asked for is unknown or cannot compute them.
    """
    if not q.shape == k.shape == v.shape or ranges.lo.shape != q.shape[:2]:
        raise ValueError(
            f"attention wants q, k, v of one shape [B, L, H, D] and ranges [B, L]; got {q.shape}, {k.shape}, {v.shape}"
            f" and {ranges.lo.shape}"
        )
    mesh = jax.sharding.get_abstract_mesh()
    shape = _shape_on_a_device(q.shape, mesh)
    if implementation is None:
        device = mesh.abstract_device or jax.devices()[0]
        implementation, reason = implementation_for(device, shape, q.dtype, ranges.window)
        if implementation != _preferred(device):
            warnings.warn(f"attention by {implementation}: {reason}", stacklevel=2)
    elif implementation not in get_args(Implementation):
        known = ", ".join(map(repr, get_args(Implementation)))
        raise ValueError(f"unknown attention implementation {implementation!r}; known: {known}")
    elif reason := _module(implementation).unsupported(shape, q.dtype, ranges.window):
        raise ValueError(f"attention implementation {implementation!r}: {reason}")
    return _attention(implementation, mesh, ranges.window, q, k, v, ranges.lo, ranges.hi)


def implementation_for(
    device, shape: tuple[int, int, int, int], dtype, window: int | None
) -> tuple[Implementation, str]:
    """The implementation that `attention` takes, and why.

    Args:
      device: a `jax.Device` or a mesh's abstract device.
      shape: [B, L, H, D] on one device.
      dtype, window: of q, k, v and of the ranges.
    """
    preferred = _preferred(device)
    if reason := _module(preferred).unsupported(shape, dtype, window):
        return "xla", reason
    if preferred == "xla":
        return "xla", f"there are no kernels of its own for {device.device_kind}"
    return preferred, f"kernels for {device.device_kind}"


def describe(mesh: Mesh, shape: tuple[int, int, int, int], dtype, windows: Sequence) -> str:
    """The implementations that a program on a mesh uses, for the line that is printed at start-up.

    Args:
      shape: [B, L, H, D] on all devices together.
      windows: those of the model's layers, None for global ones.
    """
    device, shape = mesh.devices.flat[0], _shape_on_a_device(shape, mesh.abstract_mesh)
    lines = {}
    for window in windows:
        name, reason = implementation_for(device, shape, dtype, window)
        lines.setdefault(f"{name} ({reason})", []).append("local" if window else "global")
    return ", ".join(f"{' and '.join(layers)} layers by {line}" for line, layers in lines.items())


def spread_rows(x: jax.Array) -> jax.Array:
    """Says that the rows [B, ...] of an array are spread over the devices of the mesh, if there is one.

    Without it XLA lets the first layer's activations lie like the columns of an embedding that is sharded over `fsdp`,
    and sums its products over the devices.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES))


def _preferred(device) -> Implementation:
    """The implementation written for a device."""
    if device.platform == "tpu":
        return "tpu"
    if device.platform == "gpu" and any(name in device.device_kind for name in _HOPPER):
        return "hopper"
    return "xla"


def _module(implementation: Implementation) -> ModuleType:
    """Imported when it is needed: importing Pallas takes a while."""
    return importlib.import_module(f"{__package__}.{implementation}")


def _shape_on_a_device(shape, mesh):
    """[B, L, H, D] of a device's part."""
    batch, length, heads, depth = shape
    rows = math.prod(mesh.shape.get(axis, 1) for axis in BATCH_AXES)
    return batch // rows, length, heads // mesh.shape.get(HEADS_AXIS, 1), depth


def _spread(function, mesh, in_axes, out_axes):
    """`function` on each device's rows and heads; `axes` are its arguments' and results' in letters, "blhd"."""
    if mesh.empty:
        return function
    names = {"b": BATCH_AXES, "h": HEADS_AXIS}

    def spec(letters):
        return PartitionSpec(*(names.get(letter) for letter in letters))

    # Pallas kernels do not say over which axes their results vary, which is what `check_vma` would check.
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=tuple(map(spec, in_axes)),
        out_specs=tuple(map(spec, out_axes)),
        check_vma=False,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attention(implementation, mesh, window, q, k, v, lo, hi):
    return _attention_fwd(implementation, mesh, window, q, k, v, lo, hi)[0]


def _attention_fwd(implementation, mesh, window, q, k, v, lo, hi):
    function = functools.partial(_module(implementation).forward, window=window)
    arguments = ("blhd", "blhd", "blhd", "bl", "bl")
    out, lse = _spread(function, mesh, arguments, ("blhd", "bhl"))(q, k, v, lo, hi)
    return out, (q, k, v, out, lse, lo, hi)


def _attention_bwd(implementation, mesh, window, residuals, d_out):
    q, k, v, out, lse, lo, hi = residuals
    function = functools.partial(_module(implementation).backward, window=window)
    arguments = ("blhd", "blhd", "blhd", "blhd", "bhl", "blhd", "bl", "bl")
    gradients = ("blhd", "blhd", "blhd")
    backward = _spread(function, mesh, arguments, gradients)
    return *backward(q, k, v, out, lse, d_out, lo, hi), None, None


_attention.defvjp(_attention_fwd, _attention_bwd)
