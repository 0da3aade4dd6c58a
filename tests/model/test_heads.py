"""Task heads on packed rows: a text's classes depend on its own tokens alone. Values: see tests/hf/test_versions.py."""

import jax.numpy as jnp
import numpy as np
import pytest

from mmbert_jax.model.config import ModelConfig
from mmbert_jax.model.heads import (
    POOLINGS,
    SEQUENCES,
    HeadConfig,
    init_params,
    outputs,
    pool,
)

CONFIG = ModelConfig(
    vocab_size=61, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=24, global_every=2
)
LENGTHS = ((7, 1, 20), (30,))


def packed_rows(row_length: int = 40) -> np.ndarray:
    """segment_ids [B, L] of rows with texts of `LENGTHS`, padding behind."""
    rows = np.zeros((len(LENGTHS), row_length), np.int32)
    for row, lengths in zip(rows, LENGTHS, strict=True):
        row[: sum(lengths)] = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    return rows


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pool(pooling):
    """Against a loop in float64; a segment that a row does not have gives zeros."""
    segment_ids = packed_rows()
    hidden = np.random.default_rng(0).normal(size=(*segment_ids.shape, 8)).astype(np.float32)
    expected = np.zeros((len(LENGTHS), 4, 8))
    for i, row in enumerate(segment_ids):
        for number in range(1, row.max() + 1):
            vectors = hidden[i, row == number].astype(np.float64)
            expected[i, number - 1] = vectors.mean(axis=0) if pooling == "mean" else vectors[0]
    found = pool(jnp.asarray(hidden), jnp.asarray(segment_ids), 4, pooling)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_classes_of_packed_texts_are_those_of_each_alone(pooling):
    head = HeadConfig(SEQUENCES, labels=("a", "b", "c"), pooling=pooling)
    params = init_params(CONFIG, 0, head)
    segment_ids = packed_rows()
    tokens = np.random.default_rng(1).integers(5, 61, segment_ids.shape).astype(np.int32)
    positions = np.zeros_like(tokens)
    for row, lengths in zip(positions, LENGTHS, strict=True):
        row[: sum(lengths)] = np.concatenate([np.arange(n) for n in lengths])
    together = outputs(params, CONFIG, tokens, segment_ids, positions, head, 3)
    assert together.shape == (2, 3, 3)
    alone_tokens, alone_ids = np.zeros((4, 40), np.int32), np.zeros((4, 40), np.int32)
    texts = [
        (i, number) for i, lengths in enumerate(LENGTHS) for number in range(1, len(lengths) + 1)
    ]
    for k, (i, number) in enumerate(texts):
        text = tokens[i, segment_ids[i] == number]
        alone_tokens[k, : len(text)], alone_ids[k, : len(text)] = text, 1
    row = (alone_tokens, alone_ids, np.broadcast_to(np.arange(40, dtype=np.int32), (4, 40)))
    alone = outputs(params, CONFIG, *row, head)[:, 0]
    for k, (i, number) in enumerate(texts):
        np.testing.assert_allclose(together[i, number - 1], alone[k], rtol=0, atol=1e-5)
    assert np.abs(alone[0] - alone[1]).max() > 1e-3


def test_a_checkpoint_without_a_head_is_a_masked_lm():
    assert HeadConfig.from_config({"model": {}}) == HeadConfig()
    stored = {"head": {"kind": SEQUENCES, "labels": ["a", "b"], "pooling": "cls"}}
    assert HeadConfig.from_config(stored) == HeadConfig(SEQUENCES, ("a", "b"), "cls")
