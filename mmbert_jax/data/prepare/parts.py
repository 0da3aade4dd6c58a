"""The finished parts of a preparation: of each piece of the input one file of tokenised documents and its index.

They lie in a folder of their own beside the corpus, on a disk that all processes see or in a bucket. A part's name is a
digest of all that decides what is in it, so one that is there is finished, whoever has made it, and need not be made
again: after an interruption, or when inputs are added.

NAME.tokens: one block after another, each of one (split, language): COLUMNS [documents], then uint32 [tokens], of
documents in the order of `place_of` their hashes. So what is dealt out together lies together. A document's id is the
number of its slice in the piece, above DOCUMENT_BITS, and its number in that slice.
NAME.index, written last: JSON, see Part.
NAME.kept: where duplicates are dropped, a byte for each document of NAME.tokens, 0 for what is dropped. It depends on
all of the parts, and so is written in each run.
"""

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mmbert_jax import buckets
from mmbert_jax.data.corpus import DOCUMENT_BITS
from mmbert_jax.data.prepare.documents import COLUMNS, Documents, Size, place_of, size_of
from mmbert_jax.data.sources import Faults, Input, Piece
from mmbert_jax.errors import UserError
from mmbert_jax.files import atomic_file, naming, read_json, try_lock
from mmbert_jax.places import Place, absolute, files_under, is_remote, label, version

Key = tuple[str, str]  # split, language
_VERSION = 2
_SHIFT, _NUMBER = np.uint64(DOCUMENT_BITS), np.uint64((1 << DOCUMENT_BITS) - 1)
_TOKENS, _INDEX, _KEPT = ".tokens", ".index", ".kept"
_OURS = re.compile(rf"[0-9a-f]{{32}}({_TOKENS}|{_INDEX}|{_KEPT})|(corpus|duplicates)(/.*)?|\..*")


@dataclass(frozen=True)
class Block:
    """The documents of one (split, language) in a part.

    Attributes:
      part: its name.
      offset: of its first byte.
      size: of what is there.
      kept: of what is there without what is dropped; None where nothing is.
      kept_at: where its documents begin among those of the part.
    """

    part: str
    offset: int
    size: Size
    kept: Size | None = None
    kept_at: int = 0


@dataclass(frozen=True)
class Counts:
    """What was read for a part.

    Attributes:
      records: of each slice of the piece, how many it has, with those that are no documents.
      empty: language -> documents without text, which are left out.
      dropped: language -> why -> documents that the rules drop.
      faults: of records that were passed over.
      bytes_read: of the inputs as they are stored.
    """

    records: tuple[int, ...]
    empty: dict[str, int]
    dropped: dict[str, dict[str, int]]
    faults: Faults
    bytes_read: int


@dataclass(frozen=True)
class Part:
    """What a part holds."""

    name: str
    blocks: dict[Key, Block]
    counts: Counts


def parts_folder(output: Place) -> Place:
    found = absolute(output)
    return found.with_name(f"{found.name}.parts")


@contextmanager
def kept_parts(folder: Place, keep: bool) -> Iterator[None]:
    """Makes the folder, and removes it when the block ends well, unless it is to be kept.

    What a block has finished that does not end well stays, and the user is told.

    Raises:
      UserError: there is such a folder with something else in it, or another process of this machine is at work in it.
    """
    for path in files_under(folder) if folder.exists() else ():
        name = str(path)[len(str(folder)) + 1 :]
        if not _OURS.fullmatch(name):
            raise UserError(
                f"{folder}: the finished parts of the corpus were to lie here, but it holds {name};"
                " move it, or name another output folder"
            )
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        try:
            yield
        except BaseException:
            if any(read_part(folder, name).blocks for name in sorted(finished(folder))):
                print(
                    f"what is finished is kept in {folder}; the same command goes on behind it",
                    file=sys.stderr,
                )
            else:
                remove_parts(folder)
            raise
        if not keep:
            remove_parts(folder)


@contextmanager
def _locked(folder: Place) -> Iterator[None]:
    if is_remote(folder):
        yield
        return
    lock = os.open(folder, os.O_RDONLY)
    try:
        if try_lock(lock) is False:
            raise UserError(
                f"{folder}: another process is at work here; wait for it, or name another output folder"
            )
        yield
    finally:
        os.close(lock)


def remove_parts(folder: Place) -> None:
    if is_remote(folder):
        buckets.remove(files_under(folder))
    else:
        shutil.rmtree(folder, ignore_errors=True)


def name_pieces(pieces: Sequence[Piece], decided_by: Any) -> list[str]:
    """Of each piece the name of its part: a digest of the inputs as they are now, and of what else decides it."""
    inputs = {part.input_index: part.source for piece in pieces for part in piece}
    with ThreadPoolExecutor(32) as pool:
        versions = dict(zip(inputs, pool.map(_version, inputs.values()), strict=True))

    def name(piece: Piece) -> str:
        read = []
        for x in piece:
            source = x.source
            read += [label(source.path), versions[x.input_index], source.language]
            read += [source.format, source.split, source.number]
            read += [x.start, x.stop, x.stripe, x.stripes]
        text = json.dumps([_VERSION, decided_by, read]).encode("utf-8", "surrogatepass")
        return hashlib.blake2b(text, digest_size=16).hexdigest()

    return [name(piece) for piece in pieces]


def _version(source: Input) -> tuple[int, str]:
    """What changes with a file's content."""
    return source.size, version(source.path)


def finished(folder: Place) -> set[str]:
    """The names of the parts that need not be made."""
    return {path.stem for path in files_under(folder) if path.suffix == _INDEX}


def write_part(
    folder: Place, name: str, keys: Sequence[Key], documents: Documents, counts: Counts
) -> Part:
    """Writes the documents, of which each has its key, in order of keys; whole, or not at all."""
    ranks = {key: i for i, key in enumerate(sorted(set(keys)))}
    key_of = np.array([ranks[key] for key in keys], np.int64)
    columns = documents.columns
    order = np.lexsort((columns["id"], place_of(columns["hash"]), key_of))
    ends = np.searchsorted(key_of[order], np.arange(len(ranks)), "right")
    blocks, offset, first = {}, 0, 0
    with atomic_file(folder / f"{name}{_TOKENS}", "wb") as file:
        for key, end in zip(ranks, ends.tolist(), strict=True):
            block = documents.take(order[first:end])
            size = size_of(block.columns)
            file.write(block.columns.tobytes())
            file.write(block.tokens.tobytes())
            blocks[key] = Block(name, offset, size)
            offset += COLUMNS.itemsize * size.documents + 4 * size.tokens
            first = end
    part = Part(name, blocks, counts)
    with atomic_file(folder / f"{name}{_INDEX}") as file:
        json.dump(_to_json(part), file)
    return part


def read_part(folder: Place, name: str) -> Part:
    """What a finished part holds.

    Raises:
      UserError: its index is damaged.
    """
    path = folder / f"{name}{_INDEX}"
    value = read_json(path)
    try:
        return Part(
            name,
            {
                (split, language): Block(name, offset, Size(*size))
                for split, language, offset, *size in value["blocks"]
            },
            Counts(
                tuple(value["records"]),
                value["empty"],
                value["dropped"],
                Faults(**value["faults"]),
                value["bytes_read"],
            ),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); remove {folder} and start again") from None


def _to_json(part: Part) -> dict[str, Any]:
    blocks = [
        [*key, x.offset, x.size.documents, x.size.tokens, x.size.text_bytes]
        for key, x in part.blocks.items()
    ]
    return {"blocks": blocks} | asdict(part.counts)


def first_ids(pieces: Sequence[Piece], parts: Iterable[Part]) -> dict[str, np.ndarray]:
    """Part -> for each of its slices what has to be added to a number for the document's id, uint64."""
    found, records = {}, 0
    for piece, part in zip(pieces, parts, strict=True):
        first = []
        for x, counted in zip(piece, part.counts.records, strict=True):
            records = 0 if x.is_counted else records
            first.append((x.input_index << DOCUMENT_BITS) + records)
            records += counted
        found[part.name] = np.array(first, np.uint64)
    return found


def corpus_ids(ids: np.ndarray, first: np.ndarray) -> np.ndarray:
    """A part's documents' ids in the corpus, uint64, from those in the part; `first` as in `first_ids`."""
    return first[ids >> _SHIFT] + (ids & _NUMBER)


def write_kept(folder: Place, name: str, kept: np.ndarray) -> None:
    """Writes which documents of a part are kept, bool [documents], in order of its blocks."""
    with atomic_file(folder / f"{name}{_KEPT}", "wb") as file:
        file.write(kept.tobytes())


def read_kept(folder: Place, block: Block, documents: tuple[int, int]) -> np.ndarray:
    """Which of a range of a block's documents are kept, bool."""
    first, last = documents
    if block.kept is None:
        return np.ones(last - first, bool)
    path = folder / f"{block.part}{_KEPT}"
    return np.frombuffer(read_range(path, block.kept_at + first, last - first), bool)


def read_columns(folder: Place, block: Block) -> np.ndarray:
    """COLUMNS [documents] of a block, of those that are dropped, too."""
    return _read(folder, block, block.offset, block.size.documents, COLUMNS)


def read_documents(
    folder: Place, block: Block, documents: tuple[int, int], tokens: tuple[int, int]
) -> Documents:
    """A range of a block's documents, and of its tokens, which have to be theirs."""
    at = block.offset + COLUMNS.itemsize * documents[0]
    columns = _read(folder, block, at, documents[1] - documents[0], COLUMNS)
    at = block.offset + COLUMNS.itemsize * block.size.documents + 4 * tokens[0]
    return Documents(columns, _read(folder, block, at, tokens[1] - tokens[0], np.dtype("<u4")))


def _read(folder: Place, block: Block, at: int, n: int, dtype: np.dtype) -> np.ndarray:
    path = folder / f"{block.part}{_TOKENS}"
    what = "remove it and the .index beside it, and start again"
    return np.frombuffer(read_range(path, at, n * dtype.itemsize, what), dtype)


def read_range(path: Place, at: int, n: int, what_to_do: str = "start again") -> bytes:
    """n bytes of a file; UserError where it has fewer."""
    with naming(path):
        if is_remote(path):
            data = buckets.read_range(path, at, at + n)
        else:
            with path.open("rb") as file:
                file.seek(at)
                data = file.read(n)
    if len(data) != n:
        raise UserError(f"{path} is truncated; {what_to_do}")
    return data
