"""Documents cut into pieces, pieces packed into rows: one function for preparation, fine-tuning and inference.

A document's content is its tokens and one <eos>. It is cut every `row_length - 1` tokens, and every piece starts with
a <bos> of its own, so that nothing is lost and a piece can be read alone. <bos> and <eos> are what the tokeniser has
for them, [CLS] and [SEP] or <s> and </s>.
"""

from collections.abc import Sequence

import numpy as np

from mmbert_jax.data.special_ids import SpecialIds


def piece_bounds(lengths: np.ndarray, row_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the pieces of many documents lie in the documents' contents, laid end to end.

    Args:
      lengths: tokens of each document without special ones, int [documents].
      row_length: tokens in a row, at least 2.

    Returns:
      (document, start, stop), each int64 [pieces], in order of the documents. `start` and `stop` index the array that
      has every document's tokens followed by its <eos>; a piece takes `stop - start + 1` tokens of a row.
    """
    if row_length < 2:
        raise ValueError(f"a row of {row_length} tokens cannot hold <bos> and a token")
    content = np.asarray(lengths, np.int64) + 1
    step = row_length - 1
    pieces = -(-content // step)
    document = np.repeat(np.arange(len(content)), pieces)
    within = np.arange(len(document)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    first = (np.cumsum(content) - content)[document]
    start = first + within * step
    stop = np.minimum(start + step, first + content[document])
    return document, start, stop


def cut(tokens: Sequence[int], row_length: int, special: SpecialIds) -> list[np.ndarray]:
    """The pieces of one document, uint32: <bos> and up to `row_length - 1` tokens each, <eos> behind the last token.

    Args:
      tokens: the document without special tokens; may be empty, which gives one piece of <bos> <eos>.
      row_length: tokens in a row, at least 2.
      special: of the tokeniser.
    """
    content = np.append(np.asarray(tokens, np.uint32), np.uint32(special.eos))
    _, starts, stops = piece_bounds(np.array([len(tokens)]), row_length)
    bos = np.array([special.bos], np.uint32)
    return [np.concatenate([bos, content[a:b]]) for a, b in zip(starts, stops, strict=True)]


def best_fit(lengths: Sequence[int] | np.ndarray, row_length: int) -> list[list[int]]:
    """Best-fit decreasing: each piece, longest first, goes to the fullest row that still has room for it.

    Rows with the same room wait in one stack, and one integer has a bit for every room that some row has: finding the
    fullest row is a shift and the lowest set bit, about a microsecond whatever the number of rows. Equal lengths keep
    their order, so the result depends on the arguments alone.

    Args:
      lengths: tokens in each piece, each from 1 to row_length.
      row_length: tokens in a row.

    Returns:
      One list of indices into `lengths` for each row; every index occurs once.
    """
    lengths = np.asarray(lengths, np.int64)
    if len(lengths) and not (lengths.min() >= 1 and lengths.max() <= row_length):
        raise ValueError(
            f"pieces of {lengths.min()} to {lengths.max()} tokens do not fit rows of {row_length}: cut them first"
        )
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(row_length)]  # room -> rows
    rooms = 0  # bit r is set where with_room[r] has a row
    order = np.argsort(-lengths, kind="stable")
    for piece, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
            rows[row].append(piece)
        else:
            room = row_length
            row = len(rows)
            rows.append([piece])
        left = room - length
        if left:
            with_room[left].append(row)
            rooms |= 1 << left
    return rows
