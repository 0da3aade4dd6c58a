"""Runs a script under another version of a library: the folders that tools/setup_peers.sh makes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# The one of .venv itself.
NEWEST = "newest"


def run_under(peer: str, script: Path, *arguments: str | Path, timeout: int = 900) -> str:
    """Runs a script with `.peers/PEER` in front of everything else; returns what it printed.

    Skips the test where that folder is absent.
    """
    path = [str(ROOT)]
    if peer != NEWEST:
        folder = ROOT / ".peers" / peer
        if not (folder / ".complete").exists():
            pytest.skip(f".peers/{peer} is absent: run `bash tools/setup_peers.sh {peer}`")
        path.insert(0, str(folder))
    settings = {
        "PYTHONPATH": os.pathsep.join(path),
        "HF_HUB_OFFLINE": "1",
        "JAX_PLATFORMS": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "TOKENIZERS_PARALLELISM": "false",
    }
    result = subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | settings,
        timeout=timeout,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout
