"""The TPU kernels compile for chips that are not there, and take no more memory and traffic than they should."""

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-aot/bin/python"


@pytest.fixture(scope="module")
def reports():
    """What compile_tpu.py prints, by chip, row length and window."""
    if not PYTHON.exists():
        pytest.skip(
            "no compilers for other machines here; get them by: bash tools/setup_env.sh aot"
        )
    script = Path(__file__).with_name("compile_tpu.py")
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        # libtpu asks no metadata server which machine this is.
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }
    done = subprocess.run(
        [PYTHON, script], capture_output=True, text=True, env=environment, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {(x["chip"], x["length"], x["window"]): x for x in lines}


@pytest.mark.parametrize("chip", ["v5e", "v5p", "v6e"])
@pytest.mark.parametrize("length", [1024, 8192])
@pytest.mark.parametrize("window", [None, 64])
def test_compiles_as_three_kernels_without_transposes(reports, chip, length, window):
    report = reports[chip, length, window]
    assert report["kernels"] == 3
    assert report["transposes"] == 0


@pytest.mark.parametrize("window", [None, 64])
def test_memory_is_linear_in_the_row_length(reports, window):
    """Of one head's scores [L, L] in bfloat16, at most two would fit; there are 48, in each of three kernels."""
    assert reports["v5e", 8192, window]["temporary_bytes"] < 2 * (8192 * 8192 * 2)


def test_the_compiler_knows_that_a_window_bounds_the_work(reports):
    """The kernels' estimates are most of what the compiler counts: 129 of 8192 keys."""
    assert reports["v5e", 8192, 64]["flops"] < reports["v5e", 8192, None]["flops"] / 20


def test_devices_work_on_their_own(reports):
    assert reports["v5e:2x2", 1024, 64]["collectives"] == 0
