"""A training config small enough that a test's step takes milliseconds."""

from ml_collections import ConfigDict


def tiny_config(**overrides) -> ConfigDict:
    """A global and a local layer of 2 x 16, vocabulary 512, rows of 64; overrides are named `data__row_length=128`."""
    config = ConfigDict(
        {
            "seed": 1,
            "phase": "tiny",
            "init_from": "",
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
                "norm_eps": 1e-5,
                "attention_output_dropout": 0.1,
            },
            "data": {
                "corpus": "",
                "row_length": 64,
                "temperature": 0.5,
                "max_passes": 100.0,
                "loader_workers": 0,
                "prefetch": 2,
                "stall_minutes": 1.0,
                "sources": {"text": {"share": 1.0, "languages": ()}},
            },
            "mask": {"ratio": 0.3, "mask_share": 0.8, "random_share": 0.1},
            "train": {
                "tokens": 64 * 16 * 12,
                "batch_rows": 16,
                "microbatch_rows": 8,
                "batch_warmup_from_rows": 8,
                "batch_warmup_tokens": 64 * 8 * 4,
                "loss_chunk": 128,
                "max_skipped_steps": 10,
                "stall_minutes": 5.0,
            },
            "optimizer": {
                "peak_lr": 2e-3,
                "weight_decay": 2e-5,
                "b1": 0.9,
                "b2": 0.95,
                "eps": 1e-8,
                "warmup_tokens": 64 * 8 * 2,
                "schedule": "stable",
                "final_lr_fraction": 1.0,
            },
            "mesh": {"data": 1, "fsdp": 1, "tensor": 1},
            "checkpoint": {"every_steps": 4, "every_minutes": 0.0, "keep": 3, "stall_minutes": 5.0},
            "eval": {
                "every_steps": 0,
                "mask_ratio": 0.15,
                "rows_per_language": 2,
                "batch_rows": 8,
                "groups": {},
            },
        }
    )
    config.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in overrides.items()}
    )
    return config
