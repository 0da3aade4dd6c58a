"""Inputs cut into pieces: what one process reads by itself, whoever it is and whatever else is read.

How a file is cut follows from the file alone. So pieces that were finished stay so when other files are added, and
nothing depends on the number of processes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mmbert_jax.data.sources.inputs import Input

# Bytes of a file that are read at a time: a process holds the tokens of so much text twice. A smaller file is cut into
# as many pieces as a machine has cores, unless they would be no work at all; smaller files still share a piece.
LARGEST, LEAST = 1 << 25, 1 << 21
_PIECES = 64
# A sequential file has no place to begin at but its start: each of its pieces reads all of it and takes every n-th
# batch. Reading is some hundredths of a tokeniser's work, so that a few are worth it.
_STRIPES, _STRIPED = 4, 1 << 23


@dataclass(frozen=True)
class Slice:
    """A part of an input.

    Attributes:
      input_index: of the input in the list of all.
      start, stop: of plain JSONL the bytes in which its lines begin.
      stripe, stripes: of all batches of sequential JSONL those of which the number leaves `stripe` behind; of what has
        rows, this of so many equal ranges.
      size: bytes of the input, as they are stored, that this is the reading of.
      several: whether a record of it may be several documents, which are then numbered instead.
    """

    input_index: int
    source: Input
    start: int
    stop: int
    size: int
    stripe: int = 0
    stripes: int = 1
    several: bool = False

    @property
    def is_counted(self) -> bool:
        """Whether its records are numbered from the file's beginning, not from its own."""
        if self.several:
            return self.stripe == 0
        return self.source.format != "jsonl" or self.start == 0 or self.stripes > 1


Piece = tuple[Slice, ...]


def split(inputs: Sequence[Input], several: bool = False) -> list[Piece]:
    """All of the inputs, in order, in pieces.

    Args:
      several: whether a row of MDS may be several documents.
    """
    pieces = _split(inputs)
    if not several:
        return pieces
    return [tuple(replace(x, several=x.source.format == "mds") for x in piece) for piece in pieces]


def _split(inputs: Sequence[Input]) -> list[Piece]:
    pieces: list[Piece] = []
    waiting: list[Slice] = []
    size = 0  # of those that wait
    for index, source in enumerate(inputs):
        if source.size >= LEAST:
            if waiting:
                pieces.append(tuple(waiting))
                waiting, size = [], 0
            pieces += [(part,) for part in _slices(index, source)]
            continue
        waiting.append(whole(index, source))
        size += source.size
        if size >= LEAST:
            pieces.append(tuple(waiting))
            waiting, size = [], 0
    return pieces + ([tuple(waiting)] if waiting else [])


def whole(index: int, source: Input) -> Slice:
    return Slice(index, source, 0, source.size, source.size)


def _stripes(index: int, source: Input, n: int) -> list[Slice]:
    return [Slice(index, source, 0, source.size, source.size // n, i, n) for i in range(n)]


def _slices(index: int, source: Input) -> list[Slice]:
    if source.format == "text":
        return [whole(index, source)]
    if source.format != "jsonl":
        return _stripes(index, source, -(-source.size // LARGEST))
    if source.sequential:
        return _stripes(index, source, min(_STRIPES, -(-source.size // _STRIPED)))
    step = min(max(source.size // _PIECES, LEAST), LARGEST)
    starts = range(0, source.size, step)
    ends = [*starts[1:], source.size]
    return [
        Slice(index, source, start, stop, stop - start)
        for start, stop in zip(starts, ends, strict=True)
    ]
