"""Compiles the whole training step of base for machines that are not there; prints time and memory of each as JSON.

Started by test_train_step_aot.py; by hand, in the environment that `bash tools/setup_env.sh aot` makes:

    JAX_PLATFORMS=cpu .venv-aot/bin/python tests/aot/compile_train_step.py h100:1024x32 v5e:1024x4
"""

import json
import sys
import time
from pathlib import Path

from mmbert_jax.config_file import load
from mmbert_jax.kernels import attention
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.parallel import hardware
from mmbert_jax.parallel.mesh import make_mesh
from mmbert_jax.step import compile_train_step

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def compile_for(target: str, length: int, rows: int):
    """The step of phase 1 (rows of 1024) or phase 2 (8192) with one microbatch of `rows`; and what its attention is."""
    config = load(str(CONFIGS / ("phase1.py" if length == 1024 else "phase2.py")))
    config.data.row_length = length
    config.train.batch_rows = config.train.microbatch_rows = rows
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, hardware.devices(f"{target}:1x1"))
    model = ModelConfig.from_config(config.model)
    shape = (rows, length, model.num_heads, model.head_dim)
    return (
        compile_train_step(config, mesh),
        attention.describe(mesh, shape, config.dtype, (None, model.attention_window // 2)),
    )


def main():
    for name in sys.argv[1:]:
        target, _, shape = name.partition(":")
        start = time.perf_counter()
        compiled, implementations = compile_for(target, *map(int, shape.split("x")))
        memory = compiled.memory_analysis()
        report = {
            "name": name,
            "attention": implementations,
            "seconds": round(time.perf_counter() - start, 1),
            # Donated arguments are where the results go: they count once.
            "bytes": memory.argument_size_in_bytes
            + memory.temp_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes,
            "temporary_bytes": memory.temp_size_in_bytes,
        }
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
