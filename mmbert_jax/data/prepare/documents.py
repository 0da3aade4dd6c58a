"""Tokenised documents in arrays."""

from dataclasses import dataclass

import numpy as np

# What is known of a document besides its tokens. `id` is that of corpus.document_id, or what becomes one (parts.py).
COLUMNS = np.dtype([("id", "<u8"), ("hash", "<u8"), ("text_bytes", "<i8"), ("length", "<i8")])
_LOWER = np.uint64(0xFFFFFFFF)


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

    def __sub__(self, other: "Size") -> "Size":
        return Size(
            self.documents - other.documents,
            self.tokens - other.tokens,
            self.text_bytes - other.text_bytes,
        )


@dataclass(frozen=True)
class Documents:
    """Tokenised documents, their tokens end to end, each with its <eos>."""

    columns: (
        np.ndarray
    )  # COLUMNS [n]; hash: of the text; text_bytes: in UTF-8; length: in tokens, <eos> included
    tokens: np.ndarray  # uint32 [sum of lengths]

    def take(self, which: np.ndarray) -> "Documents":
        """The documents with these indices, int [m], copied."""
        lengths = self.columns["length"]
        starts = np.cumsum(lengths) - lengths
        tokens = [
            self.tokens[a : a + n]
            for a, n in zip(starts[which].tolist(), lengths[which].tolist(), strict=True)
        ]
        return Documents(self.columns[which], np.concatenate([self.tokens[:0], *tokens]))


def size_of(columns: np.ndarray) -> Size:
    return Size(len(columns), int(columns["length"].sum()), int(columns["text_bytes"].sum()))


def place_of(hashes: np.ndarray) -> np.ndarray:
    """By what documents are dealt out, uint64 below 2^32: the upper half of a hash has decided the split."""
    return hashes & _LOWER
