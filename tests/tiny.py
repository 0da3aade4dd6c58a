"""A training config small enough that a test's step takes milliseconds, and rows for it."""

import numpy as np
from ml_collections import ConfigDict

from mmbert_jax.config import complete


def tiny_config(**overrides) -> ConfigDict:
    """A global and a local layer of 2 x 16, vocabulary 512, rows of 64; overrides are named `data__row_length=128`."""
    config = ConfigDict(
        {
            "seed": 1,
            "phase": "tiny",
            "dtype": "float32",
            "log_every_steps": 1,
            "model": {
                "vocab_size": 512,
                "hidden_size": 32,
                "num_layers": 2,
                "num_heads": 2,
                "intermediate_size": 48,
                "attention_window": 16,
                "global_every": 2,
                "global_rope_theta": 160_000.0,
                "local_rope_theta": 10_000.0,
            },
            "data": {
                "row_length": 64,
                "temperature": 0.5,
                "max_passes": 100.0,
                "loader_workers": 0,
                "prefetch": 2,
                "sources": {"text": {"share": 1.0, "languages": ()}},
            },
            "mask": {"ratio": 0.3},
            "train": {
                "tokens": 64 * 16 * 12,
                "batch_rows": 16,
                "microbatch_rows": 8,
                "batch_warmup_from_rows": 8,
                "batch_warmup_stage_rows": 8,
                "batch_warmup_tokens": 64 * 8 * 4,
                "loss_chunk": 128,
            },
            "optimizer": {
                "peak_lr": 2e-3,
                "weight_decay": 2e-5,
                "warmup_tokens": 64 * 8 * 2,
            },
            "mesh": {"data": 1, "fsdp": 1, "tensor": 1},
            "checkpoint": {"every_steps": 4},
            "eval": {},
        }
    )
    config.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in overrides.items()}
    )
    return complete(config)


def random_rows(microbatches, rows, length=64):
    """Packed rows of two documents and some padding, [microbatches, rows, length]."""
    rng = np.random.default_rng(0)
    shape = (microbatches, rows, length)
    lengths = [40, length - 44, 4]
    segment_ids = np.repeat([1, 2, 0], lengths)
    positions = np.concatenate([np.arange(n) for n in lengths]) * (segment_ids > 0)
    tokens = rng.integers(5, 512, shape) * (segment_ids > 0)
    spread = {"tokens": tokens, "segment_ids": segment_ids, "positions": positions}
    return {name: np.broadcast_to(x, shape).astype(np.int32) for name, x in spread.items()}
