"""The shape of a model: what has to be known to build it, and nothing about how it is trained."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """ModernBERT's architecture. Defaults are mmBERT base after phase 2.

    Attributes:
      attention_window: keys that a local layer sees, itself not counted: 128 means |i - j| <= 64.
      global_every: layers whose index is a multiple of this attend globally, the rest locally.
      attention_output_dropout: drop probability after the attention's output projection, in training only.
    """

    vocab_size: int = 256_000
    hidden_size: int = 768
    num_layers: int = 22
    num_heads: int = 12
    intermediate_size: int = 1152
    attention_window: int = 128
    global_every: int = 3
    global_rope_theta: float = 160_000.0
    local_rope_theta: float = 160_000.0
    norm_eps: float = 1e-5
    attention_output_dropout: float = 0.1

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    def is_global(self, layer: int) -> bool:
        return layer % self.global_every == 0

    @classmethod
    def from_config(cls, config: Mapping) -> "ModelConfig":
        """From `config.model`; fields that this class does not have are refused by `mmbert_jax.config`."""
        return cls(**{field.name: config[field.name] for field in dataclasses.fields(cls)})
