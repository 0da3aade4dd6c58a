"""Random ModernBERTs made by `transformers`: what the parity tests compare with."""

from pathlib import Path

import numpy as np
import torch
from transformers import ModernBertConfig, ModernBertForMaskedLM

# Nothing here is a default, equal to something else or round, so that no mistake can hide behind a coincidence.
SHAPES = {
    "like_mmbert": {
        "vocab_size": 499,
        "hidden_size": 128,
        "num_attention_heads": 2,
        "num_hidden_layers": 5,
        "intermediate_size": 88,
        "global_rope_theta": 23_000.0,
        "local_rope_theta": 700.0,
    },
    "another_window": {
        "vocab_size": 301,
        "hidden_size": 96,
        "num_attention_heads": 3,
        "num_hidden_layers": 4,
        "intermediate_size": 56,
        "local_attention": 34,
        "global_attn_every_n_layers": 2,
        "global_rope_theta": 90.0,
        "local_rope_theta": 1_100_000.0,
        "norm_eps": 3e-3,
    },
}


def random_model(shape: str, seed: int = 0, attention: str = "eager") -> ModernBertForMaskedLM:
    """A model in which every tensor matters: norm weights away from 1, a bias away from 0, attention not uniform."""
    special_ids = {
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        "cls_token_id": 2,
        "sep_token_id": 1,
    }
    config = ModernBertConfig(**SHAPES[shape], **special_ids, attn_implementation=attention)
    return randomise(ModernBertForMaskedLM(config), seed)


def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The same, of a model with any head."""
    model.eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.named_parameters():
        if "norm" in name:
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.ndim == 1:
            tensor.normal_(0, 0.5, generator=generator)
        else:  # keeps the scale of its input: scores of a few units, so that attention picks some keys and not others
            tensor.normal_(0, 1 / tensor.shape[1] ** 0.5, generator=generator)
    return model


def save(model: ModernBertForMaskedLM, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def documents(lengths: list[int], vocab_size: int, seed: int = 1) -> list[np.ndarray]:
    """Token ids int32 of each document, <bos> first."""
    rng = np.random.default_rng(seed)
    return [
        np.concatenate([[2], rng.integers(5, vocab_size, n - 1)]).astype(np.int32) for n in lengths
    ]


def logits_alone(model: ModernBertForMaskedLM, document: np.ndarray) -> np.ndarray:
    """Logits [n, V] of one document, without padding or packing."""
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(document)[None].long()).logits[0].numpy()
