"""The model that the tests of export and import share, and how they start the tools."""

import os
import subprocess
import sys
from pathlib import Path

from mmbert_jax.model.config import ModelConfig

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ModelConfig(
    vocab_size=340,
    hidden_size=64,
    num_layers=4,
    num_heads=1,
    intermediate_size=48,
    global_rope_theta=9_000.0,
    local_rope_theta=800.0,
)


def run_tool(name: str, *arguments: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        check=False,
    )
