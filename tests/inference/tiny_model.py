"""A model of four small layers, and texts for it."""

from mmbert_jax.model.config import ModelConfig

CONFIG = ModelConfig(
    vocab_size=332,
    hidden_size=64,
    num_layers=4,
    num_heads=1,
    intermediate_size=48,
    attention_window=32,
    local_rope_theta=10_000.0,
)
ROW_LENGTH = 256
# Three tokens to three hundred; some share a row, some need one of their own.
TEXTS = [
    "the cat and the dog",
    "",
    "is the end " * 12,
    "東京 é",
    "a long way from here and " * 9,
    "a",
    "the rest is not " * 24,
    "and another " * 3,
]
