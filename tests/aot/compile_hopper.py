"""Compiles the Hopper attention kernels for an H100 with no GPU, and prints ptxas' report of each.

Started by test_hopper_aot.py; by hand, in the environment that `bash tools/setup_env.sh aot` makes:

    JAX_PLATFORMS=cpu MOSAIC_GPU_DUMP_PTXAS=1 .venv-aot/bin/python tests/aot/compile_hopper.py
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmbert_jax.kernels import hopper

ROOT = Path(__file__).resolve().parents[2]
BATCH, HEADS = 2, 12


def h100s(count):
    """A mesh of `count` H100s of one machine over the axes "data" and "model", the heads' axis."""
    topology = topologies.get_topology_desc(
        platform="cuda",
        target_config=(ROOT / "tools/targets/h100.txtpb").read_text(),
        topology=f"1x1x{count}",
    )
    return Mesh(np.array(topology.devices).reshape(-1, min(count, 2)), ("data", "model"))


def forward_and_backward(q, k, v, d_out, lo, hi, *, window):
    out, lse = hopper.forward(q, k, v, lo, hi, window=window)
    return hopper.backward(q, k, v, out, lse, d_out, lo, hi, window=window)


def compile_for(mesh, length, window):
    heads_split = PartitionSpec("data", None, "model", None)
    rows_split = PartitionSpec("data", None)
    specs = (heads_split,) * 4 + (rows_split,) * 2
    shapes = ((BATCH, length, HEADS, 64),) * 4 + ((BATCH, length),) * 2
    dtypes = (jnp.bfloat16,) * 4 + (jnp.int32,) * 2
    arguments = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
        for shape, dtype, spec in zip(shapes, dtypes, specs, strict=True)
    ]

    def local(*arrays):
        return forward_and_backward(*arrays, window=window)

    sharded = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=(heads_split,) * 3)
    return jax.jit(sharded).lower(*arguments).compile()


def main():
    for length in (1024, 8192):
        for window in (None, 64):
            print(f"== one H100, rows of {length}, window {window}", flush=True)
            compiled = compile_for(h100s(1), length, window)
            print(f"temporaries {compiled.memory_analysis().temp_size_in_bytes}", flush=True)
    print("== four H100s, two by batch, two by heads", flush=True)
    collectives = compile_for(h100s(4), 1024, 64).as_text().count("all-")
    print(f"collectives {collectives}", flush=True)


if __name__ == "__main__":
    main()
