"""The records of a slice of what has rows: Parquet, MDS and TFDS, and MDS's documents of tokens."""

import itertools
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from mmbert_jax.data.sources import mds, parquet, tfds
from mmbert_jax.data.sources.chunks import Row, continues, join_rows
from mmbert_jax.data.sources.inputs import Input
from mmbert_jax.data.sources.pieces import Slice
from mmbert_jax.errors import UserError
from mmbert_jax.places import Place

# Of MDS, beside the tokens: one that all rows of a document have in common.
DOCUMENT_COLUMN = "id"


def column_names(source: Input) -> list[str]:
    """UserError where it cannot be read."""
    if source.format == "parquet":
        return parquet.column_names(source.path)
    if source.format == "mds":
        return mds.column_names(_shard(source))
    return tfds.column_names(source.path.parent)


def read_rows(part: Slice, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number of the record in its input, from 1; the values of the columns that there are); text as bytes.

    Raises:
      UserError: the input cannot be read, or is damaged.
    """
    source = part.source
    if source.format == "parquet":
        start, stop = _range(part, len(parquet.row_groups(source.path)))
        return parquet.read_rows(source.path, start, stop, columns)
    if source.format == "mds":
        shard = _shard(source)
        return mds.read_samples(shard, *_range(part, shard.samples), columns)
    assert source.split is not None
    folder = source.path.parent
    records = tfds.splits(folder)[source.split]
    return tfds.read_records(folder, source.split, *_range(part, records), columns)


def read_tokens(part: Slice, column: str, bos: int, eos: int) -> Iterator[tuple[int, np.ndarray]]:
    """(number of its first row in the shard, its tokens, uint32, without BOS and EOS) of the documents that begin here.

    A document is read to its end, also where that is in shards that follow in the same folder; the end of one that
    begins before is passed over.

    Raises:
      UserError: a shard cannot be read, is damaged, or has no tokens in this column.
    """
    assert part.source.index is not None
    shards = _shards(part.source.index)
    at = part.source.number
    start, stop = _range(part, shards[at].samples)
    if start == stop:
        return
    rows = itertools.chain(
        _last_before(shards, at, start, column), _rows_from(shards, at, start, column)
    )
    for number, tokens in join_rows(_until(rows, stop, eos), bos, eos):
        if number > start:
            yield number, tokens


def _range(part: Slice, n: int) -> tuple[int, int]:
    return part.stripe * n // part.stripes, (part.stripe + 1) * n // part.stripes


@lru_cache(maxsize=8)
def _shards(index: Place) -> list[mds.Shard]:
    return mds.read_index(index)


def _shard(source: Input) -> mds.Shard:
    assert source.index is not None
    return _shards(source.index)[source.number]


def _rows_from(shards: list[mds.Shard], at: int, start: int, column: str) -> Iterator[Row]:
    """The rows from one on to the end of the folder, with their numbers as if all were in its shard."""
    before = 0
    for shard in shards[at:]:
        if shard.path.parent != shards[at].path.parent:
            return
        columns = [column, DOCUMENT_COLUMN]
        for number, sample in mds.read_samples(shard, start, shard.samples, columns):
            tokens = ids_of(sample, column, f"{shard.path}, sample {number}")
            yield Row(before + number, tokens, sample.get(DOCUMENT_COLUMN))
        before, start = before + shard.samples, 0


def _last_before(shards: list[mds.Shard], at: int, start: int, column: str) -> Iterator[Row]:
    """The row before, with the number `start`, if there is one."""
    folder = shards[at].path.parent
    while start == 0 and at and shards[at - 1].path.parent == folder:
        at -= 1
        start = shards[at].samples
        if start:
            for row in itertools.islice(_rows_from(shards, at, start - 1, column), 1):
                yield row._replace(number=0)
            return
    if start:
        yield from itertools.islice(_rows_from(shards, at, start - 1, column), 1)


def _until(rows: Iterator[Row], stop: int, eos: int) -> Iterator[Row]:
    """The rows up to number `stop`, and those that go on with the last one's document."""
    before: Row | None = None
    for row in rows:
        if row.number > stop and (before is None or not continues(before, row, eos)):
            return
        yield row
        before = row


def ids_of(sample: dict[str, Any], column: str, place: str) -> np.ndarray:
    """The token ids of a sample, uint32 [n]; UserError where the column has none."""
    value = sample.get(column)
    array = np.asarray([] if isinstance(value, list) and not value else value)
    if array.size == 0 and array.ndim == 1:
        return np.empty(0, np.uint32)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise UserError(f"{place}: column {column!r} holds no list of token ids")
    if array.min() < 0 or array.max() >= 1 << 32:
        raise UserError(f"{place}: column {column!r} holds {array.min()} to {array.max()}, no ids")
    return array.astype(np.uint32)
