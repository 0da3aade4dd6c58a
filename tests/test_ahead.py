"""The parts of a plan for other hardware that need no compiler."""

from pathlib import Path

import pytest
from tiny import tiny_config

from mmbert_jax.ahead import check_rows, suggest, wanted_bytes
from mmbert_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
GIB = 2**30


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (200.50G)"
            " exceeds available HBM (15.75G). HLO module: jit_f.",
            200.5 * GIB,
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 18.25G of 15.75G hbm. Exceeded hbm"
            " capacity by 2.50G.",
            18.25 * GIB,
        ),
        ("RESOURCE_EXHAUSTED: Used 512.0M of 15.75G hbm", 512 * 2**20),
        ("RESOURCE_EXHAUSTED", None),
    ],
)
def test_bytes_that_a_compiler_wants(message, expected):
    assert wanted_bytes(message) == expected


def test_rows_must_spread_over_the_chips():
    config = tiny_config(train__batch_rows=16, train__microbatch_rows=8)
    check_rows(config, 8)
    with pytest.raises(UserError, match="microbatch_rows=8 is less than the 16 chips"):
        check_rows(config, 16)
    with pytest.raises(
        UserError, match=r"microbatch_rows=8 is no multiple of the 3 .*train.microbatch_rows=9 "
    ):
        check_rows(config, 3)
    # A batch need not: its last microbatch is filled up.
    check_rows(tiny_config(train__batch_rows=20, train__microbatch_rows=16), 16)


def report(**changes):
    """A plan on 8 chips: 1 GiB of parameters, 2 of moments, so 5 GiB whatever the rows; 2 GiB a row."""
    return {
        "parameter_bytes": GIB,
        "optimizer_bytes": 2 * GIB,
        "peak_bytes": 13 * GIB,
        "memory_limit": 16 * GIB,
        "rows_per_chip": 4.0,
        "microbatch_rows": 32,
        "mesh": {"data": 4, "fsdp": 2, "tensor": 1},
        **changes,
    }


def test_the_suggestion_is_the_most_rows_that_fit_and_leave_the_least_padding():
    # Five rows a chip fit: 240 rows are six microbatches of them; of 256 rows a seventh would hold 16.
    text = suggest(report(), tiny_config(train__batch_rows=240))
    assert text == "--config.train.microbatch_rows=40 (5 rows a chip; the estimate allows 5)"
    assert suggest(report(), tiny_config(train__batch_rows=256)).startswith(
        "none: --config.train.microbatch_rows=32 "  # four rows were compiled
    )
    # No size divides 250 rows: four rows a chip leave 6 of padding, five 30, three 14.
    assert "microbatch_rows=32" in suggest(report(), tiny_config(train__batch_rows=250))


def test_where_no_row_fits_the_state_is_spread():
    config = tiny_config()
    text = suggest(report(peak_bytes=60 * GIB, rows_per_chip=1.0), config)
    assert "not even one row a chip fits" in text
    assert "--config.mesh.fsdp=8" in text
    assert "the state alone" in suggest(report(memory_limit=4 * GIB), config)
