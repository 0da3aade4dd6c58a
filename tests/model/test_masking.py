"""Targets: how many, which ones, and that they depend on nothing but seed and row."""

import jax
import numpy as np
import pytest

from mmbert_jax.model.masking import MASK_ID, NUM_SPECIAL_IDS, mask_tokens, num_targets

V, L = 1000, 512


def rows(count):
    tokens = np.random.default_rng(0).integers(NUM_SPECIAL_IDS, V, (count, L)).astype(np.int32)
    tokens[:, 0] = 2
    tokens[:, -1] = 1
    return tokens


def masked(tokens, first=0, ratio=0.3, seed=0):
    row_ids = np.arange(first, first + len(tokens), dtype=np.uint32)
    return mask_tokens(
        jax.random.key(seed), row_ids, tokens, num_targets=num_targets(ratio, L), vocab_size=V
    )


@pytest.mark.parametrize(
    ("ratio", "length", "count"), [(0.3, 1024, 307), (0.15, 8192, 1229), (0.05, 8192, 410)]
)
def test_published_ratios_give_a_fixed_count(ratio, length, count):
    assert num_targets(ratio, length) == count


def test_targets_are_distinct_ordinary_tokens_and_labels_are_right():
    tokens = rows(8)
    inputs, positions, labels, weights = map(np.asarray, masked(tokens))
    assert (weights == 1).all()
    for row in range(8):
        assert len(set(positions[row])) == num_targets(0.3, L)
        assert not {0, L - 1} & set(positions[row])
        np.testing.assert_array_equal(labels[row], tokens[row, positions[row]])
        others = np.setdiff1d(np.arange(L), positions[row])
        np.testing.assert_array_equal(inputs[row, others], tokens[row, others])


def test_shares_are_80_10_10():
    tokens = rows(128)
    inputs, positions, labels, _ = map(np.asarray, masked(tokens))
    became = np.take_along_axis(inputs, positions, 1)
    n = labels.size  # 19,712 draws: four standard deviations are 0.011 and 0.009
    assert abs((became == MASK_ID).mean() - 0.8) < 4 * np.sqrt(0.16 / n)
    # A random token is the label itself once in a thousand times.
    assert abs((became == labels).mean() - 0.1 - 0.1 / (V - NUM_SPECIAL_IDS)) < 4 * np.sqrt(
        0.09 / n
    )
    noise = became[(became != MASK_ID) & (became != labels)]
    assert noise.min() >= NUM_SPECIAL_IDS
    assert noise.max() < V
    assert (
        len(np.unique(noise)) > 0.8 * V
    )  # the whole vocabulary, not what happens to be in the batch


def test_a_row_is_masked_alike_in_any_batch_and_differently_in_another_place():
    tokens = np.repeat(rows(1), 6, axis=0)
    together = np.asarray(masked(tokens)[0])
    np.testing.assert_array_equal(together[2:4], np.asarray(masked(tokens[2:4], first=2)[0]))
    assert len(np.unique(together, axis=0)) == 6


def test_short_rows_leave_slots_without_weight():
    tokens = np.zeros((1, L), np.int32)
    tokens[0, :10] = [2, *range(100, 108), 1]
    inputs, _, labels, weights = map(np.asarray, masked(tokens))
    assert weights.sum() == 8
    assert set(labels[weights == 1]) == set(range(100, 108))
    np.testing.assert_array_equal(inputs[0, 10:], 0)
