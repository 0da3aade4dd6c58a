"""What a plan needs to know of each accelerator, and the devices of slices and hosts that are not there."""

import dataclasses
import math
import re
from pathlib import Path

import jax
from jax.experimental import topologies

from mmbert_jax.errors import UserError

_GPU_TARGETS = Path(__file__).resolve().parents[2] / "tools/targets"


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator.

    Attributes:
      flops: dense bfloat16 FLOP/s, peak.
      memory: bytes that a program gets.
      memory_bandwidth: bytes/s.
      link_bandwidth: bytes/s that a chip sends to the chips of its slice or host, all links together.
      network_bandwidth: bytes/s that a chip sends out of its host; 0 where hosts are in the slice too.
      host: chips of a host.
      source: where the figures stand.
    """

    flops: float
    memory: float
    memory_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    host: int
    source: str


# Memory of the TPUs: what their compiler says is available. Links: half of the bidirectional figure.
CHIPS = {
    "v5e": Chip(
        197e12, 15.75 * 2**30, 819e9, 200e9, 0, 4,
        "cloud.google.com/tpu/docs/v5e: 197 TFLOP/s, 16 GB, 819 GB/s, ICI 400 GB/s both ways",
    ),
    "v5p": Chip(
        459e12, 95.73 * 2**30, 2765e9, 600e9, 0, 4,
        "cloud.google.com/tpu/docs/v5p: 459 TFLOP/s, 95 GiB, 2765 GB/s, ICI 1200 GB/s both ways",
    ),
    "v6e": Chip(
        918e12, 31.24 * 2**30, 1600e9, 400e9, 0, 4,
        "cloud.google.com/tpu/docs/v6e: 918 TFLOP/s, 32 GB, 1600 GB/s, ICI 800 GB/s both ways",
    ),
    # The memory is what the device reports, less the 5% that are left to NCCL and the context.
    "h100": Chip(
        989.4e12, 0.95 * 79.1 * 2**30, 3352e9, 450e9, 50e9, 8,
        "NVIDIA H100 SXM5 data sheet: 989.4 TFLOP/s, 80 GB, 3.35 TB/s, NVLink 900 GB/s both ways; one 400 Gbit/s"
        " adapter a GPU as in a DGX H100",
    ),
}  # fmt: skip

# Beginnings of what jax calls them. The H200 has the H100's chip and more memory.
_KINDS = {
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h100",
}


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 FLOP/s of a device, by what jax calls its kind; None where that is not known."""
    for kind, chip in _KINDS.items():
        if device_kind.startswith(kind):
            return CHIPS[chip].flops
    return None


def parse_topology(topology: str) -> tuple[str, tuple[int, ...]]:
    """'v5e:16x16' -> ('v5e', (16, 16)); of GPUs the shape is hosts x GPUs of one: 'h100:2x8'.

    Raises:
      UserError: it is written differently, or the chip is not in the table.
    """
    match = re.fullmatch(r"([a-z0-9]+):(\d+(?:x\d+){1,2})", topology)
    if not match or match.group(1) not in CHIPS:
        raise UserError(
            f"--topology {topology!r} is not CHIP:SHAPE with one of {', '.join(CHIPS)}: write v5e:16x16, v5p:8x8x8"
            " or h100:2x8 (2 hosts of 8)"
        )
    return match.group(1), tuple(int(n) for n in match.group(2).split("x"))


def devices(topology: str) -> list[jax.Device]:
    """Devices to compile for. They need the packages of `bash tools/setup_env.sh aot`.

    Raises:
      UserError: the compilers are not installed, or know no such slice.
    """
    chip, shape = parse_topology(topology)
    try:
        if CHIPS[chip].network_bandwidth:
            hosts, gpus = shape
            target = (_GPU_TARGETS / f"{chip}.txtpb").read_text()
            return topologies.get_topology_desc(
                platform="cuda", target_config=target, topology=f"{hosts}x1x{gpus}"
            ).devices
        options = {}
        if math.prod(shape) == 1:
            options["chips_per_host_bounds"] = (1, 1, 1)
        return topologies.get_topology_desc(
            platform="tpu", topology_name=topology, **options
        ).devices
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise UserError(
            f"--topology {topology}: {str(error).splitlines()[0]}. Compilers for hardware that is not there:"
            " bash tools/setup_env.sh aot, then .venv-aot/bin/python"
        ) from error
