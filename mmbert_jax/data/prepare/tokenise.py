"""Stage 1: pieces of the input to parts, tokenised documents in order of (split, language)."""

import array
import hashlib
import itertools
import socket
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from mmbert_jax.data.corpus import DOCUMENT_BITS, SPLITS
from mmbert_jax.data.prepare import workers
from mmbert_jax.data.prepare.documents import COLUMNS, Documents
from mmbert_jax.data.prepare.parts import (
    Counts,
    Key,
    Part,
    finished,
    name_pieces,
    read_part,
    write_part,
)
from mmbert_jax.data.prepare.settings import Settings
from mmbert_jax.data.prepare.workers import Run
from mmbert_jax.data.progress import Progress
from mmbert_jax.data.sources import (
    Batch,
    Document,
    Faults,
    Input,
    OtherTokenizer,
    Piece,
    Slice,
    read_slice,
    record_place,
)
from mmbert_jax.data.tokenizer import Tokenizer
from mmbert_jax.data.tokenizer_identity import describe_tokenizer
from mmbert_jax.errors import UserError
from mmbert_jax.places import Place, is_remote


@dataclass(frozen=True)
class _Job:
    piece: Piece
    folder: Place
    name: str


def tokenize(
    pieces: Sequence[Piece],
    run: Run,
    folder: Place,
    tokenizer: Tokenizer,
    settings: Settings,
    tokens_of: OtherTokenizer | None,
) -> list[Part]:
    """The parts of all pieces, in order; those that are finished are not made again.

    Args:
      tokens_of: that of the settings.

    Raises:
      UserError: a bad record, with its place; a text that the tokeniser makes special tokens of.
    """
    decided_by = [describe_tokenizer(tokenizer), asdict(settings.fields), settings.held_out]
    decided_by.append(settings.rules.described())
    if tokens_of is not None:
        decided_by.append(tokens_of.described())
    names = name_pieces(pieces, decided_by)
    there = finished(folder)
    jobs = [
        _Job(piece, folder, name)
        for piece, name in zip(pieces, names, strict=True)
        if name not in there
    ]
    if len(jobs) < len(names):
        print(
            f"{len(names) - len(jobs)} of {len(names)} parts are finished already, in {folder}",
            file=sys.stderr,
        )
    progress = Progress("tokenise", sum(part.size for job in jobs for part in job.piece))
    made = run(tokenize_piece, jobs)
    parts = []
    shown = {"documents": 0, "tokens": 0}
    for name in names:
        if name in there:
            parts.append(read_part(folder, name))
            continue
        part = next(made)
        parts.append(part)
        shown["documents"] += sum(block.size.documents for block in part.blocks.values())
        shown["tokens"] += sum(x.size.tokens - x.size.documents for x in part.blocks.values())
        progress.advance(part.counts.bytes_read, shown)
    progress.finish(shown)
    return parts


def check_documents(parts: Sequence[Part], inputs: Sequence[Input]) -> int:
    """How many documents without text were left out.

    Raises:
      UserError: there is no document, or a language of which no document has text.
    """
    empty: Counter[str] = Counter()
    languages, dropped = set(), set()
    for part in parts:
        empty.update(part.counts.empty)
        languages |= {language for _, language in part.blocks}
        dropped |= part.counts.dropped.keys()
    if dropped and not languages:
        raise UserError(f"{inputs[0].path}: the filters leave no document; loosen them")
    languages |= dropped
    for language in sorted(empty.keys() - languages):
        raise UserError(
            f"language {language!r}: all of its {empty[language]} documents are empty; "
            "remove them or check which field --text_field names"
        )
    if not languages:
        raise UserError(f"{inputs[0].path}: no documents; check --input")
    return empty.total()


def sum_dropped(parts: Sequence[Part]) -> Counter[str]:
    """Why documents were dropped -> how many."""
    found: Counter[str] = Counter()
    for part in parts:
        for reasons in part.counts.dropped.values():
            found.update(reasons)
    return found


def tokenize_piece(job: _Job) -> Part:
    """Stage 1's job; UserError for a bad record, with its place."""
    if not (is_remote(job.folder) or job.folder.is_dir()):
        raise UserError(
            f"{job.folder}: not there on {socket.gethostname()}; where several machines prepare a corpus, it and the"
            " texts have to lie on a disk that all of them see, or in a bucket"
        )
    keys: list[Key] = []
    columns, tokens = [np.empty(0, COLUMNS)], [np.empty(0, np.uint32)]
    empty: Counter[str] = Counter()
    dropped: dict[str, Counter[str]] = {}
    records, bytes_read, faults = [], 0, Faults()
    special = workers.special()
    fields = replace(workers.settings().fields, ends=(special.bos, special.eos))
    for number, part in enumerate(job.piece):
        counted = 0
        workers.note(part.source.path)
        for batch in read_slice(part, fields, workers.tokens_of()):
            found = _tokenize(batch, part, number, keys, empty, dropped)
            columns.append(found.columns)
            tokens.append(found.tokens)
            counted = batch.records
            bytes_read += batch.bytes_read
            faults.merge(batch.faults)
        records.append(counted)
    workers.note(None)
    documents = Documents(np.concatenate(columns), np.concatenate(tokens))
    del columns, tokens
    counts = Counts(
        tuple(records), dict(empty), {x: dict(y) for x, y in dropped.items()}, faults, bytes_read
    )
    return write_part(job.folder, job.name, keys, documents, counts)


def _tokenize(
    batch: Batch,
    part: Slice,
    number: int,
    keys: list[Key],
    empty: Counter[str],
    dropped: dict[str, Counter[str]],
) -> Documents:
    """The documents of a batch of slice `number`; adds their keys, and counts those that are left out."""
    kept = []
    rules = workers.settings().rules
    for document in _rewritten(batch.documents, part):
        tokens = document.tokens
        text = document.text
        if not (len(tokens) if tokens is not None else text and not text.isspace()):
            empty[document.language] += 1
        elif tokens is None and (why := rules.reason_to_drop(text)):
            dropped.setdefault(document.language, Counter())[why] += 1
        else:
            kept.append(document)
    digests = b"".join(hashlib.blake2b(x.utf8, digest_size=8).digest() for x in kept)
    hashes = np.frombuffer(digests, "<u8")
    held = (hashes >> np.uint64(32)) < workers.settings().held_out * 2**32
    keys += [
        (SPLITS[int(out)], document.language)
        for out, document in zip(held.tolist(), kept, strict=True)
    ]
    columns = np.empty(len(kept), COLUMNS)
    columns["id"] = [number << DOCUMENT_BITS | document.number for document in kept]
    columns["hash"] = hashes
    # How long the text of given tokens is is not known.
    columns["text_bytes"] = [len(x.utf8) if x.tokens is None else 0 for x in kept]
    tokens, columns["length"] = _encode(kept)
    wrong = _wrong_id(tokens, columns["length"])
    if wrong is not None:
        where = record_place(part, kept[wrong[0]].number)
        given = kept[wrong[0]].tokens is not None
        raise UserError(
            f"{where}: {'has' if given else f'{workers.tokenizer().path} gives'} the id {wrong[1]} within the "
            f"text, which is a special token's or not below {workers.tokenizer().vocab_size}; remove the text or take "
            f"{'the tokeniser that made these tokens' if given else 'another tokeniser'}"
        )
    return Documents(columns, tokens)


def _rewritten(documents: list[Document], part: Slice) -> list[Document]:
    """The documents as the rules want their texts."""
    rules = workers.settings().rules
    if not rules.described():
        return documents
    found = []
    for document in documents:
        if document.tokens is not None:
            raise UserError(
                f"{record_place(part, document.number)}: holds tokens, no text, and can be neither normalised nor "
                "filtered; leave these options out, or name the field with the text with --text_field"
            )
        text = rules.rewrite(document.text)
        if text != document.text:
            document = document._replace(text=text, utf8=text.encode())
        found.append(document)
    return found


def _encode(documents: Sequence[Document]) -> tuple[np.ndarray, list[int]]:
    """Tokens of documents end to end, uint32, each with its <eos>, and their numbers; given ones as they are."""
    eos = workers.special().eos
    if documents and documents[0].tokens is not None:  # all of one slice are alike
        end = np.array([eos], np.uint32)
        given = [part for document in documents for part in (document.tokens, end)]
        return np.concatenate(given), [len(tokens) + 1 for tokens in given[::2]]
    encoded = workers.tokenizer().encode_batch([document.text for document in documents])
    for ids in encoded:
        ids.append(eos)
    # array takes Python ints at 25 ns each, NumPy at 65: a tenth of the tokeniser's own time.
    tokens = np.frombuffer(array.array("I", itertools.chain.from_iterable(encoded)), np.uint32)
    return tokens, [len(ids) for ids in encoded]


def _wrong_id(tokens: np.ndarray, lengths: np.ndarray) -> tuple[int, int] | None:
    """(document, id) where an id is one that no embedding has a row for, or that ends a document in its midst."""
    special = tokens >= workers.tokenizer().vocab_size
    for start, stop in workers.special().never_in_texts():
        special |= (tokens >= start) & (tokens < stop) if start else tokens < stop
    if np.count_nonzero(special) == len(lengths):  # each document's <eos>
        return None
    ends = np.cumsum(lengths)
    special[ends - 1] = False
    at = int(np.flatnonzero(special)[0])
    return int(np.searchsorted(ends, at, side="right")), int(tokens[at])
