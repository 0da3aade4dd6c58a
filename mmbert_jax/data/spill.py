"""Tokenised documents on their way through a temporary folder: too many for memory, too many languages for open files.

A spill file is a sequence of blocks. Block: int64 [2] (documents n, tokens t), uint64 ids [n], uint64 hashes [n],
int64 text bytes [n], int64 lengths [n], uint32 tokens [t], in the machine's byte order.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

BUFFER_BYTES = 1 << 26
COLUMNS = (np.uint64, np.uint64, np.int64, np.int64)


@dataclass(frozen=True)
class Documents:
    """Tokenised documents, their tokens end to end, each with its <eos>."""

    ids: np.ndarray  # uint64 [n], see corpus.document_id
    hashes: np.ndarray  # uint64 [n], of the text
    text_bytes: np.ndarray  # int64 [n], the text's length in UTF-8
    lengths: np.ndarray  # int64 [n], tokens including <eos>
    tokens: np.ndarray  # uint32 [sum of lengths]

    def part(self, start: int, stop: int) -> "Documents":
        """Documents start to stop, as views."""
        first = int(self.lengths[:start].sum())
        return Documents(
            self.ids[start:stop],
            self.hashes[start:stop],
            self.text_bytes[start:stop],
            self.lengths[start:stop],
            self.tokens[first : first + int(self.lengths[start:stop].sum())],
        )

    def take(self, which: np.ndarray) -> "Documents":
        """The documents with these indices, int [m], copied."""
        starts = np.cumsum(self.lengths) - self.lengths
        tokens = [
            self.tokens[a : a + n]
            for a, n in zip(starts[which].tolist(), self.lengths[which].tolist(), strict=True)
        ]
        return Documents(
            self.ids[which],
            self.hashes[which],
            self.text_bytes[which],
            self.lengths[which],
            np.concatenate([self.tokens[:0], *tokens]),
        )

    def size(self) -> "Size":
        return Size(len(self.ids), int(self.lengths.sum()), int(self.text_bytes.sum()))


@dataclass(frozen=True)
class Size:
    documents: int = 0
    tokens: int = 0  # including one <eos> per document
    text_bytes: int = 0

    def __add__(self, other: "Size") -> "Size":
        return Size(
            self.documents + other.documents,
            self.tokens + other.tokens,
            self.text_bytes + other.text_bytes,
        )


class SpillWriter:
    """Appends to many files at once, of which none stays open; holds at most about BUFFER_BYTES.

    Each key's documents keep the order in which they were added.
    """

    def __init__(self) -> None:
        self.sizes: dict[Path, Size] = {}
        self._waiting: dict[Path, list[bytes]] = {}
        self._bytes = 0

    def add(self, path: Path, documents: Documents) -> None:
        self.sizes[path] = self.sizes.get(path, Size()) + documents.size()
        arrays = (
            documents.ids,
            documents.hashes,
            documents.text_bytes,
            documents.lengths,
            documents.tokens,
        )
        header = np.array([len(documents.ids), len(documents.tokens)], np.int64)
        block = b"".join(array.tobytes() for array in (header, *arrays))
        self._waiting.setdefault(path, []).append(block)
        self._bytes += len(block)
        if self._bytes >= BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        for path, blocks in self._waiting.items():
            with path.open("ab") as file:
                file.writelines(blocks)
        self._waiting.clear()
        self._bytes = 0


def read_blocks(path: Path) -> Iterator[Documents]:
    """The blocks of a spill file, one at a time."""
    with path.open("rb") as file:
        while header := file.read(16):
            n, tokens = np.frombuffer(header, np.int64).tolist()
            columns = [np.frombuffer(file.read(8 * n), dtype) for dtype in COLUMNS]
            yield Documents(*columns, np.frombuffer(file.read(4 * tokens), np.uint32))


def read_hashes(path: Path) -> Iterator[np.ndarray]:
    """The documents' hashes alone, uint64, a block at a time."""
    with path.open("rb") as file:
        while header := file.read(16):
            n, tokens = np.frombuffer(header, np.int64).tolist()
            file.seek(8 * n, os.SEEK_CUR)
            yield np.frombuffer(file.read(8 * n), np.uint64)
            file.seek(8 * n * (len(COLUMNS) - 2) + 4 * tokens, os.SEEK_CUR)


def read_spill(path: Path, size: Size) -> Documents:
    """A whole spill file of known size, in one piece."""
    columns = [np.empty(size.documents, dtype) for dtype in COLUMNS]
    whole = Documents(*columns, np.empty(size.tokens, np.uint32))
    document = token = 0
    for block in read_blocks(path):
        n, t = len(block.ids), len(block.tokens)
        whole.ids[document : document + n] = block.ids
        whole.hashes[document : document + n] = block.hashes
        whole.text_bytes[document : document + n] = block.text_bytes
        whole.lengths[document : document + n] = block.lengths
        whole.tokens[token : token + t] = block.tokens
        document, token = document + n, token + t
    if (document, token) != (size.documents, size.tokens):
        raise OSError(f"{path}: {document} documents where {size.documents} were written")
    return whole
