"""Which rows and documents a step of a run saw: from its config, its log and the corpora, without training anything."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mmbert_jax.data import corpus
from mmbert_jax.data.pipeline import PhaseData, documents_of
from mmbert_jax.data.tokenizer import Tokenizer
from mmbert_jax.errors import UserError
from mmbert_jax.optim.schedules import batch_rows


def rows_of_step(
    config: ConfigDict, steps: Sequence[Mapping[str, Any]], step: int
) -> tuple[int, int]:
    """The global rows [start, stop) that a step took.

    The log knows where the logged steps ended; between them the schedule of the batch size tells. Where the two do not
    agree, the run skipped rows, and only steps that were logged are known.

    Args:
      steps: the lines of metrics.jsonl that training steps wrote.
      step: its number in the log, from 1.

    Raises:
      UserError: the run has not logged as far as this step, or it cannot be told where rows were skipped.
    """
    row_length = config.data.row_length
    ends = {0: 0} | {record["step"]: record["tokens"] // row_length for record in steps}
    if not 1 <= step <= max(ends):
        raise UserError(f"--step {step}: the run has logged the steps 1 to {max(ends)}")
    before = max(known for known in ends if known < step)
    after = min(known for known in ends if known >= step)
    row, rows = ends[before], {}
    for number in range(before + 1, after + 1):
        rows[number] = row, row + batch_rows(config.train, row, row_length)
        row = rows[number][1]
    if row == ends[after]:
        return rows[step]
    if after == step:  # what was skipped lies before it
        return _rows_that_end_at(config, ends[step])
    raise UserError(
        f"--step {step}: rows were skipped between the logged steps {before} and {after}, and the log does not tell"
        f" where; ask for step {after}"
    )


def _rows_that_end_at(config: ConfigDict, stop: int) -> tuple[int, int]:
    """The rows of the one batch that may end there: a batch's size follows from its first row and never decreases."""
    train = config.train
    for size in range(train.microbatch_rows, train.batch_rows + 1, train.microbatch_rows):
        if size <= stop and batch_rows(train, stop - size, config.data.row_length) == size:
            return stop - size, stop
    raise UserError(f"no batch of this config ends at row {stop}: has config.json been changed?")


def seen(
    data: PhaseData, start: int, stop: int, microbatch_rows: int, tokenizer: Tokenizer | None = None
) -> Iterator[dict[str, Any]]:
    """What lies in the global rows [start, stop) of a step that begins at `start`, a record for each row.

    Args:
      tokenizer: decodes the documents, as far as they lie in the row; None leaves the texts out.
    """
    origins = documents_of(data, start, stop)
    for number, (origin, tokens) in enumerate(
        zip(origins, _segments(data, start, stop), strict=True)
    ):
        documents = [
            {"id": document, "file": file, "line": line}
            for document, (file, line) in zip(origin.document_ids, origin.documents, strict=True)
        ]
        if tokenizer:
            for document, ids in zip(documents, tokens, strict=True):
                document["text"] = tokenizer.decode(ids)
        yield {
            "row": start + number,
            "microbatch": number // microbatch_rows,
            "source": origin.source,
            "language": origin.language,
            "pass": origin.pass_number,
            "row_of_language": origin.row,
            "documents": documents,
        }


def _segments(data: PhaseData, start: int, stop: int) -> Iterator[list[np.ndarray]]:
    """The tokens of every document of each row."""
    for entry_index, _, row in zip(*data.order.slice(start, stop), strict=True):
        entry = data.mixture.entries[entry_index]
        record = data.sources[entry.corpus][entry.first_row + int(row)]
        tokens, segment_ends, _ = corpus.decode_row(record)
        yield np.split(tokens, segment_ends[:-1].astype(np.int64))
