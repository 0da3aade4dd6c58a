"""Targets: how many, which ones, and that they depend on nothing but seed and row."""

import functools

import jax
import numpy as np
import pytest

from mmbert_jax.model.masking import mask_tokens, num_targets
from mmbert_jax.model.row_keys import count_rows, in_words, row_keys

V, L = 1000, 512
# Gemma's: five in front, the last of them the mask.
NUM_SPECIAL_IDS, MASK_ID = 5, 4
GEMMA = ((0, NUM_SPECIAL_IDS),)


def rows(count):
    tokens = np.random.default_rng(0).integers(NUM_SPECIAL_IDS, V, (count, L)).astype(np.int32)
    tokens[:, 0] = 2
    tokens[:, -1] = 1
    return tokens


@functools.partial(jax.jit, static_argnames=("ratio", "seed"))
def jitted(first, tokens, ratio, seed):
    numbers = count_rows(first, len(tokens))
    key = jax.random.key(seed)
    return mask_tokens(
        key, numbers, tokens, ratio=ratio, vocabulary=V, reserved=GEMMA, mask_id=MASK_ID
    )


def masked(tokens, first=0, ratio=0.3, seed=0):
    """Of rows that are numbered from `first` on; few rows are compiled as eight."""
    filled = np.pad(tokens, ((0, max(8 - len(tokens), 0)), (0, 0)))
    results = jitted(in_words(first), filled, ratio, seed)
    return (np.asarray(x)[: len(tokens)] for x in results)


@pytest.mark.parametrize(
    ("ratio", "length", "count"), [(0.3, 1024, 307), (0.15, 8192, 1229), (0.05, 8192, 410)]
)
def test_published_ratios_give_a_fixed_count(ratio, length, count):
    assert num_targets(ratio, length) == count


def test_targets_are_distinct_ordinary_tokens_and_labels_are_right():
    tokens = rows(8)
    inputs, positions, labels, weights = masked(tokens)
    for row in range(8):
        targets = positions[row, weights[row] == 1]
        assert len(set(targets)) == len(targets) == round(0.3 * (L - 2))
        assert not {0, L - 1} & set(targets)
        np.testing.assert_array_equal(labels[row], tokens[row, positions[row]])
        others = np.setdiff1d(np.arange(L), targets)
        np.testing.assert_array_equal(inputs[row, others], tokens[row, others])


def test_shares_are_80_10_10():
    tokens = rows(128)
    inputs, positions, labels, weights = masked(tokens)
    became, labels = np.take_along_axis(inputs, positions, 1)[weights == 1], labels[weights == 1]
    n = labels.size  # 19,584 draws: four standard deviations are 0.011 and 0.009
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


@pytest.mark.parametrize(
    "reserved",
    [
        ((990, 995),),  # ModernBERT's place for them: at the end, with ordinary ids behind
        (
            (0, 2),
            (400, 401),
            (600, 650),
            (995, 2000),
        ),  # in front, one alone, a hole, beyond the vocabulary
        (),
    ],
)
def test_special_ids_anywhere_are_neither_chosen_nor_drawn(reserved):
    tokens = np.random.default_rng(0).integers(0, V, (256, L)).astype(np.int32)
    numbers = count_rows(in_words(0), len(tokens))
    given = {"ratio": 0.5, "vocabulary": V, "reserved": reserved, "mask_id": 992}
    mask = jax.jit(functools.partial(mask_tokens, **given))
    inputs, positions, labels, weights = map(np.asarray, mask(jax.random.key(0), numbers, tokens))
    ordinary = np.ones(V, bool)
    for start, stop in reserved:
        ordinary[start:stop] = False
    held = ordinary[tokens].sum(1)
    np.testing.assert_allclose(weights.sum(1), 0.5 * held, atol=0.51)
    became = np.take_along_axis(inputs, positions, 1)[weights == 1]
    labels = labels[weights == 1]
    assert ordinary[labels].all()
    noise = became[(became != 992) & (became != labels)]
    assert ordinary[noise].all()
    # All of them alike: some 6,500 draws of a thousand ids, chi-squared within five standard deviations.
    ids = np.flatnonzero(ordinary & (np.arange(V) != 992))
    expected = len(noise) / len(ids)
    chi = ((np.bincount(noise, minlength=V)[ids] - expected) ** 2 / expected).sum()
    assert abs(chi - len(ids)) < 5 * np.sqrt(2 * len(ids))


def test_a_row_is_masked_alike_in_any_batch_and_differently_in_another_place():
    tokens = np.repeat(rows(1), 6, axis=0)
    together = next(masked(tokens))
    np.testing.assert_array_equal(together[2:4], next(masked(tokens[2:4], first=2)))
    assert len(np.unique(together, axis=0)) == 6


@pytest.mark.parametrize("ratio", [0.3, 0.15, 0.05])
def test_a_row_that_is_not_full_is_masked_no_more_than_others(ratio):
    """Each row of 8192 in two documents and padding; the published ratios."""
    held = np.array([8188, 4096, 2000, 1000, 400, 20])
    tokens = np.zeros((len(held), 8192), np.int32)
    for row, n in zip(tokens, held, strict=True):
        row[: n + 4] = [2, *range(100, 100 + n // 2), 1, 2, *range(100 + n // 2, 100 + n), 1]
    inputs, positions, labels, weights = masked(tokens, ratio=ratio)
    assert (np.abs(weights.sum(1) - ratio * held) <= 0.5).all()
    assert ((inputs != tokens).sum(1) <= weights.sum(1)).all()
    assert (labels[weights == 1] >= 100).all()
    assert (np.take_along_axis(tokens, positions, 1) == labels).all()


def test_a_row_with_any_ordinary_token_has_a_target():
    """Else documents of a few tokens, alone in their row, would never be learned from or evaluated."""
    held = np.arange(12)
    tokens = np.where(np.arange(L) < held[:, None], 7, 0).astype(np.int32)
    inputs, _, _, weights = masked(tokens, ratio=0.05)
    assert weights.sum(1).tolist() == [0] + [1] * 11
    np.testing.assert_array_equal(inputs[0], tokens[0])


# --- numbers of rows ---

EDGE = 2**32


@pytest.mark.parametrize("first", [EDGE - 3, EDGE - 1, 5 * EDGE - 2])
def test_rows_are_counted_beyond_32_bits(first):
    """Wherever a batch starts, or a microbatch in it, its rows have their own numbers."""
    expected = [in_words(first + i) for i in range(8)]
    np.testing.assert_array_equal(count_rows(in_words(first), 8), expected)
    np.testing.assert_array_equal(count_rows(in_words(first - 4), 8, 4), expected)
    tokens = np.repeat(rows(1), 8, axis=0)
    together = next(masked(tokens, first))
    for start in (1, 4):
        ours = next(masked(tokens[: 8 - start], first + start))
        np.testing.assert_array_equal(ours, together[start:])


def test_rows_whose_low_words_are_equal_have_keys_of_their_own():
    tokens = rows(1)
    drawn = [next(masked(tokens, row)) for row in (5, EDGE + 5, 5 * EDGE)]
    assert len(np.unique(np.concatenate(drawn), axis=0)) == 3
    keys = row_keys(jax.random.key(0), np.array([[0, 5], [5, 0], [1, 5], [5, 1]], np.uint32))
    assert len(np.unique(jax.random.key_data(keys), axis=0)) == 4
