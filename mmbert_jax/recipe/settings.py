"""What the published training runs of mmBERT share. Each phase's file starts from here and sets what is its own.

Values of the published training configurations, except where a comment says otherwise.
"""

from ml_collections import ConfigDict

from mmbert_jax.errors import UserError
from mmbert_jax.recipe import languages

# hidden size and heads, all that differs between the two models: both have 22 layers and heads of 64.
SIZES = {"small": (384, 6), "base": (768, 12)}
PHASES = ("phase1", "phase2", "decay_english", "decay_110", "decay_all")


def published(size: str, phase: str) -> ConfigDict:
    """Settings of every phase; the fields of mmbert_jax/config.py that are not here have their default.

    Args:
      size: 'small' or 'base', what stands after the colon in `--config configs/phase1.py:small`.
    """
    if size not in SIZES:
        raise UserError(f"there is no model size {size!r}: write configs/FILE.py:small or :base")
    hidden_size, num_heads = SIZES[size]
    return ConfigDict(
        {
            "phase": phase,
            "workdir": run_folder(phase, size),
            "seed": 21,
            "model": {
                "vocab_size": 256_000,
                "hidden_size": hidden_size,
                "num_layers": 22,
                "num_heads": num_heads,
                "intermediate_size": 1152,
                "attention_window": 128,
                "global_every": 3,
                "norm_eps": 1e-5,
                "attention_output_dropout": 0.1,
            },
            # The paper avoids more than five passes over a language.
            "data": {"max_passes": 5.0},
            "mask": {"mask_share": 0.8, "random_share": 0.1},
            "train": {
                "batch_rows": 4608,
                "batch_warmup_from_rows": 4608,
                # Ours: a sixteenth of the vocabulary at a time.
                "loss_chunk": 16_000,
            },
            "optimizer": {
                "peak_lr": 8e-4,
                "weight_decay": 8e-5,
                "b1": 0.9,
                "b2": 0.95,
                "eps": 1e-8,
            },
            "checkpoint": {"keep": 3},
            "eval": {"groups": languages.GROUPS},
        }
    )


def run_folder(phase: str, size: str = "base") -> str:
    """Where a phase of a size is trained unless `--workdir` says otherwise."""
    return f"runs/{phase}" + ("" if size == "base" else f"-{size}")


def command(folder: str) -> str | None:
    """The command that trains the published phase whose run folder this is; None where it is none of theirs."""
    for phase in PHASES:
        for size in SIZES:
            if folder == run_folder(phase, size):
                argument = "" if size == "base" else f":{size}"
                return f"python -m mmbert_jax.train --config configs/{phase}.py{argument}"
    return None


def set_row_length(config: ConfigDict, row_length: int) -> None:
    """Row length and what follows from it: rows a microbatch, steps between checkpoints and evaluations."""
    config.data.row_length = row_length
    # 49,152 tokens a GPU on 8 GPUs, at either row length.
    config.train.microbatch_rows = 8 * 49_152 // row_length
    # Of the published 8 GPUs, whatever a microbatch is here: the steps are the same on any number of devices.
    config.train.batch_warmup_stage_rows = 8 * 49_152 // row_length
    # Ours, about once an hour on 8 GPUs.
    config.checkpoint.every_steps = config.eval.every_steps = 819_200 // row_length


def set_rope_theta(config: ConfigDict, theta: float) -> None:
    """mmBERT turns queries and keys of global and local layers by the same base."""
    config.model.global_rope_theta = config.model.local_rope_theta = theta


def later_phase(size: str, phase: str, after: str) -> ConfigDict:
    """What phase 2 and the three decay variants share: long rows, no warm-up, a lower rate for small.

    Args:
      after: the phase that it starts from.
    """
    config = published(size, phase)
    config.init_from = run_folder(after, size)
    set_row_length(config, 8192)
    set_rope_theta(config, 160_000.0)
    if size == "small":
        config.seed = 12345
        config.optimizer.peak_lr = 4e-4
        config.optimizer.weight_decay = 4e-5
    return config


def decay(size: str, phase: str) -> ConfigDict:
    """What the three decay variants share; they differ in their data alone."""
    config = later_phase(size, phase, after="phase2")
    config.data.temperature = 0.3
    config.mask.ratio = 0.05
    config.train.tokens = 100_000_000_000
    # The paper names 1 - sqrt for both sizes; the published configuration of small decays linearly.
    if size == "small":
        config.optimizer.schedule, config.optimizer.final_lr_fraction = "linear", 0.04
    else:
        config.optimizer.schedule, config.optimizer.final_lr_fraction = "one_minus_sqrt", 0.02
    return config
