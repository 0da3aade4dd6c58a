"""Text to a corpus, in two stages of which each is a loop over independent jobs for a pool of processes.

1. Chunks of the input are tokenised; the tokens wait in one spill file for each (split, language). Of a language that
   has hardly any held-out documents then, the ones with the lowest hashes are held out besides.
2. Shards are packed: one shard takes several small languages, or a part, dealt out by hash, of a large one. A
   document's hash decides its split and its place among the others, so that the corpus is the same whatever the
   number of processes, and equal texts are on the same side of the split.

Memory: a chunk or two for each process in stage 1 and the spill's buffer; the tokens of one shard for each process
in stage 2. On disk the spill takes 4 bytes a token until the corpus is complete.
"""

import array
import hashlib
import itertools
import multiprocessing
import os
import shutil
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmbert_jax.data.corpus import (
    FORMAT,
    MANIFEST,
    SPLITS,
    VERSION,
    Manifest,
    document_id,
    encode_row,
    read_manifest,
    trained_part,
)
from mmbert_jax.data.packing import best_fit, piece_bounds
from mmbert_jax.data.progress import Progress
from mmbert_jax.data.shards import SUFFIX, ShardWriter
from mmbert_jax.data.sources import Chunk, Fields, Input, parse_chunk, read_chunks
from mmbert_jax.data.special_ids import BOS, EOS, PIECES
from mmbert_jax.data.spill import (
    Documents,
    Size,
    SpillWriter,
    read_blocks,
    read_hashes,
    read_spill,
)
from mmbert_jax.data.tokenizer import Tokenizer, load_tokenizer
from mmbert_jax.data.tokenizer_identity import describe_tokenizer
from mmbert_jax.errors import UserError
from mmbert_jax.files import atomic_folder, check_folder, write_json

TOKENIZER_FOLDER = "tokenizer"

# (split, language) -> the file of its tokenised documents, and what is in it
_Spills = dict[tuple[str, str], tuple[Path, Size]]
# Shards that a corpus has at least, for as many processes to pack, where they would not be smaller than this.
SHARDS_TO_SHARE = 16
LEAST_SHARED = 1 << 20  # tokens


@dataclass(frozen=True)
class Settings:
    """What decides the content of a corpus, apart from its inputs."""

    tokenizer: Path
    fields: Fields
    row_lengths: tuple[int, ...]
    held_out: float  # share of documents
    held_out_documents: int = (
        4  # of each language at least, unless that is more than a quarter of what it has
    )
    shard_tokens: int = 1 << 25


def prepare_corpus(
    inputs: Sequence[Input],
    settings: Settings,
    output: Path,
    workers: int,
    source: str,
    overwrite: bool = False,
) -> Manifest:
    """Writes a corpus and returns its manifest. Until it is complete it lies in a hidden folder beside `output`.

    Args:
      inputs: as `sources.find_inputs` gives them; a document id names a file by its index in this list.
      settings: see Settings.
      output: a folder that does not exist or is empty, or holds a corpus and `overwrite` is set.
      workers: processes that tokenise and pack; 1 does the work in this process.
      source: the corpus's name in its manifest.
      overwrite: whether to replace a corpus.

    Raises:
      UserError: bad input, or an output folder that holds something else.
      OSError: no space left on the disk; names `output`.
    """
    check_output(output, overwrite)
    tokenizer = load_tokenizer(settings.tokenizer)
    with atomic_folder(output, replace=True) as partial, _run_jobs(workers, settings) as run:
        spill = partial / "spill"
        spill.mkdir()
        spills, totals = _tokenize(inputs, run, spill)
        if settings.held_out:
            spills = _hold_out_enough(spills, settings.held_out_documents, run)
        spills = _leave_some_to_train_on(spills)
        limit = _shard_limit([size for _, size in spills.values()], settings.shard_tokens)
        jobs = _plan(_deal(spills, limit, run), limit, partial)
        row_lengths = _pack(jobs, settings, run)
        shutil.rmtree(spill)
        _copy_tokenizer(tokenizer, partial / TOKENIZER_FOLDER)
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "source": source,
            "inputs": [str(item.path) for item in inputs],
            "tokenizer": describe_tokenizer(tokenizer),
            "special_ids": {piece.strip("<>"): i for i, piece in enumerate(PIECES)},
            "held_out_fraction": settings.held_out,
            "held_out_documents": settings.held_out_documents,
            "documents": totals["documents"],
            "empty_documents": totals["empty_documents"],
            "tokens": totals["tokens"],
            "bytes": totals["bytes"],
            "row_lengths": row_lengths,
        }
        write_json(partial / MANIFEST, manifest)
    return manifest


# ---- the output folder ----


def check_output(output: Path, overwrite: bool) -> None:
    """UserError unless `output` may be written: absent, empty, or a corpus of ours that is to be replaced."""
    check_folder(output, replace=True)
    if not output.exists():
        return
    found = {path.name for path in output.iterdir()}
    if not found:
        return
    if found - _files_of_corpus(output):
        raise UserError(
            f"{output}: holds something that is no corpus ({min(found - _files_of_corpus(output))}); name a new folder"
        )
    if not overwrite:
        raise UserError(
            f"{output}: holds a corpus; name a new folder or give --overwrite to replace it"
        )


def _files_of_corpus(folder: Path) -> set[str]:
    try:
        manifest = read_manifest(folder)
    except UserError:
        return set()
    files = {MANIFEST, TOKENIZER_FOLDER}
    for splits in manifest["row_lengths"].values():
        for split in splits.values():
            files |= {shard["file"] for shard in split["shards"]}
    return files


def _copy_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    folder.mkdir()
    for path in tokenizer.files():
        shutil.copyfile(path, folder / path.name)


# ---- processes ----

Run = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]


@dataclass
class _Worker:
    """What a process keeps between jobs."""

    settings: Settings | None = None
    tokenizer: Tokenizer | None = None


_worker = _Worker()


def _start_worker(settings: Settings) -> None:
    # Ctrl-C reaches the whole group of processes; the parent alone decides what follows.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # One process per core: threads inside of them would only get in each other's way.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker.settings = settings


def _end_with_parent() -> None:
    # A pool's processes would wait for ever for jobs from a parent that was killed.
    multiprocessing.parent_process().join()
    os._exit(1)


@contextmanager
def _run_jobs(workers: int, settings: Settings) -> Iterator[Run]:
    """Gives `run(function, jobs)`, which yields the results in the order of the jobs, a bounded number at a time."""
    if workers == 1:
        _worker.settings, _worker.tokenizer = settings, None
        yield map
        return
    # Not fork: a tokeniser's threads would be lost in the copy.
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(settings,),
    )

    def run(function: Callable[[Any], Any], jobs: Iterable[Any]) -> Iterator[Any]:
        running: deque[Future] = deque()
        for job in jobs:
            running.append(pool.submit(function, job))
            if len(running) > 2 * workers:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()

    try:
        yield run
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, most likely for want of memory; "
            "try fewer --workers or a smaller --shard_tokens"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


# ---- stage 1: tokenise ----


@dataclass(frozen=True)
class _Tokenized:
    """A chunk's documents in order of (split, language); `keys` has the number of documents of each such pair."""

    keys: list[tuple[tuple[str, str], int]]
    documents: Documents
    empty: Counter[str]  # language -> documents without text
    bytes_read: int


def _tokenize(inputs: Sequence[Input], run: Run, folder: Path) -> tuple[_Spills, dict[str, int]]:
    """Spill file and its size for each (split, language), and the corpus's totals."""
    progress = Progress("tokenise", sum(item.path.stat().st_size for item in inputs))
    writer = SpillWriter()
    paths: dict[tuple[str, str], Path] = {}
    empty: Counter[str] = Counter()
    shown = {"documents": 0, "tokens": 0}
    for chunk in run(tokenize_chunk, read_chunks(inputs)):
        start = 0
        for key, count in chunk.keys:
            path = paths.setdefault(key, folder / f"{len(paths)}.tokens")
            writer.add(path, chunk.documents.part(start, start + count))
            start += count
        empty += chunk.empty
        shown["documents"] += len(chunk.documents.ids)
        shown["tokens"] += len(chunk.documents.tokens) - len(chunk.documents.ids)
        progress.advance(chunk.bytes_read, shown)
    writer.flush()
    progress.finish(shown)
    for language in sorted(empty.keys() - {language for _, language in paths}):
        raise UserError(
            f"language {language!r}: all of its {empty[language]} documents are empty; "
            "remove them or check which field --text_field names"
        )
    if not paths:
        raise UserError(f"{inputs[0].path}: no documents; check --input")
    sizes = writer.sizes
    return {key: (path, sizes[path]) for key, path in paths.items()}, {
        **shown,
        "empty_documents": sum(empty.values()),
        "bytes": sum(size.text_bytes for size in sizes.values()),
    }


def tokenize_chunk(chunk: Chunk) -> _Tokenized:
    """Stage 1's job; UserError for a bad record, with its place."""
    settings = _worker.settings
    if _worker.tokenizer is None:
        _worker.tokenizer = load_tokenizer(settings.tokenizer)
    empty: Counter[str] = Counter()
    found = []
    for document in parse_chunk(chunk, settings.fields):
        if document.text and not document.text.isspace():
            digest = hashlib.blake2b(document.utf8, digest_size=8).digest()
            text_hash = int.from_bytes(digest, "little")
            split = _split(text_hash, settings.held_out)
            found.append((split, document.language, text_hash, document))
        else:
            empty[document.language] += 1
    found.sort(key=lambda item: item[:2])
    kept = [document for *_, document in found]
    encoded = _worker.tokenizer.encode_batch([document.text for document in kept])
    for ids in encoded:
        ids.append(EOS)
    lengths = np.array([len(ids) for ids in encoded], np.int64)
    # array takes Python ints at 25 ns each, NumPy at 65: a tenth of the tokeniser's own time.
    tokens = np.frombuffer(array.array("I", itertools.chain.from_iterable(encoded)), np.uint32)
    documents = Documents(
        ids=np.array([document_id(d.input_index, d.number) for d in kept], np.uint64),
        hashes=np.array([text_hash for _, _, text_hash, _ in found], np.uint64),
        text_bytes=np.array([len(d.utf8) for d in kept], np.int64),
        lengths=lengths,
        tokens=tokens,
    )
    keys = Counter((split, language) for split, language, *_ in found)
    return _Tokenized(list(keys.items()), documents, empty, chunk.bytes_read)


def _split(text_hash: int, held_out: float) -> str:
    return SPLITS[1] if (text_hash >> 32) < held_out * 2**32 else SPLITS[0]


# ---- stage 2: pack ----


@dataclass(frozen=True)
class _Part:
    """Documents of one language that go into one shard."""

    language: str
    path: Path
    size: Size


@dataclass(frozen=True)
class _Job:
    """One shard for each row length, from one split."""

    split: str
    parts: tuple[_Part, ...]
    folder: Path
    index: int  # within the split

    def file(self, row_length: int) -> str:
        return f"{self.split}_{row_length}-{self.index:05}{SUFFIX}"


def _shard_limit(sizes: Iterable[Size], largest: int) -> int:
    """Tokens of a shard: fewer in a small corpus, or one process would pack it while the others wait.

    It follows from the text alone, not from the number of processes, which must not change the corpus.
    """
    return min(largest, max(sum(size.tokens for size in sizes) // SHARDS_TO_SHARE, LEAST_SHARED))


def _hold_out_enough(spills: _Spills, least: int, run: Run) -> _Spills:
    """Holds out more of the languages that have fewer than `least` held-out documents: the texts with lowest hashes.

    At most a quarter of a language's documents; so a language with less than four keeps them all. A text that is held
    out of one language is held out of every other that has it.
    """
    train = {language: spill for (split, language), spill in spills.items() if split == SPLITS[0]}
    jobs = []
    for language, (path, size) in train.items():
        _, held = spills.get((SPLITS[1], language), (None, Size()))
        quarter = (size.documents + held.documents) // 4
        if held.documents < min(least, quarter):
            jobs.append((path, min(least, quarter) - held.documents, quarter - held.documents))
    hashes = np.unique(np.concatenate([np.empty(0, np.uint64), *run(lowest_hashes, jobs)]))
    if not len(hashes):
        return spills
    new, held_out = dict(spills), {}
    for language, (path, _) in train.items():
        fresh = path.with_name(f"{path.stem}-held_out.tokens"), Size()
        held_out[language] = spills.get((SPLITS[1], language), fresh)
    jobs = [(path, held_out[language][0], hashes) for language, (path, _) in train.items()]
    for language, (kept, moved) in zip(train, run(move_out, jobs), strict=True):
        if not moved:
            continue
        path, size = held_out[language]
        new[SPLITS[1], language] = path, size + moved
        del new[SPLITS[0], language]
        if kept:
            new[SPLITS[0], language] = kept
    return new


def lowest_hashes(job: tuple[Path, int, int]) -> np.ndarray:
    """Of a spill file's documents the lowest hashes that `wanted` documents have, more by equal texts, at most `room`.

    A text of which there are too many copies is passed over.
    """
    path, wanted, room = job
    texts, copies = np.empty(0, np.uint64), np.empty(0, np.int64)
    for hashes in read_hashes(path):
        texts, place = np.unique(np.concatenate([texts, hashes]), return_inverse=True)
        copies = np.bincount(place, np.concatenate([copies, np.ones(len(hashes), np.int64)]))
        texts, copies = texts[: 64 + 4 * wanted], copies[: 64 + 4 * wanted].astype(np.int64)
    chosen, held = [], 0
    for text, count in zip(texts.tolist(), copies.tolist(), strict=True):
        if held < wanted and held + count <= room:
            chosen.append(text)
            held += count
    return np.array(chosen, np.uint64)


def move_out(job: tuple[Path, Path, np.ndarray]) -> tuple[tuple[Path, Size] | None, Size | None]:
    """Moves the documents with these hashes from one spill file to the end of another, unless there are none.

    Returns:
      The file with the others and its size, None if there are none; the size of what was moved, None if nothing was.
    """
    path, target, hashes = job
    if not any(np.isin(block, hashes).any() for block in read_hashes(path)):
        return None, None
    rest = path.with_name(f"{path.stem}-rest.tokens")
    writer = SpillWriter()
    for block in read_blocks(path):
        moved = np.isin(block.hashes, hashes)
        for to, which in ((target, moved), (rest, ~moved)):
            if which.any():
                writer.add(to, block.take(np.flatnonzero(which)))
    writer.flush()
    path.unlink()
    kept = (rest, writer.sizes[rest]) if rest in writer.sizes else None
    return kept, writer.sizes[target]


def _leave_some_to_train_on(spills: _Spills) -> _Spills:
    """Gives a language back what was held out where that is all it has: a few documents, all of them by chance."""
    return {
        ("train", language) if ("train", language) not in spills else (split, language): spill
        for (split, language), spill in spills.items()
    }


def _deal(spills: _Spills, shard_tokens: int, run: Run) -> dict[str, list[_Part]]:
    """Parts of at most about a shard's tokens, by split, in order of their languages."""
    keys = sorted(spills)
    counts = [-(-spills[key][1].tokens // shard_tokens) for key in keys]
    large = [(*spills[key], n) for key, n in zip(keys, counts, strict=True) if n > 1]
    dealt = run(deal_out, large)
    parts: dict[str, list[_Part]] = {split: [] for split in SPLITS}
    for (split, language), n in zip(keys, counts, strict=True):
        pieces = next(dealt) if n > 1 else [spills[split, language]]
        parts[split] += [_Part(language, path, size) for path, size in pieces]
    return parts


def deal_out(job: tuple[Path, Size, int]) -> list[tuple[Path, Size]]:
    """Splits a spill file into `n` by the documents' hashes; removes it."""
    path, _, n = job
    writer = SpillWriter()
    for block in read_blocks(path):
        # The hash's upper half decided the split, so the lower half decides here.
        part = (block.hashes & np.uint64(0xFFFFFFFF)) * np.uint64(n) >> np.uint64(32)
        for i in np.unique(part).tolist():
            writer.add(path.with_suffix(f".{i}"), block.take(np.flatnonzero(part == i)))
    writer.flush()
    path.unlink()
    return sorted(writer.sizes.items(), key=lambda item: int(item[0].suffix[1:]))


def _plan(parts: dict[str, list[_Part]], shard_tokens: int, folder: Path) -> list[_Job]:
    """One job a shard: neighbouring small languages share one, a large language's parts have one each."""
    jobs = []
    for split, of_split in parts.items():
        shards: list[list[_Part]] = []
        tokens = shard_tokens
        for part in of_split:
            if not shards or tokens + part.size.tokens > shard_tokens:
                shards.append([])
                tokens = 0
            shards[-1].append(part)
            tokens += part.size.tokens
        jobs += [_Job(split, tuple(shard), folder, i) for i, shard in enumerate(shards)]
    return jobs


def _pack(jobs: Sequence[_Job], settings: Settings, run: Run) -> dict[str, dict[str, Any]]:
    """Writes the shards; the manifest's `row_lengths`."""
    result: dict[str, dict[str, Any]] = {
        str(length): {split: {"shards": [], "fill": 0.0, "languages": {}} for split in SPLITS}
        for length in settings.row_lengths
    }
    tokens = [sum(part.size.tokens for part in job.parts) for job in jobs]
    progress = Progress("pack    ", sum(tokens))
    shown = {"tokens": 0}
    for job, n, counted in zip(jobs, tokens, run(pack_shards, jobs), strict=True):
        for length, (rows_and_tokens, digest) in counted.items():
            entry = result[str(length)][job.split]
            before = sum(shard["rows"] for shard in entry["shards"])
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
            rows = sum(rows for rows, _ in rows_and_tokens)
            file = job.file(length)
            size = (job.folder / file).stat().st_size
            entry["shards"].append({"file": file, "rows": rows, "digest": digest, "bytes": size})
        shown["tokens"] += n
        progress.advance(n, shown)
    progress.finish(shown)
    for length, splits in result.items():
        for entry in splits.values():
            rows = sum(language["rows"] for language in entry["languages"].values())
            filled = sum(language["tokens"] for language in entry["languages"].values())
            entry["fill"] = round(filled / (rows * int(length)), 6) if rows else 0.0
    return result


def pack_shards(job: _Job) -> dict[int, tuple[list[tuple[int, int]], str]]:
    """Stage 2's job; removes the parts' spill files.

    Returns:
      For each row length, (rows, tokens in them) of each part, and a digest of the shard's records.
    """
    row_lengths = _worker.settings.row_lengths
    writers = {length: ShardWriter(job.folder / job.file(length)) for length in row_lengths}
    counts: dict[int, list[tuple[int, int]]] = {length: [] for length in row_lengths}
    digests = {length: hashlib.blake2b(digest_size=8) for length in row_lengths}
    for part in job.parts:
        documents = read_spill(part.path, part.size)
        part.path.unlink()
        for length, writer in writers.items():
            rows = tokens = 0
            for record, n in packed_rows(documents, length):
                writer.write(record)
                digests[length].update(trained_part(record))
                rows += 1
                tokens += n
            counts[length].append((rows, tokens))
    for writer in writers.values():
        writer.close()
    return {length: (counts[length], digests[length].hexdigest()) for length in row_lengths}


def packed_rows(documents: Documents, row_length: int) -> Iterator[tuple[bytes, int]]:
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
            buffer[at] = BOS
            buffer[at + 1 : at + n] = documents.tokens[first : first + n - 1]
            at += n
            ends.append(at)
        yield encode_row(buffer[:at], np.array(ends), ids[rows[i]]), at
