"""Which rows and documents a step of a run saw: from its config, its log and the corpora, without training anything."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mmbert_jax.data import corpus
from mmbert_jax.data.pipeline import PhaseData, documents_of, records_of
from mmbert_jax.data.tokenizer import Tokenizer
from mmbert_jax.errors import UserError
from mmbert_jax.optim.schedules import batch_rows, phase_rows
from mmbert_jax.rollback import Stretch, next_row


def rows_of_step(
    config: ConfigDict,
    steps: Sequence[Mapping[str, Any]],
    step: int,
    stretches: Sequence[Stretch] = (),
) -> tuple[int, int]:
    """The global rows [start, stop) that a step took.

    The log knows the row after each logged step; between them the schedule of the batch size tells.

    Args:
      steps: the lines of metrics.jsonl that training steps wrote.
      step: its number in the log, from 1.
      stretches: rows that the run left out, as `rollback.read_stretches` gives them.

    Raises:
      UserError: the run has not logged as far as this step, or the log does not fit the config.
    """
    row_length = config.data.row_length
    end = phase_rows(config.train, row_length)
    next_rows = {0: 0} | {record["step"]: record["tokens"] // row_length for record in steps}
    if not 1 <= step <= max(next_rows):
        raise UserError(f"--step {step}: the run has logged the steps 1 to {max(next_rows)}")
    before = max(known for known in next_rows if known < step)
    after = min(known for known in next_rows if known >= step)
    row, rows = next_row(next_rows[before], stretches), {}
    for number in range(before + 1, after + 1):
        rows[number] = row, min(row + batch_rows(config.train, row, row_length), end)
        row = next_row(rows[number][1], stretches)
    if row != next_row(next_rows[after], stretches):
        raise UserError(
            f"--step {step}: by config.json step {after} ends before row {row}, by metrics.jsonl before row"
            f" {next_rows[after]}; has one of them, or skipped_rows.json, been changed?"
        )
    return rows[step]


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
    for record in records_of(data, start, stop):
        tokens, segment_ends, _ = corpus.decode_row(record)
        yield np.split(tokens, segment_ends[:-1].astype(np.int64))
