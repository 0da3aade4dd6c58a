"""Rows of tokens as documents again: against documents that were cut by the published rule."""

import numpy as np
import pytest

from mmbert_jax.data.sources.chunks import CHUNK_TOKENS, Row, join_rows

BOS, EOS = 2, 1


def cut(document, copy=False, draw=None):
    """The rows of a document: 8190 tokens at a time, EOS counted; tails under 32 are dropped, under 512 filled."""
    tokens = np.append(document, EOS).astype(np.uint32)
    chunks = [tokens[i : i + CHUNK_TOKENS] for i in range(0, len(tokens), CHUNK_TOKENS)]
    if len(chunks) > 1 and len(chunks[-1]) < 32:
        chunks.pop()
    elif len(chunks) > 1 and len(chunks[-1]) < 512:
        before, tail = chunks[-2:]
        room = CHUNK_TOKENS - len(tail)
        count = room if copy else int(draw.integers(1, room))
        chunks[-1] = np.concatenate([before[-count:], tail])
        chunks[-2] = before if copy else before[:-count]
    return [np.insert(chunk, 0, BOS) for chunk in chunks]


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("with_ids", [False, True])
def test_documents_of_all_lengths(copy, with_ids):
    draw = np.random.default_rng(0)
    extra = [0, 1, 40, 511, 512, 4000, CHUNK_TOKENS - 2]
    lengths = [1, 5, *(CHUNK_TOKENS * n + more for n in (1, 2, 3) for more in extra)]
    documents = [draw.integers(5, 50, n) for n in lengths]
    rows, first = [], []
    for i, document in enumerate(documents):
        first.append(len(rows) + 1)
        for tokens in cut(document, copy, draw):
            rows.append(Row(len(rows) + 1, tokens, f"id {i}" if with_ids else None))
    joined = list(join_rows(rows, BOS, EOS))
    if not with_ids:
        # Where a tail was dropped nothing shows that the document ends.
        dropped = [i for i, n in enumerate(lengths) if (n + 1) % CHUNK_TOKENS < 32 and n > 100]
        assert len(joined) == len(documents) - len(dropped)
        return
    assert [number for number, _ in joined] == first
    for (_, tokens), document in zip(joined, documents, strict=True):
        left = (len(document) + 1) % CHUNK_TOKENS
        kept = len(document) + 1 - left if left < 32 and len(document) > 100 else len(document)
        np.testing.assert_array_equal(tokens, document[:kept])


def test_a_text_that_repeats_itself_keeps_its_repetitions():
    document = np.tile(np.arange(5, 105), 200)[: 2 * CHUNK_TOKENS + 3000]
    rows = [Row(i, tokens, "a") for i, tokens in enumerate(cut(document), 1)]
    ((number, tokens),) = join_rows(rows, BOS, EOS)
    assert number == 1
    np.testing.assert_array_equal(tokens, document)


def test_rows_without_special_tokens_and_without_tokens():
    rows = [[7, 8], [], [BOS, 9], [BOS, EOS], [BOS, 5, EOS], [EOS], [BOS]]
    rows = [Row(i, np.array(row, np.uint32), None) for i, row in enumerate(rows, 1)]
    found = [(number, tokens.tolist()) for number, tokens in join_rows(rows, BOS, EOS)]
    assert found == [(1, [7, 8, 9]), (5, [5]), (6, []), (7, [])]
