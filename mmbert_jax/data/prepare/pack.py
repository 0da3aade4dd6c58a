"""Stage 2: the documents of a shard to packed rows."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mmbert_jax.data.corpus import SPLITS, encode_row, trained_part
from mmbert_jax.data.packing import best_fit, piece_bounds
from mmbert_jax.data.prepare import workers
from mmbert_jax.data.prepare.deal import Job, read_deal
from mmbert_jax.data.prepare.documents import Documents
from mmbert_jax.data.prepare.settings import Settings
from mmbert_jax.data.prepare.workers import Run
from mmbert_jax.data.progress import Progress
from mmbert_jax.data.shards import ShardWriter
from mmbert_jax.files import folder_on_disk


def pack(jobs: Sequence[Job], settings: Settings, run: Run) -> dict[str, dict[str, Any]]:
    """Writes the shards; the manifest's `row_lengths`."""
    result: dict[str, dict[str, Any]] = {
        str(length): {split: {"shards": [], "fill": 0.0, "languages": {}} for split in SPLITS}
        for length in settings.row_lengths
    }
    tokens = [sum(deal.size.tokens for deal in job.deals) for job in jobs]
    progress = Progress("pack    ", sum(tokens))
    shown = {"tokens": 0}
    written = dict.fromkeys(
        ((split, length) for split in SPLITS for length in settings.row_lengths), 0
    )
    for job, n, counted in zip(jobs, tokens, run(pack_shards, jobs), strict=True):
        for length, (rows_and_tokens, digest, size) in counted.items():
            entry = result[str(length)][job.split]
            before = first = written[job.split, length]
            for dealt, (rows, row_tokens) in zip(job.deals, rows_and_tokens, strict=True):
                language = entry["languages"].setdefault(
                    dealt.language,
                    {"first_row": before, "rows": 0, "tokens": 0, "documents": 0, "bytes": 0},
                )
                language["rows"] += rows
                language["tokens"] += row_tokens
                language["documents"] += dealt.size.documents
                language["bytes"] += dealt.size.text_bytes
                before += rows
            written[job.split, length] = before
            shard = {"file": job.file(length), "rows": before - first}
            entry["shards"].append(shard | {"digest": digest, "bytes": size})
        shown["tokens"] += n
        progress.advance(n, shown)
    progress.finish(shown)
    for length, splits in result.items():
        for entry in splits.values():
            rows = sum(language["rows"] for language in entry["languages"].values())
            filled = sum(language["tokens"] for language in entry["languages"].values())
            entry["fill"] = round(filled / (rows * int(length)), 6) if rows else 0.0
    return result


def pack_shards(job: Job) -> dict[int, tuple[list[tuple[int, int]], str, int]]:
    """Stage 2's job.

    Returns:
      For each row length, (rows, tokens in them) of each deal, a digest of the shard's records, and its bytes.
    """
    row_lengths = workers.settings().row_lengths
    counts: dict[int, list[tuple[int, int]]] = {length: [] for length in row_lengths}
    digests = {length: hashlib.blake2b(digest_size=8) for length in row_lengths}
    with folder_on_disk(job.folder) as folder:
        writers = {length: ShardWriter(folder / job.file(length)) for length in row_lengths}
        for deal in job.deals:
            documents = read_deal(deal, job.parts, job.moved)
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
        sizes = {length: (folder / job.file(length)).stat().st_size for length in row_lengths}
    return {x: (counts[x], digests[x].hexdigest(), sizes[x]) for x in row_lengths}


def packed_rows(documents: Documents, row_length: int, bos: int) -> Iterator[tuple[bytes, int]]:
    """The records of one language's documents (or of a part of them), in random order, and the tokens in each.

    The order follows from the texts' hashes, not from where the documents stood.
    """
    columns = documents.columns
    document, start, stop = piece_bounds(columns["length"] - 1, row_length)
    rank = np.empty(len(columns), np.int64)
    rank[np.lexsort((columns["id"], columns["hash"]))] = np.arange(len(rank))
    order = np.argsort(rank[document], kind="stable")
    ids = columns["id"][document[order]]
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
