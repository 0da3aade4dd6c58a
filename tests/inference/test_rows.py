"""Every text in one row, little padding, few shapes."""

import numpy as np
import pytest
from tiny_model import CONFIG

from mmbert_jax.inference.rows import Batch, batch_arrays, plan
from mmbert_jax.model.config import ModelConfig

BASE = ModelConfig()
RNG = np.random.default_rng(0)
LENGTHS = {
    "normal": np.clip(RNG.normal(256, 64, 1000), 16, 500).astype(int),
    "of every kind": np.clip(RNG.lognormal(5, 1.2, 2000), 2, 8192).astype(int),
    "a little above a row length": np.full(200, 530),
    "one": np.array([7]),
    "longer than any row length": np.array([9000, 3, 20000]),
}


def tokens(batches):
    return sum(batch.row_length * len(batch.rows) for batch in batches)


@pytest.mark.parametrize("batch_tokens", [1, 2048, 65536])
@pytest.mark.parametrize("kind", LENGTHS)
def test_every_text_stands_in_one_row_that_holds_it(kind, batch_tokens):
    lengths = LENGTHS[kind]
    batches = plan(lengths, BASE, batch_tokens)
    placed = [text for batch in batches for row in batch.rows for text in row]
    assert sorted(placed) == list(range(len(lengths)))
    for batch in batches:
        assert all(lengths[row].sum() <= batch.row_length for row in batch.rows if row)
        assert len(batch.rows) in (1, max(1, batch_tokens // batch.row_length))


@pytest.mark.parametrize(("kind", "share"), [("normal", 0.96), ("of every kind", 0.98)])
def test_little_is_padding(kind, share):
    lengths = LENGTHS[kind]
    assert lengths.sum() / tokens(plan(lengths, BASE, 2048)) > share


def test_longer_rows_where_they_waste_less():
    """Texts of 530 tokens leave 48% of rows of 1024 empty, and 22% of rows of 2048."""
    batches = plan(LENGTHS["a little above a row length"], BASE, 2048)
    assert {batch.row_length for batch in batches} == {2048}


def test_a_short_text_takes_a_short_row():
    assert plan([7], BASE, 65536) == [Batch(128, [[0]])]


def test_shapes_are_few_whatever_the_lengths():
    shapes = set()
    for _ in range(15):
        lengths = RNG.integers(2, RNG.integers(3, 8193), RNG.integers(1, 200))
        shapes |= {(batch.row_length, len(batch.rows)) for batch in plan(lengths, BASE, 16384)}
    assert len(shapes) <= 12


def test_arrays_of_a_batch():
    sequences = [[2, 9, 1], [2, 1], [2, 7, 8, 1]]
    arrays = batch_arrays(Batch(8, [[2, 0], [], [1]]), sequences, pad=0)
    assert arrays["tokens"].tolist() == [[2, 7, 8, 1, 2, 9, 1, 0], [0] * 8, [2, 1] + [0] * 6]
    assert arrays["segment_ids"].tolist() == [[1, 1, 1, 1, 2, 2, 2, 0], [0] * 8, [1, 1] + [0] * 6]
    assert arrays["positions"].tolist() == [[0, 1, 2, 3, 0, 1, 2, 0], [0] * 8, [0, 1] + [0] * 6]
    assert {x.dtype for x in arrays.values()} == {np.dtype(np.int32)}


def test_no_texts():
    assert plan([], CONFIG) == []
