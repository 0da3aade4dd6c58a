"""FLOPs of a training step, counted from the model's shape.

Forward, a token, for L layers, hidden size D, GLU size F, heads of size K:

    dense layers   2 L (4 D^2 + 3 D F)
    attention      4 H K x (mean number of keys that a query sees), summed over global and local layers
    head           2 (D^2 + D V) x (share of masked tokens)

and three times that for the step, since the backward pass has two products for each of the forward pass. Recomputed
logits of the loss are not counted: model FLOPs, not those of the hardware. The share of a device's peak that their
rate makes is the MFU.
"""

import jax.numpy as jnp
import numpy as np

from mmbert_jax.kernels.ranges import ranges
from mmbert_jax.model.config import ModelConfig


def forward_flops_per_token(
    config: ModelConfig, masked: float, segment_ids: np.ndarray
) -> dict[str, float]:
    """FLOPs of a token's forward pass, by part.

    Args:
      masked: share of the tokens that are targets.
      segment_ids: [B, L] of rows like those that are trained on; they decide how many keys a query sees. For a plan
        without data see `segments`.
    """
    d, f = config.hidden_size, config.intermediate_size
    global_layers = sum(map(config.is_global, range(config.num_layers)))
    keys = global_layers * _mean_keys(segment_ids, None)
    keys += (config.num_layers - global_layers) * _mean_keys(
        segment_ids, config.attention_window // 2
    )
    return {
        "dense layers": 2 * config.num_layers * (4 * d * d + 3 * d * f),
        "attention": 4 * d * keys,
        "head": 2 * (d * d + d * config.vocab_size) * masked,
    }


def step_flops_per_token(config: ModelConfig, masked: float, segment_ids: np.ndarray) -> float:
    """FLOPs of a token in a training step: forward and backward. Arguments as above."""
    return 3 * sum(forward_flops_per_token(config, masked, segment_ids).values())


def segments(row_length: int, document: int) -> np.ndarray:
    """`segment_ids`, int32 [1, L], of a row of documents of one length; the last one is cut off at the row's end."""
    return (np.arange(row_length, dtype=np.int32) // document + 1)[None]


def _mean_keys(segment_ids: np.ndarray, window: int | None) -> float:
    r = ranges(jnp.asarray(segment_ids), window)
    return float((r.hi - r.lo).mean())
