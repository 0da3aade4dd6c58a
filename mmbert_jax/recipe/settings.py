"""What the published training runs of mmBERT share. Each phase's file starts from here and sets what is its own.

Values of the published training configurations, except where a comment says otherwise.
"""

from ml_collections import ConfigDict

from mmbert_jax.errors import UserError
from mmbert_jax.recipe import languages

# hidden size and heads, all that differs between the two models: both have 22 layers and heads of 64.
SIZES = {"small": (384, 6), "base": (768, 12)}


def published(size: str) -> ConfigDict:
    """Settings of every phase. The fields that each phase sets itself hold placeholders that no config check accepts.

    Args:
      size: 'small' or 'base', what stands after the colon in `--config configs/phase1.py:small`.
    """
    if size not in SIZES:
        raise UserError(f"there is no model size {size!r}: write configs/FILE.py:small or :base")
    hidden_size, num_heads = SIZES[size]
    return ConfigDict(
        {
            "phase": "",
            "seed": 21,
            "init_from": "",
            "dtype": "bfloat16",
            "log_every_steps": 10,
            "model": {
                "vocab_size": 256_000,
                "hidden_size": hidden_size,
                "num_layers": 22,
                "num_heads": num_heads,
                "intermediate_size": 1152,
                "attention_window": 128,
                "global_every": 3,
                "global_rope_theta": 0.0,
                "local_rope_theta": 0.0,
                "norm_eps": 1e-5,
                "attention_output_dropout": 0.1,
            },
            "data": {
                "corpus": "",
                "row_length": 0,
                "temperature": 0.0,
                # The paper avoids more than five passes over a language.
                "max_passes": 5.0,
                "loader_workers": 4,
                "prefetch": 4,
                "stall_minutes": 1.5,
                "sources": {},
            },
            "mask": {"ratio": 0.0, "mask_share": 0.8, "random_share": 0.1},
            "train": {
                "tokens": 0,
                "batch_rows": 4608,
                # 49,152 tokens a GPU on 8 GPUs, at either row length.
                "microbatch_rows": 0,
                "batch_warmup_from_rows": 4608,
                "batch_warmup_tokens": 0,
                # Ours: a sixteenth of the vocabulary at a time.
                "loss_chunk": 16_000,
                "max_skipped_steps": 10,
                "stall_minutes": 30.0,
            },
            "optimizer": {
                "peak_lr": 8e-4,
                "weight_decay": 8e-5,
                "b1": 0.9,
                "b2": 0.95,
                "eps": 1e-8,
                "warmup_tokens": 0,
                "schedule": "stable",
                "final_lr_fraction": 1.0,
            },
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
            # Ours, about once an hour on 8 GPUs, like the evaluation.
            "checkpoint": {
                "every_steps": 0,
                "every_minutes": 0.0,
                "keep": 3,
                "stall_minutes": 60.0,
            },
            "eval": {
                "every_steps": 0,
                "mask_ratio": 0.15,
                "rows_per_language": 2,
                "batch_rows": 0,
                "groups": languages.GROUPS,
            },
        }
    )


def set_row_length(config: ConfigDict, row_length: int) -> None:
    """Row length and what follows from it: rows a microbatch, steps between checkpoints and evaluations."""
    config.data.row_length = row_length
    config.train.microbatch_rows = config.eval.batch_rows = 8 * 49_152 // row_length
    config.checkpoint.every_steps = config.eval.every_steps = 819_200 // row_length


def set_rope_theta(config: ConfigDict, theta: float) -> None:
    """mmBERT turns queries and keys of global and local layers by the same base."""
    config.model.global_rope_theta = config.model.local_rope_theta = theta


def later_phase(size: str) -> ConfigDict:
    """What phase 2 and the three decay variants share: long rows, no warm-up, a lower rate for small."""
    config = published(size)
    set_row_length(config, 8192)
    set_rope_theta(config, 160_000.0)
    if size == "small":
        config.seed = 12345
        config.optimizer.peak_lr = 4e-4
        config.optimizer.weight_decay = 4e-5
    return config


def decay(size: str) -> ConfigDict:
    """What the three decay variants share; they differ in their data alone."""
    config = later_phase(size)
    config.data.temperature = 0.3
    config.mask.ratio = 0.05
    config.train.tokens = 100_000_000_000
    # The paper names 1 - sqrt for both sizes; the published configuration of small decays linearly.
    if size == "small":
        config.optimizer.schedule, config.optimizer.final_lr_fraction = "linear", 0.04
    else:
        config.optimizer.schedule, config.optimizer.final_lr_fraction = "one_minus_sqrt", 0.02
    return config
