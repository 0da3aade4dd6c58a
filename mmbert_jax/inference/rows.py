"""Texts of any lengths in rows of a few lengths and batches of fixed shapes: few wasted tokens, few compiled programs.

Letters: B rows of a batch, L row length.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import jax
import numpy as np

from mmbert_jax.data.corpus import rows_to_arrays
from mmbert_jax.data.packing import best_fit
from mmbert_jax.model.config import ModelConfig

if TYPE_CHECKING:
    from mmbert_jax.inference.model import Model

# Longer texts than the last get twice it, four times it, and so on.
ROW_LENGTHS = (128, 512, 1024, 2048, 4096, 8192)
# Enough to keep a device busy; a few cores are, with a row or two.
BATCH_TOKENS = {"cpu": 2048}
BATCH_TOKENS_ELSEWHERE = 65536


@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows that are computed together.

    Attributes:
      row_length: tokens in a row.
      rows: for each row the numbers of its texts, in the order in which they stand there; a row without texts only
        fills up the batch.
    """

    row_length: int
    rows: list[list[int]]


def default_batch_tokens() -> int:
    """How many tokens go through the model at once on this platform, padding included."""
    return BATCH_TOKENS.get(jax.default_backend(), BATCH_TOKENS_ELSEWHERE)


def plan(
    lengths: Sequence[int],
    config: ModelConfig,
    batch_tokens: int | None = None,
    devices: int = 1,
) -> list[Batch]:
    """Distributes texts over batches; every text stands in exactly one row.

    A row length has two batch shapes at most, `batch_tokens // row_length` rows a device and one, so that texts of all
    lengths up to 8192 need no more than 12 compiled programs.

    Args:
      lengths: tokens of each text, with special ones.
      config: says how much dearer a token is in a longer row.
      batch_tokens: tokens of a batch on each device, which has at least one row, however long. None:
        `default_batch_tokens()`.
      devices: over which a batch is spread; its number of rows is a multiple of it.
    """
    batch_tokens = batch_tokens or default_batch_tokens()
    lengths = np.asarray(lengths, np.int64)
    batches = []
    for row_length, rows in sorted(_rows_by_length(lengths, config).items()):
        full = max(batch_tokens // row_length, 1) * devices
        for start in range(0, len(rows), full):
            part = rows[start : start + full]
            # A few rows one by one cost less than a batch that is mostly empty.
            at_once = devices if len(part) <= full // 4 else full
            for first in range(0, len(part), at_once):
                of_batch = part[first : first + at_once]
                batches.append(Batch(row_length, of_batch + [[]] * (at_once - len(of_batch))))
    return batches


def plan_for(
    model: "Model", sequences: Sequence[Sequence[int]], batch_tokens: int | None = None
) -> list[Batch]:
    """`plan` of texts as token ids, for a model's devices."""
    lengths = [len(ids) for ids in sequences]
    return plan(lengths, model.config, batch_tokens, model.mesh.size)


def batch_arrays(
    batch: Batch, sequences: Sequence[Sequence[int]], pad: int
) -> dict[str, np.ndarray]:
    """`tokens`, `segment_ids` and `positions`, int32 [B, L], of a batch; segment n of a row is its nth text."""
    empty = np.zeros(0, np.int64)
    rows = []
    for row in batch.rows:
        texts = [np.asarray(sequences[text], np.int32) for text in row]
        rows.append((np.concatenate([empty, *texts]), np.cumsum([len(text) for text in texts])))
    return rows_to_arrays(rows, batch.row_length, pad)


def slots_for(batch: Batch) -> int:
    """S, for at least as many texts as any row of a batch has: a power of two, so that few programs are compiled."""
    return 1 << (max(map(len, batch.rows)) - 1).bit_length()


def parts_of(
    batch: Batch, out: jax.Array, sequences: Sequence[Sequence[int]], by_token: bool
) -> Iterator[tuple[int, np.ndarray]]:
    """Each text of a batch and its part of `out`: of [B, S, ...] [...], or by token of [B, L, ...] [tokens, ...]."""
    for row, found in zip(batch.rows, np.asarray(out), strict=True):
        parts = found
        if by_token:
            ends = np.cumsum([len(sequences[text]) for text in row], dtype=np.int64)
            parts = np.split(found, ends)
        # Behind the texts stands what fills up the row.
        for text, part in zip(row, parts, strict=False):
            yield text, part.copy()  # a view would keep the whole batch in memory


def _rows_by_length(lengths: np.ndarray, config: ModelConfig) -> dict[int, list[list[int]]]:
    """Row length -> rows, the longest texts first.

    Texts that need a row length are packed together with all shorter ones, which fill the gaps. Best-fit decreasing
    puts a row's longest text first, so the rows that begin with a text of this kind are kept, and the rest is packed
    anew, in shorter rows. A kind may also be packed in rows of the next length, where that is cheaper: texts of 300
    tokens waste 40% of a row of 512 and 12% of one of 1024.
    """
    row_lengths = list(ROW_LENGTHS)
    while len(lengths) and row_lengths[-1] < lengths.max():
        row_lengths.append(2 * row_lengths[-1])
    rows: dict[int, list[list[int]]] = {}
    rest = np.arange(len(lengths))
    for i, (shorter, longest) in reversed(list(enumerate(pairwise([0, *row_lengths])))):
        if not (lengths[rest] > shorter).any():
            continue
        packed = [
            (row_length, _rows_with(lengths, rest, row_length, shorter))
            for row_length in (longest, *row_lengths[i + 1 : i + 2])
        ]
        row_length, kept = min(packed, key=lambda x: _cost(lengths, *x, config))
        rows.setdefault(row_length, []).extend(kept)
        rest = np.setdiff1d(rest, np.concatenate(kept), assume_unique=True)
    return rows


def _rows_with(lengths, rest, row_length: int, shorter: int) -> list[list[int]]:
    """Of the texts `rest`, packed in rows of a length, the rows that hold a text of more than `shorter` tokens."""
    packed = best_fit(lengths[rest], row_length)
    return [rest[row].tolist() for row in packed if lengths[rest[row[0]]] > shorter]


def _cost(lengths, row_length: int, rows: list[list[int]], config: ModelConfig) -> float:
    """FLOPs for a token of text, up to a factor: the dense layers', and the global layers' attention to whole rows."""
    d = config.hidden_size
    dense = config.num_layers * (4 * d * d + 3 * d * config.intermediate_size)
    attention = sum(map(config.is_global, range(config.num_layers))) * 2 * d * row_length
    tokens = sum(int(lengths[row].sum()) for row in rows)
    return len(rows) * row_length * (dense + attention) / tokens
