"""Learning rate and batch size over a phase: pure functions of the count of tokens or rows, computed on the host.

Nothing here has state, so a resumed run needs no more than its row counter to go on as if it had never stopped.
"""

import bisect
import math
from collections.abc import Mapping

from mmbert_jax.errors import UserError

SCHEDULES = ("stable", "one_minus_sqrt", "linear")


def learning_rate(optimizer_config: Mapping, tokens: int, phase_tokens: int) -> float:
    """The learning rate of the step that starts after `tokens` tokens of a phase of `phase_tokens`.

    A linear warm-up over `warmup_tokens` (the very first step has rate 0), then by `schedule`, with x the part of the
    phase after the warm-up that is done and a = `final_lr_fraction`:
      stable:          peak
      one_minus_sqrt:  peak * (a + (1 - a) * (1 - sqrt(x)))
      linear:          peak * (a + (1 - a) * (1 - x))
    """
    peak, warmup = optimizer_config["peak_lr"], optimizer_config["warmup_tokens"]
    schedule, final = optimizer_config["schedule"], optimizer_config["final_lr_fraction"]
    if tokens < warmup:
        return peak * tokens / warmup
    if schedule == "stable":
        return peak
    if schedule not in SCHEDULES:
        raise UserError(
            f"config.optimizer.schedule is {schedule!r}: use one of {', '.join(map(repr, SCHEDULES))}"
        )
    # A warm-up as long as the phase leaves nothing to decay over.
    done = min((tokens - warmup) / max(phase_tokens - warmup, 1), 1.0)
    return peak * (
        final + (1 - final) * (1 - (math.sqrt(done) if schedule == "one_minus_sqrt" else done))
    )


def batch_rows(train_config: Mapping, row: int, row_length: int) -> int:
    """Rows of the step that starts at global row `row`, whatever the microbatches that it is computed in.

    The warm-up takes `batch_warmup_tokens` and grows the batch from `batch_warmup_from_rows` to below `batch_rows`,
    `batch_warmup_stage_rows` at a time. As in ModernBERT's trainer (`BatchSizeWarmupScheduler`, which goes up by one
    row per GPU) all stages have equally many steps: one of twice the batch lasts twice the tokens. A step belongs to
    the stage in which it starts.
    """
    first, full, more = _batch_sizes(train_config)
    warmup = train_config["batch_warmup_tokens"]
    if row * row_length >= warmup or first == full:
        return full
    stages = -(-(full - first) // more)

    def rows_before(stage: int) -> int:  # of one step of each of the stages before
        return stage * first + more * stage * (stage - 1) // 2

    # The last stage that starts at or before this row; whole numbers throughout, so no rounding.
    tokens_done = row * row_length * rows_before(stages)
    stage = (
        bisect.bisect_right(range(stages), tokens_done, key=lambda k: warmup * rows_before(k)) - 1
    )
    return first + stage * more


def phase_rows(train_config: Mapping, row_length: int) -> int:
    """Rows of a phase: as many whole steps as it takes to reach `train.tokens`."""
    return _phase(train_config, row_length)[0]


def mixture_rows(config: Mapping) -> int:
    """Rows of a phase of `data.mixture_tokens` tokens, by which `data.max_passes` is reckoned."""
    train_config = {**config["train"], "tokens": config["data"]["mixture_tokens"]}
    return phase_rows(train_config, config["data"]["row_length"])


def phase_steps(train_config: Mapping, row_length: int) -> int:
    """Optimiser steps of a phase."""
    return _phase(train_config, row_length)[1]


def _phase(train_config: Mapping, row_length: int) -> tuple[int, int]:
    """(rows, steps) of a phase; walks through the batch-size warm-up and computes the rest."""
    tokens = train_config["tokens"]
    full = train_config["batch_rows"]
    warmup_tokens = min(train_config["batch_warmup_tokens"], tokens)
    row = steps = 0
    while row * row_length < warmup_tokens:
        row += batch_rows(train_config, row, row_length)
        steps += 1
    rest = max(-((row * row_length - tokens) // (row_length * full)), 0)  # rounded up
    return row + rest * full, steps + rest


def _batch_sizes(train_config: Mapping) -> tuple[int, int, int]:
    """(rows of the first stage, of a full batch, from one stage to the next), checked."""
    full, more = train_config["batch_rows"], train_config["batch_warmup_stage_rows"]
    first = train_config["batch_warmup_from_rows"] if train_config["batch_warmup_tokens"] else full
    for name, rows in (("batch_rows", full), ("batch_warmup_stage_rows", more)):
        if rows <= 0:
            raise UserError(f"config.train.{name} is {rows}: make it 1 or more")
    if not 0 < first <= full:
        raise UserError(
            f"config.train.batch_warmup_from_rows is {first}: make it above 0 and at most batch_rows ({full})"
        )
    return first, full, more
