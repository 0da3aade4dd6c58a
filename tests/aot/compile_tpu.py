"""Compiles the TPU attention kernels for chips that are not there; prints a line of JSON for each case.

Started by test_tpu_aot.py; by hand, in the environment that `bash tools/setup_env.sh aot` makes:

    JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 TPU_ACCELERATOR_TYPE=v5litepod-8 TPU_WORKER_HOSTNAMES=localhost \
        .venv-aot/bin/python tests/aot/compile_tpu.py
"""

import json
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmbert_jax.kernels import tpu

BATCH, HEADS = 4, 12
ONE_CHIP = {"chips_per_host_bounds": (1, 1, 1)}
MESHES = {
    # Two TensorCores of a v5p are one device.
    "v5e": ("v5e:1x1", ONE_CHIP, (1, 1)),
    "v5p": ("v5p:1x1x1", ONE_CHIP, (1, 1)),
    "v6e": ("v6e:1x1", ONE_CHIP, (1, 1)),
    "v5e:2x2": ("v5e:2x2", {}, (2, 2)),
}


def mesh_of(name):
    """Axes "data" and "tensor", the heads' axis."""
    topology_name, options, shape = MESHES[name]
    topology = topologies.get_topology_desc(platform="tpu", topology_name=topology_name, **options)
    return Mesh(np.array(topology.devices).reshape(shape), ("data", "tensor"))


def forward_and_backward(q, k, v, d_out, lo, hi, *, window):
    out, lse = tpu.forward(q, k, v, lo, hi, window=window)
    return out, lse, *tpu.backward(q, k, v, out, lse, d_out, lo, hi, window=window)


def compile_for(mesh, length, window):
    matrices = PartitionSpec("data", None, "tensor", None)
    vectors = PartitionSpec("data", "tensor", None)
    ranges = PartitionSpec("data", None)
    specs = (matrices,) * 4 + (ranges,) * 2
    shapes = ((BATCH, length, HEADS, 64),) * 4 + ((BATCH, length),) * 2
    dtypes = (jnp.bfloat16,) * 4 + (jnp.int32,) * 2
    arguments = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
        for shape, dtype, spec in zip(shapes, dtypes, specs, strict=True)
    ]

    def local(*arrays):
        return forward_and_backward(*arrays, window=window)

    results = (matrices, vectors, matrices, matrices, matrices)
    # Pallas calls do not say over which axes their results vary.
    sharded = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=results, check_vma=False)
    with jax.set_mesh(mesh):
        return jax.jit(sharded).lower(*arguments).compile()


def main():
    cases = [
        (chip, length, window)
        for chip in ("v5e", "v5p", "v6e")
        for length in (1024, 8192)
        for window in (None, 64)
    ]
    cases += [("v5e", 200, None), ("v5e:2x2", 1024, 64)]
    for chip, length, window in cases:
        start = time.perf_counter()
        compiled = compile_for(mesh_of(chip), length, window)
        program = compiled.as_text()
        report = {
            "chip": chip,
            "length": length,
            "window": window,
            "seconds": round(time.perf_counter() - start, 1),
            "kernels": len(re.findall(r'custom_call_target="tpu_custom_call"', program)),
            "transposes": len(re.findall(r" transpose\(", program)),
            "collectives": len(re.findall(r" (?:all|reduce|collective)-[a-z-]+\(", program)),
            "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
            "flops": compiled.cost_analysis()["flops"],
        }
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
