"""Counts a layer's passes over memory, forward and backward, in programs compiled for machines that are not there.

The gradient of an encoder of base's width (bfloat16, dropout as in training) is compiled with 3 and with 6 layers, one
global and two local ones more. The difference of their memory traffic (`parallel/hlo.memory_traffic`), over 3, is a
layer's; a pass reads or writes one bfloat16 array [tokens, hidden size].

Runs in the environment that `bash tools/setup_env.sh aot` makes.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import jax
import jax.numpy as jnp

from mmbert_jax.config_file import load
from mmbert_jax.errors import run_main
from mmbert_jax.files import check_file, write_json
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.model.heads import bind, init_params
from mmbert_jax.parallel import hardware, hlo
from mmbert_jax.parallel.mesh import make_mesh
from mmbert_jax.places import place

MEGABYTE = 2**20
PHASE1 = str(Path(__file__).resolve().parents[2] / "configs/phase1.py")


def traffic(target: str, layers: int, rows: int, row_length: int) -> int:
    """Bytes that the gradient of an encoder with this many layers moves."""
    config = load(PHASE1)
    config.model.num_layers = layers
    config.model.vocab_size = 1024  # the embedding is the same in both programs, and left out so
    model_config = ModelConfig.from_config(config.model)
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, hardware.devices(f"{target}:1x1"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def total(params, tokens, segment_ids, positions):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # attention asks for it
            model = bind(model_config, params)
            keys = jax.random.split(jax.random.key(0), rows)
            hidden = model(tokens, segment_ids, positions, jnp.bfloat16, keys)
        return jnp.square(hidden.astype(jnp.float32)).sum()

    params = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole),
        jax.eval_shape(lambda: init_params(model_config, 0)),
    )
    batch = [jax.ShapeDtypeStruct((rows, row_length), jnp.int32, sharding=whole)] * 3
    compiled = jax.jit(jax.grad(total)).lower(params, *batch).compile()
    return hlo.memory_traffic(hlo.parse(compiled.as_text()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  .venv-aot/bin/python tools/bench/layer_traffic.py --targets h100:32x1024 v5e:4x1024",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--targets",
        nargs="+",
        default=["h100:32x1024", "v5e:4x1024"],
        metavar="CHIP:ROWSxLENGTH",
        help="h100, v5e, v5p or v6e (default h100:32x1024 v5e:4x1024)",
    )
    parser.add_argument("--output", type=place, help="JSON file to write")
    args = parser.parse_args()
    if args.output:
        check_file(args.output)
    results = []
    for name in args.targets:
        target, _, shape = name.partition(":")
        rows, row_length = map(int, shape.split("x"))
        layer = (traffic(target, 6, rows, row_length) - traffic(target, 3, rows, row_length)) / 3
        array = 2 * rows * row_length * load(PHASE1).model.hidden_size
        results.append({"name": name, "bytes_per_layer": layer, "passes": layer / array})
        print(
            f"{name:<14}{layer / MEGABYTE:>10,.0f} MiB a layer, {layer / array:.0f} passes over"
            f" {array / MEGABYTE:.0f} MiB",
            flush=True,
        )
    if args.output:
        write_json(args.output, results)


if __name__ == "__main__":
    run_main(main)
