"""Small models on disk, as checkpoints and as Hugging Face folders: a base, and models around it."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
from small_tokenizer import write_small_tokenizer

from mmbert_jax.checkpoint import save_params
from mmbert_jax.hf.config import to_hf
from mmbert_jax.hf.names import to_theirs
from mmbert_jax.hf.weights import save_weights
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.model.heads import HeadConfig, init_params

CONFIG = ModelConfig(
    vocab_size=340, hidden_size=64, num_layers=2, num_heads=1, intermediate_size=24
)


MASKED_LM = HeadConfig()


def perturbed(seed: int, amount: float, head: HeadConfig = MASKED_LM) -> dict:
    """Parameters at a distance from those of all other seeds; amount 0 is the base."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: (np.asarray(x) + amount * rng.normal(size=x.shape)).astype(np.float32),
        init_params(CONFIG, 0, head),
    )


def write_checkpoint(
    folder: Path, seed: int, amount: float, head: HeadConfig = MASKED_LM, **config: object
) -> dict:
    """A run folder with one checkpoint, at step `seed`; returns its parameters. `config` is added to its meta's."""
    params = perturbed(seed, amount, head)
    meta = {
        "phase": folder.name,
        "step": seed,
        "tokens": 100 * seed,
        "languages": [folder.name],
        "config": {
            "model": dataclasses.asdict(CONFIG),
            "data": {"row_length": 64 + seed, "corpus": "c"},
            "head": dataclasses.asdict(head),
            **config,
        },
    }
    save_params(folder, params, meta)
    return params


def write_folder(
    folder: Path,
    seed: int,
    amount: float,
    shard_bytes: int = 50_000,
    dtype: str = "float32",
    head: HeadConfig = MASKED_LM,
) -> dict:
    """A Hugging Face folder in shards, with a tokeniser; returns the parameters that were drawn, in float32."""
    params = perturbed(seed, amount, head)
    write_small_tokenizer(folder)
    tensors = {
        name: jax.numpy.asarray(x, dtype) for name, x in to_theirs(params, CONFIG, head).items()
    }
    save_weights(folder, {name: np.asarray(x) for name, x in tensors.items()}, shard_bytes)
    (folder / "config.json").write_text(json.dumps(to_hf(CONFIG, 128, dtype, head)))
    return params
