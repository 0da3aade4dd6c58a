"""The Hopper kernels compile for an H100 without one, and ptxas keeps all their values in registers."""

import re
from pathlib import Path

import pytest
from other_machines import run_for_other_machines

KERNELS = ("attention_forward", "attention_backward_queries", "attention_backward_keys")


@pytest.fixture(scope="module")
def report():
    """What compile_hopper.py and ptxas print, by the case that it is about."""
    script = Path(__file__).with_name("compile_hopper.py")
    done = run_for_other_machines(script, timeout=900, MOSAIC_GPU_DUMP_PTXAS="1")
    assert done.returncode == 0, done.stderr
    cases = re.split(r"^== (.*)\n", done.stdout, flags=re.MULTILINE)[1:]
    return dict(zip(cases[::2], cases[1::2], strict=True))


def test_all_kernels_are_compiled_for_hopper(report):
    assert len(report) == 5
    for case, text in report.items():
        compiled = re.findall(
            r"Compiling entry function '(\w+)_mosaic_gpu_kernel' for '(\w+)'", text
        )
        assert sorted(compiled) == sorted((name, "sm_90a") for name in KERNELS), case


def test_nothing_is_spilled(report):
    for case, text in report.items():
        spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", text)
        assert spills == [("0", "0")] * len(KERNELS), case


def test_products_overlap_with_arithmetic(report):
    """ptxas has not put the tensor core's instructions one after the other, nor waits between them (C7510 to C7518)."""
    for case, text in report.items():
        assert "serialized" not in text, case
        assert "warpgroup.wait is injected" not in text, case


def test_memory_is_linear_in_the_row_length(report):
    temporaries = {
        case: int(re.search(r"^temporaries (\d+)", text, re.MULTILINE)[1])
        for case, text in report.items()
        if "temporaries" in text
    }
    for window in (None, 64):
        short, long = (
            temporaries[f"one H100, rows of {length}, window {window}"] for length in (1024, 8192)
        )
        assert long <= 9 * short


def test_devices_work_on_their_own(report):
    assert "collectives 0" in report["four H100s, two by batch, two by heads"]
