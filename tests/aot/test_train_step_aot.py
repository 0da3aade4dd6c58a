"""The training step of base, compiled without the machine: it fits into its memory."""

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-aot/bin/python"

# Memory that a program gets, as the devices report it.
LIMITS = {"h100": 79.1 * 2**30 * 0.95, "v5e": 15.75 * 2**30}
# At least 32k tokens a microbatch on an H100.
STEPS = ("h100:1024x32", "h100:8192x4", "v5e:1024x4")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def reports():
    if not PYTHON.exists():
        pytest.skip(
            "no compilers for other machines here; get them by: bash tools/setup_env.sh aot"
        )
    script = Path(__file__).with_name("compile_train_step.py")
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        # Else libtpu asks a cloud's metadata server which TPU it runs on.
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }
    done = subprocess.run(
        [PYTHON, script, *STEPS],
        capture_output=True,
        text=True,
        env=environment,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {report["name"]: report for report in lines}


@pytest.mark.parametrize("name", STEPS)
def test_it_fits_without_rematerialisation(reports, name):
    """CUDA's compiler does not enforce a limit by itself."""
    assert reports[name]["bytes"] < LIMITS[name.partition(":")[0]]


@pytest.mark.parametrize("name", STEPS)
def test_attention_is_that_of_the_machine(reports, name):
    own = {"h100": "hopper", "v5e": "tpu"}[name.partition(":")[0]]
    assert reports[name]["attention"].startswith(f"global and local layers by {own} ")
