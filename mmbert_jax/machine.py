"""What the devices of a run are, and what they could do at best."""

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mmbert_jax.data.pipeline import PhaseData, first_rows
from mmbert_jax.flops import forward_flops_per_token
from mmbert_jax.kernels import attention
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.parallel.hardware import peak_flops


def describe_mesh(config: ConfigDict, mesh: Mesh) -> str:
    """The devices, and which implementation of attention they run."""
    model = ModelConfig.from_config(config.model)
    shape = (config.train.microbatch_rows, config.data.row_length, model.num_heads, model.head_dim)
    windows = (None, model.attention_window // 2)
    return (
        f"mesh {dict(mesh.shape)} on {mesh.size} x {mesh.devices.flat[0].device_kind}, {jax.process_count()} processes"
        f"\nattention: {attention.describe(mesh, shape, config.dtype, windows)}"
    )


def time_at_peak(config: ConfigDict, mesh: Mesh, data: PhaseData) -> tuple[float | None, str]:
    """Seconds of a token's FLOPs, forward and backward, on all devices at their peak, and how many of what these are.

    (None, "") where the devices' peak is not known.
    """
    peak = peak_flops(mesh.devices.flat[0].device_kind)
    if not peak:
        return None, ""
    # The lengths of documents decide what attention costs.
    sample = first_rows(data, 64)["segment_ids"]
    model = ModelConfig.from_config(config.model)
    flops = {
        part: 3 * x for part, x in forward_flops_per_token(model, config.mask.ratio, sample).items()
    }
    parts = ", ".join(f"{part} {x / 1e6:.1f}" for part, x in flops.items())
    text = f"{sum(flops.values()) / 1e6:.1f} MFLOP a token ({parts}); peak of a device {peak / 1e12:.0f} TFLOP/s"
    return sum(flops.values()) / peak / mesh.size, text
