"""Stage 1: chunks of text to tokenised documents in spill files, one for each (split, language)."""

import array
import hashlib
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmbert_jax.data.corpus import SPLITS, document_id
from mmbert_jax.data.prepare import workers
from mmbert_jax.data.prepare.workers import Run
from mmbert_jax.data.progress import Progress
from mmbert_jax.data.sources import Chunk, Document, Input, parse_chunk, read_chunks
from mmbert_jax.data.spill import Documents, Size, SpillWriter
from mmbert_jax.errors import UserError

# (split, language) -> the file of its tokenised documents, and what is in it
Spills = dict[tuple[str, str], tuple[Path, Size]]


@dataclass(frozen=True)
class _Tokenized:
    """A chunk's documents in order of (split, language); `keys` has the number of documents of each such pair."""

    keys: list[tuple[tuple[str, str], int]]
    documents: Documents
    empty: Counter[str]  # language -> documents without text
    bytes_read: int


def tokenize(inputs: Sequence[Input], run: Run, folder: Path) -> tuple[Spills, dict[str, int]]:
    """Spill file and its size for each (split, language), and the corpus's totals."""
    progress = Progress("tokenise", sum(item.size for item in inputs))
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
    settings = workers.settings()
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
    encoded = workers.tokenizer().encode_batch([document.text for document in kept])
    eos = workers.special().eos
    for ids in encoded:
        ids.append(eos)
    lengths = np.array([len(ids) for ids in encoded], np.int64)
    # array takes Python ints at 25 ns each, NumPy at 65: a tenth of the tokeniser's own time.
    tokens = np.frombuffer(array.array("I", itertools.chain.from_iterable(encoded)), np.uint32)
    _check_ids(tokens, lengths, kept, chunk)
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


def _check_ids(
    tokens: np.ndarray, lengths: np.ndarray, documents: Sequence[Document], chunk: Chunk
) -> None:
    """UserError for an id that no embedding has a row for, or that ends a document in its midst."""
    size = workers.tokenizer().vocab_size
    special = tokens >= size
    for start, stop in workers.special().never_in_texts():
        special |= (tokens >= start) & (tokens < stop) if start else tokens < stop
    if np.count_nonzero(special) == len(lengths):  # each document's <eos>
        return
    special[np.cumsum(lengths) - 1] = False
    at = int(np.flatnonzero(special)[0])
    document = documents[int(np.searchsorted(np.cumsum(lengths), at, side="right"))]
    source = chunk.inputs[document.input_index - chunk.first_input]
    raise UserError(
        f"{source.path}, line {document.number}: {workers.tokenizer().path} gives the id {int(tokens[at])} within the "
        f"text, which is a special token's or not below {size}; remove the text or take another tokeniser"
    )
