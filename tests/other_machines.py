"""Programs under the compilers for machines that are not there (.venv-aot); tests that want them skip without."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".venv-aot/bin/python"
# What tests/conftest.py sets to make tests quick. Here it is what the compilers make that is tested.
_NOT_PASSED_ON = ("JAX_DISABLE_MOST_OPTIMIZATIONS", "JAX_COMPILATION_CACHE_DIR")


def run_for_other_machines(
    *words: str | Path, timeout: float, **variables: str
) -> subprocess.CompletedProcess:
    """Runs a script of this repository, from its root, with these environment variables besides."""
    if not PYTHON.exists():
        pytest.skip(
            "no compilers for other machines here; get them by: bash tools/setup_env.sh aot"
        )
    environment = {name: x for name, x in os.environ.items() if name not in _NOT_PASSED_ON}
    environment |= {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        # Else libtpu asks a cloud's metadata server which TPU it runs on.
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }
    return subprocess.run(
        [PYTHON, *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment | variables,
        timeout=timeout,
        check=False,
    )
