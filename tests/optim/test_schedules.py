"""Schedules against figures worked out by hand from the published recipe."""

import math

import pytest

from mmbert_jax.errors import UserError
from mmbert_jax.optim.schedules import batch_rows, learning_rate, phase_rows, phase_steps

B = 10**9  # tokens
PHASE1 = {"peak_lr": 8e-4, "warmup_tokens": 3 * B, "schedule": "stable", "final_lr_fraction": 1.0}
BASE_DECAY = {
    "peak_lr": 8e-4,
    "warmup_tokens": 0,
    "schedule": "one_minus_sqrt",
    "final_lr_fraction": 0.02,
}
SMALL_DECAY = {"peak_lr": 4e-4, "warmup_tokens": 0, "schedule": "linear", "final_lr_fraction": 0.04}


@pytest.mark.parametrize(
    ("config", "phase_tokens", "tokens", "expected"),
    [
        # Linear warm-up over 3B tokens to 8e-4, then constant.
        (PHASE1, 2300 * B, 0, 0.0),
        (PHASE1, 2300 * B, 750_000_000, 2e-4),
        (PHASE1, 2300 * B, 3 * B - 1, 8e-4 * (3 * B - 1) / (3 * B)),
        (PHASE1, 2300 * B, 3 * B, 8e-4),
        (PHASE1, 2300 * B, 2300 * B, 8e-4),
        # 8e-4 (0.02 + 0.98 (1 - sqrt x)): x = 0, 1/100, 1/4, 1, and past the end.
        (BASE_DECAY, 100 * B, 0, 8e-4),
        (BASE_DECAY, 100 * B, 1 * B, 7.216e-4),
        (BASE_DECAY, 100 * B, 25 * B, 4.08e-4),
        (BASE_DECAY, 100 * B, 100 * B, 1.6e-5),
        (BASE_DECAY, 100 * B, 101 * B, 1.6e-5),
        # 4e-4 (0.04 + 0.96 (1 - x)): x = 0, 1/4, 1.
        (SMALL_DECAY, 100 * B, 0, 4e-4),
        (SMALL_DECAY, 100 * B, 25 * B, 3.04e-4),
        (SMALL_DECAY, 100 * B, 100 * B, 1.6e-5),
        # With a warm-up, the decay is over what is left: halfway between 20B and 100B.
        (SMALL_DECAY | {"warmup_tokens": 20 * B}, 100 * B, 60 * B, 4e-4 * (0.04 + 0.96 * 0.5)),
        (SMALL_DECAY | {"warmup_tokens": 20 * B}, 100 * B, 20 * B, 4e-4),
        (SMALL_DECAY | {"warmup_tokens": 100 * B}, 100 * B, 100 * B, 4e-4),
    ],
)
def test_learning_rate(config, phase_tokens, tokens, expected):
    assert learning_rate(config, tokens, phase_tokens) == pytest.approx(expected, rel=1e-12)


def test_unknown_schedule_names_the_field():
    with pytest.raises(UserError, match=r"config\.optimizer\.schedule is 'cosine'"):
        learning_rate(BASE_DECAY | {"schedule": "cosine"}, 5, 10)


# Rows of 10 tokens; stages of 2, 4 and 6 rows with equally many steps: of 1200 tokens 200, 400 and 600.
TOY = {
    "tokens": 2000,
    "batch_rows": 8,
    "batch_warmup_from_rows": 2,
    "batch_warmup_stage_rows": 2,
    "batch_warmup_tokens": 1200,
}


@pytest.mark.parametrize(
    ("row", "expected"),
    [(0, 2), (1, 2), (19, 2), (20, 4), (21, 4), (59, 4), (60, 6), (119, 6), (120, 8), (10**12, 8)],
)
def test_batch_warmup_stages_have_equally_many_steps(row, expected):
    assert batch_rows(TOY, row, 10) == expected


def test_batch_warmup_takes_whole_steps():
    """10 steps each of 2, 4 and 6 rows make 120 rows; 80 rows more are 10 steps of 8."""
    row, sizes = 0, []
    while row < phase_rows(TOY, 10):
        sizes.append(batch_rows(TOY, row, 10))
        row += sizes[-1]
    assert sizes == [2] * 10 + [4] * 10 + [6] * 10 + [8] * 10
    assert (row, len(sizes)) == (phase_rows(TOY, 10), phase_steps(TOY, 10)) == (200, 40)


def test_the_last_stage_of_a_warmup_may_be_nearer_to_the_full_batch():
    """Stages of 2, 5 and 8 rows before one of 10: three rounds of 15 rows in 450 tokens."""
    config = TOY | {
        "batch_rows": 10,
        "batch_warmup_stage_rows": 3,
        "batch_warmup_tokens": 450,
        "tokens": 650,
    }
    row, sizes = 0, []
    while row < phase_rows(config, 10):
        sizes.append(batch_rows(config, row, 10))
        row += sizes[-1]
    assert sizes == [2] * 3 + [5] * 3 + [8] * 3 + [10] * 2
    assert phase_steps(config, 10) == 11


@pytest.mark.parametrize(
    ("tokens", "rows", "steps"),
    [
        (1, 2, 1),
        (20, 2, 1),
        (21, 4, 2),
        (200, 20, 10),
        (201, 24, 11),
        (1999, 200, 40),
        (2001, 208, 41),
    ],
)
def test_a_phase_is_the_whole_steps_that_reach_its_tokens(tokens, rows, steps):
    config = TOY | {"tokens": tokens}
    assert (phase_rows(config, 10), phase_steps(config, 10)) == (rows, steps)


def test_published_phases():
    """Base: 4608 rows in every phase (4.72M tokens a step at 1024, 37.7M at 8192), 384 rows at first."""
    phase1 = {
        "tokens": 2300 * B,
        "batch_rows": 4608,
        "batch_warmup_stage_rows": 96,
        "batch_warmup_from_rows": 384,
        "batch_warmup_tokens": 60 * B,
    }
    assert batch_rows(phase1, 0, 1024) == 384
    # 44 stages of 384, 480, ... 4512 rows: 107,712 rows a round, so each stage has 60e9 / 1024 / 107,712 = 544.0 steps.
    first_stage = 60 * B / 1024 * 384 / 107_712
    assert batch_rows(phase1, math.floor(first_stage), 1024) == 384
    assert batch_rows(phase1, math.ceil(first_stage), 1024) == 480
    assert batch_rows(phase1, 58_593_749, 1024) == 4512  # 58,593,750 rows are 60B tokens
    assert batch_rows(phase1, 58_593_750, 1024) == 4608
    # 44 x 544 steps of warm-up, then (2300 - 60)e9 tokens in steps of 4608 x 1024.
    assert phase_steps(phase1, 1024) == pytest.approx(44 * 544 + 2240 * B / (4608 * 1024), abs=44)
    assert 0 <= phase_rows(phase1, 1024) * 1024 - 2300 * B < 4608 * 1024

    decay = {
        "tokens": 100 * B,
        "batch_rows": 4608,
        "batch_warmup_stage_rows": 96,
        "batch_warmup_from_rows": 4608,
        "batch_warmup_tokens": 0,
    }
    assert batch_rows(decay, 0, 8192) == 4608
    assert phase_steps(decay, 8192) == math.ceil(100e9 / 37_748_736) == 2650
    assert phase_rows(decay, 8192) == 2650 * 4608


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_rows": 0}, r"config\.train\.batch_rows is 0"),
        ({"batch_warmup_stage_rows": 0}, r"config\.train\.batch_warmup_stage_rows is 0"),
        ({"batch_warmup_from_rows": 0}, r"config\.train\.batch_warmup_from_rows is 0"),
        (
            {"batch_warmup_from_rows": 10},
            r"config\.train\.batch_warmup_from_rows is 10: .* at most batch_rows \(8\)",
        ),
    ],
)
def test_batches_that_are_none_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        batch_rows(TOY | change, 0, 10)
