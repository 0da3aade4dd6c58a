"""Packing: nothing lost, cut or moved that need not be; rows as full as any simpler method makes them."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmbert_jax.data.packing import best_fit, cut, piece_bounds
from mmbert_jax.data.special_ids import SpecialIds

BOS, EOS = 4, 3
SPECIAL = SpecialIds(pad=0, eos=EOS, bos=BOS, unk=None, mask=1)


def first_fit_decreasing(lengths, row_length):
    """The number of rows that the textbook's method needs."""
    rooms = []
    for length in sorted(lengths, reverse=True):
        for i, room in enumerate(rooms):
            if room >= length:
                rooms[i] -= length
                break
        else:
            rooms.append(row_length - length)
    return len(rooms)


def fewest_rows(lengths, row_length):
    """The optimum, by trying every row for every piece."""

    def place(rest, rooms, best):
        if len(rooms) >= best:
            return best
        if not rest:
            return len(rooms)
        for i, room in enumerate(rooms):
            # Rows with the same room are alike.
            if room >= rest[0] and room not in rooms[:i]:
                left = (*rooms[:i], room - rest[0], *rooms[i + 1 :])
                best = place(rest[1:], left, best)
        return place(rest[1:], (*rooms, row_length - rest[0]), best)

    return place(sorted(lengths, reverse=True), (), len(lengths) + 1)


# --- cutting ---


@given(
    documents=st.lists(st.lists(st.integers(5, 2**32 - 1), max_size=70), max_size=8),
    row_length=st.integers(2, 24),
)
def test_pieces_hold_every_token_once_and_in_order(documents, row_length):
    for tokens in documents:
        pieces = cut(tokens, row_length, SPECIAL)
        assert all(2 <= len(piece) <= row_length for piece in pieces)
        assert all(len(piece) == row_length for piece in pieces[:-1])  # cut only where it must be
        assert all(piece[0] == BOS and piece.dtype == np.uint32 for piece in pieces)
        assert [t for piece in pieces for t in piece[1:].tolist()] == [*tokens, EOS]


@given(
    documents=st.lists(st.lists(st.integers(5, 99), max_size=70), min_size=1, max_size=8),
    row_length=st.integers(2, 24),
)
def test_bounds_of_many_documents_are_those_of_each(documents, row_length):
    content = np.concatenate([[*tokens, EOS] for tokens in documents])
    lengths = np.array([len(tokens) for tokens in documents])
    document, start, stop = piece_bounds(lengths, row_length)
    for i, tokens in enumerate(documents):
        ours = [
            [BOS, *content[a:b]] for d, a, b in zip(document, start, stop, strict=True) if d == i
        ]
        assert ours == [piece.tolist() for piece in cut(tokens, row_length, SPECIAL)]


@pytest.mark.parametrize(("tokens", "pieces"), [(6, 1), (7, 2), (13, 2), (14, 3), (0, 1)])
def test_a_document_is_cut_where_bos_and_eos_no_longer_fit(tokens, pieces):
    # A row of 8 holds <bos> and 7 tokens, of which one is the document's <eos>.
    assert len(cut([9] * tokens, 8, SPECIAL)) == pieces


def test_a_row_needs_room_for_a_token():
    with pytest.raises(ValueError, match="cannot hold <bos> and a token"):
        cut([5, 6], 1, SPECIAL)


# --- packing ---


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(40, 60))
def test_every_piece_is_in_one_row_and_no_row_overflows(lengths, row_length):
    rows = best_fit(lengths, row_length)
    assert sorted(itertools.chain.from_iterable(rows)) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in row) <= row_length for row in rows)


@given(
    documents=st.lists(st.integers(0, 100), max_size=30).map(
        lambda sizes: [[1000 * i + j for j in range(n)] for i, n in enumerate(sizes, 1)]
    ),
    row_length=st.integers(4, 32),
)
def test_cut_and_packed_documents_can_be_put_together_again(documents, row_length):
    pieces = [
        (d, n, piece)
        for d, tokens in enumerate(documents)
        for n, piece in enumerate(cut(tokens, row_length, SPECIAL))
    ]
    rows = best_fit([len(piece) for *_, piece in pieces], row_length)
    found = sorted((pieces[i][0], pieces[i][1], pieces[i][2].tolist()) for row in rows for i in row)
    again = [[] for _ in documents]
    for d, _, piece in found:
        again[d] += piece[1:]
    assert again == [[*tokens, EOS] for tokens in documents]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40))
def test_each_piece_goes_to_the_fullest_row_with_room(lengths):
    """A direct search over all rows, piece by piece, leaves the same rooms."""
    rooms = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms[rooms.index(min(fitting))] -= length
        else:
            rooms.append(30 - length)
    filled = sorted(30 - sum(lengths[i] for i in row) for row in best_fit(lengths, 30))
    assert filled == sorted(rooms)


@pytest.mark.parametrize("row_length", [6, 7, 8])
def test_never_more_rows_than_first_fit_decreasing(row_length):
    """Every multiset of up to six pieces; and never above the proven bound on the optimum."""
    for count in range(1, 7):
        for lengths in itertools.combinations_with_replacement(range(1, row_length + 1), count):
            rows = len(best_fit(lengths, row_length))
            assert rows <= first_fit_decreasing(lengths, row_length)
            assert 9 * rows <= 11 * fewest_rows(lengths, row_length) + 6


@settings(max_examples=30)
@given(st.lists(st.integers(17, 100), min_size=20, max_size=200))
def test_never_more_rows_than_first_fit_decreasing_without_tiny_pieces(lengths):
    # For pieces of at least a sixth of a row this is a theorem (Johnson, 1974).
    assert len(best_fit(lengths, 100)) <= first_fit_decreasing(lengths, 100)


@pytest.mark.parametrize("row_length", [1024, 8192])
def test_rows_are_full_where_there_is_enough_text(row_length):
    """Web documents: lengths are about log-normal, with a median of some 400 tokens and a long tail."""
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.normal(6, 1.2, 20_000)).astype(int) + 1
    _, start, stop = piece_bounds(lengths, row_length)
    pieces = stop - start + 1
    rows = best_fit(pieces, row_length)
    assert pieces.sum() / (len(rows) * row_length) >= 0.995


def test_the_same_arguments_give_the_same_rows_and_equal_lengths_keep_their_order():
    lengths = np.random.default_rng(1).integers(1, 65, 500)
    assert best_fit(lengths, 64) == best_fit(lengths.tolist(), 64)
    assert best_fit([3, 3, 3, 3, 3], 6) == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("lengths", [[4, 9], [0, 4]])
def test_pieces_that_fit_no_row_are_refused(lengths):
    with pytest.raises(ValueError, match="do not fit rows of 8: cut them first"):
        best_fit(lengths, 8)


def test_nothing_gives_no_rows():
    assert best_fit([], 8) == []
