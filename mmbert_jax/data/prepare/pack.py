"""Stage 2: the documents of a shard to packed rows."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mmbert_jax.data.corpus import SPLITS, encode_row, trained_part
from mmbert_jax.data.packing import best_fit, piece_bounds
from mmbert_jax.data.prepare import workers
from mmbert_jax.data.prepare.deal import Job
from mmbert_jax.data.prepare.settings import Settings
from mmbert_jax.data.prepare.workers import Run
from mmbert_jax.data.progress import Progress
from mmbert_jax.data.shards import ShardWriter
from mmbert_jax.data.spill import Documents, read_spill


def pack(jobs: Sequence[Job], settings: Settings, run: Run) -> dict[str, dict[str, Any]]:
    """Writes the shards; the manifest's `row_lengths`."""
    result: dict[str, dict[str, Any]] = {
        str(length): {split: {"shards": [], "fill": 0.0, "languages": {}} for split in SPLITS}
        for length in settings.row_lengths
    }
    tokens = [sum(part.size.tokens for part in job.parts) for job in jobs]
    progress = Progress("pack    ", sum(tokens))
    shown = {"tokens": 0}
    written = dict.fromkeys(
        ((split, length) for split in SPLITS for length in settings.row_lengths), 0
    )
    for job, n, counted in zip(jobs, tokens, run(pack_shards, jobs), strict=True):
        for length, (rows_and_tokens, digest) in counted.items():
            entry = result[str(length)][job.split]
            before = first = written[job.split, length]
            for part, (rows, row_tokens) in zip(job.parts, rows_and_tokens, strict=True):
                language = entry["languages"].setdefault(
                    part.language,
                    {"first_row": before, "rows": 0, "tokens": 0, "documents": 0, "bytes": 0},
                )
                language["rows"] += rows
                language["tokens"] += row_tokens
                language["documents"] += part.size.documents
                language["bytes"] += part.size.text_bytes
                before += rows
            written[job.split, length] = before
            file = job.file(length)
            size = (job.folder / file).stat().st_size
            entry["shards"].append(
                {"file": file, "rows": before - first, "digest": digest, "bytes": size}
            )
        shown["tokens"] += n
        progress.advance(n, shown)
    progress.finish(shown)
    for length, splits in result.items():
        for entry in splits.values():
            rows = sum(language["rows"] for language in entry["languages"].values())
            filled = sum(language["tokens"] for language in entry["languages"].values())
            entry["fill"] = round(filled / (rows * int(length)), 6) if rows else 0.0
    return result


def pack_shards(job: Job) -> dict[int, tuple[list[tuple[int, int]], str]]:
    """Stage 2's job; removes the parts' spill files.

    Returns:
      For each row length, (rows, tokens in them) of each part, and a digest of the shard's records.
    """
    row_lengths = workers.settings().row_lengths
    writers = {length: ShardWriter(job.folder / job.file(length)) for length in row_lengths}
    counts: dict[int, list[tuple[int, int]]] = {length: [] for length in row_lengths}
    digests = {length: hashlib.blake2b(digest_size=8) for length in row_lengths}
    for part in job.parts:
        documents = read_spill(part.path, part.size)
        part.path.unlink()
        for length, writer in writers.items():
            rows = tokens = 0
            for record, n in packed_rows(documents, length, workers.special().bos):
                writer.write(record)
                digests[length].update(trained_part(record))
                rows += 1
                tokens += n
            counts[length].append((rows, tokens))
    for writer in writers.values():
        writer.close()
    return {length: (counts[length], digests[length].hexdigest()) for length in row_lengths}


def packed_rows(documents: Documents, row_length: int, bos: int) -> Iterator[tuple[bytes, int]]:
    """The records of one language's documents (or of a part of them), in random order, and the tokens in each.

    The order follows from the texts' hashes, not from where the documents stood.
    """
    document, start, stop = piece_bounds(documents.lengths - 1, row_length)
    rank = np.empty(len(documents.ids), np.int64)
    rank[np.lexsort((documents.ids, documents.hashes))] = np.arange(len(rank))
    order = np.argsort(rank[document], kind="stable")
    ids = documents.ids[document[order]]
    start, stop = start[order], stop[order]
    lengths = stop - start + 1
    rows = best_fit(lengths, row_length)
    start, lengths = start.tolist(), lengths.tolist()
    buffer = np.empty(row_length, np.uint32)
    for i in np.random.default_rng(row_length).permutation(len(rows)).tolist():
        at = 0
        ends = []
        for piece in rows[i]:
            first, n = start[piece], lengths[piece]
            buffer[at] = bos
            buffer[at + 1 : at + n] = documents.tokens[first : first + n - 1]
            at += n
            ends.append(at)
        yield encode_row(buffer[:at], np.array(ends), ids[rows[i]]), at
