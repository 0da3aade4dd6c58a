"""The TPU kernels compile for chips that are not there, and take no more memory and traffic than they should."""

import json
from pathlib import Path

import pytest
from other_machines import run_for_other_machines


@pytest.fixture(scope="module")
def reports():
    """What compile_tpu.py prints, by chip, row length and window."""
    script = Path(__file__).with_name("compile_tpu.py")
    done = run_for_other_machines(script, timeout=900)
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
