"""FLOPs, against the counts that are published or written out by hand."""

import numpy as np
import pytest
from tiny import tiny_config

from mmbert_jax.flops import forward_flops_per_token, segments, step_flops_per_token
from mmbert_jax.model.config import ModelConfig


def test_dense_layers_are_two_flops_a_parameter_and_token():
    """Base has 111,178,240 parameters besides its token embedding; the norms and the head's are not in the layers."""
    flops = forward_flops_per_token(ModelConfig(), 0.3, segments(1024, 1024))
    # Of the embedding, of 21 and 22 sublayers, at the end; then the head's dense layer, norm and bias.
    norms = 45 * 768
    layers = 111_178_240 - norms - (768 * 768 + 768 + 256_000)
    assert flops["dense layers"] == 2 * layers
    assert flops["head"] == pytest.approx(0.3 * 2 * (768 * 768 + 768 * 256_000))


def test_attention_counts_the_keys_that_are_seen():
    """One global and one local layer (8 keys to each side) on rows of 64 in two documents of 32, pair by pair."""
    config = ModelConfig.from_config(tiny_config().model)
    i = np.arange(64)
    together = (i // 32)[:, None] == (i // 32)[None]
    near = together & (abs(i[:, None] - i[None]) <= 8)
    flops = forward_flops_per_token(config, 0.3, segments(64, 32))
    assert flops["attention"] == pytest.approx(4 * 32 * (together.sum() + near.sum()) / 64)


def test_a_step_of_base_has_the_flops_of_the_plan():
    """1109 MFLOP a token in rows of 1024 with 30% masked, 129 keys a local query at the edges too."""
    flops = step_flops_per_token(ModelConfig(), 0.3, segments(1024, 1024))
    assert flops == pytest.approx(1109e6, rel=3e-3)
