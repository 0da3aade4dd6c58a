"""Documents that were tokenised and cut into rows, put together again.

As JHU-CLSP/ettin-encoder-vs-decoder publishes it (split_dataset_into_chunks_individual.py): chunks have at most 8190
tokens, with BOS before each and EOS at a document's end; each keeps its document's `id`. A tail under 32 tokens is
dropped, and the document ends without EOS. A tail under 512 is filled up with the last tokens of the chunk before,
which loses them (`backfill_no_duplicates`): joining gives the document back. Where they were copied instead, as the
script can be told to, the copy is left out.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

# Tokens of a full chunk without BOS, and the tails that are filled up.
CHUNK_TOKENS = 8190
SHORTEST_TAIL = 512


class Row(NamedTuple):
    """A row of tokens. `document` is its `id`; None where the rows have none."""

    number: int
    tokens: np.ndarray
    document: Any


def continues(before: Row, row: Row, eos: int) -> bool:
    """Whether `row`, which follows `before`, goes on with the same document.

    It does unless `before` ends in EOS or their documents' ids differ: a document whose tail was dropped has no EOS.
    """
    return not (len(before.tokens) and before.tokens[-1] == eos) and before.document == row.document


def join_rows(rows: Iterable[Row], bos: int, eos: int) -> Iterator[tuple[int, np.ndarray]]:
    """(number of its first row, its tokens without BOS and EOS) of each document.

    Args:
      rows: in the order in which they were written.
    """
    before: Row | None = None
    first, parts = 0, []
    for row in rows:
        if before is None or not continues(before, row, eos):
            if parts:
                yield first, np.concatenate(parts)
            first, parts = row.number, []
        text = _without_ends(row.tokens, bos, eos)
        if parts and len(row.tokens) and row.tokens[-1] == eos:
            text = text[_copied(parts[-1], text) :]
        parts.append(text)
        before = row
    if parts:
        yield first, np.concatenate(parts)


def _without_ends(tokens: np.ndarray, bos: int, eos: int) -> np.ndarray:
    start = int(len(tokens) > 0 and tokens[0] == bos)
    stop = len(tokens) - int(len(tokens) > start and tokens[-1] == eos)
    return tokens[start:stop]


def _copied(before: np.ndarray, text: np.ndarray) -> int:
    """How many of the tokens of a document's last row are a copy of the end of the row before.

    Only where that is sure: a tail under 512 tokens that was filled up makes a whole chunk, of which at least 7679
    tokens are the end of the row before. Shorter agreement can be the text's own.
    """
    if len(text) + 1 != CHUNK_TOKENS:  # its EOS counts
        return 0
    for tail in range(1, SHORTEST_TAIL):
        count = CHUNK_TOKENS - tail
        if (
            count <= len(before)
            and before[-1] == text[count - 1]
            and np.array_equal(before[-count:], text[:count])
        ):
            return count
    return 0
