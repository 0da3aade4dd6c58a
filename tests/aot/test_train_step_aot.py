"""The training step of base, compiled without the machine: it fits into its memory."""

import json
from pathlib import Path

import pytest
from other_machines import run_for_other_machines

# Memory that a program gets, as the devices report it.
LIMITS = {"h100": 79.1 * 2**30 * 0.95, "v5e": 15.75 * 2**30}
# At least 32k tokens a microbatch on an H100.
STEPS = ("h100:1024x32", "h100:8192x4", "v5e:1024x4")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def reports():
    script = Path(__file__).with_name("compile_train_step.py")
    # Buffers are settled before LLVM and ptxas see the program; what those make of it is test_hopper_aot.py's.
    quick = (
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
        " --xla_gpu_disable_gpuasm_optimizations=true"
    )
    done = run_for_other_machines(script, *STEPS, timeout=1800, XLA_FLAGS=quick)
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
