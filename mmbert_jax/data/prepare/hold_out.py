"""More held-out documents of languages whose share of them is next to nothing; and never all of a language."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from mmbert_jax.data.corpus import SPLITS
from mmbert_jax.data.prepare.documents import Size, size_of
from mmbert_jax.data.prepare.parts import Block, Key, Part, read_columns, read_kept
from mmbert_jax.data.prepare.workers import Run
from mmbert_jax.places import Place


@dataclass(frozen=True)
class Share:
    """Documents of a block: all of them, those that were moved to the other split, or the rest."""

    block: Block
    which: Literal["all", "moved", "rest"]
    size: Size


Shares = dict[Key, list[Share]]  # of each (split, language), in order of the parts


def shares_of(parts: list[Part]) -> Shares:
    """What the parts hold that is kept, as the documents' hashes decided it."""
    found: Shares = {}
    for part in parts:
        for key, block in part.blocks.items():
            size = block.size if block.kept is None else block.kept
            found.setdefault(key, []).append(Share(block, "all", size))
    return found


def total(shares: list[Share]) -> Size:
    return sum((share.size for share in shares), Size())


def hold_out_enough(
    shares: Shares, least: int, run: Run, folder: Place
) -> tuple[Shares, np.ndarray]:
    """Holds out more of the languages that have fewer than `least` held-out documents: the texts with lowest hashes.

    At most a quarter of a language's documents; so a language with less than four keeps them all. A text that is held
    out of one language is held out of every other that has it.

    Returns:
      What the splits then hold, and the hashes, uint64, of the texts that were moved to the held-out ones.
    """
    train = {
        language: of_train for (split, language), of_train in shares.items() if split == SPLITS[0]
    }
    jobs = []
    for language, of_train in train.items():
        held = total(shares.get((SPLITS[1], language), [])).documents
        quarter = (total(of_train).documents + held) // 4
        if held < min(least, quarter):
            blocks = tuple(share.block for share in of_train)
            jobs.append((folder, blocks, min(least, quarter) - held, quarter - held))
    hashes = np.unique(np.concatenate([np.empty(0, np.uint64), *run(lowest_hashes, jobs)]))
    if not len(hashes):
        return shares, hashes
    new = dict(shares)
    jobs = [
        (folder, tuple(share.block for share in of_train), hashes) for of_train in train.values()
    ]
    for (language, of_train), sizes in zip(train.items(), run(moved_sizes, jobs), strict=True):
        if not any(size.documents for size in sizes):
            continue
        moved, rest = [], []
        for share, size in zip(of_train, sizes, strict=True):
            if not size.documents:
                rest.append(share)
                continue
            moved.append(Share(share.block, "moved", size))
            left = share.size - size
            if left.documents:
                rest.append(Share(share.block, "rest", left))
        new[SPLITS[1], language] = [*shares.get((SPLITS[1], language), []), *moved]
        del new[SPLITS[0], language]
        if rest:
            new[SPLITS[0], language] = rest
    return new, hashes


def lowest_hashes(job: tuple[Place, tuple[Block, ...], int, int]) -> np.ndarray:
    """Of a language's documents the lowest hashes that `wanted` documents have, more by equal texts, at most `room`.

    A text of which there are too many copies is passed over.
    """
    folder, blocks, wanted, room = job
    texts, copies = np.empty(0, np.uint64), np.empty(0, np.int64)
    for block in blocks:
        hashes = _kept_columns(folder, block)["hash"]
        texts, place = np.unique(np.concatenate([texts, hashes]), return_inverse=True)
        copies = np.bincount(place, np.concatenate([copies, np.ones(len(hashes), np.int64)]))
        texts, copies = texts[: 64 + 4 * wanted], copies[: 64 + 4 * wanted].astype(np.int64)
    chosen, held = [], 0
    for text, count in zip(texts.tolist(), copies.tolist(), strict=True):
        if held < wanted and held + count <= room:
            chosen.append(text)
            held += count
    return np.array(chosen, np.uint64)


def moved_sizes(job: tuple[Place, tuple[Block, ...], np.ndarray]) -> list[Size]:
    """Of each block the size of the documents with these hashes."""
    folder, blocks, hashes = job
    found = []
    for block in blocks:
        columns = _kept_columns(folder, block)
        found.append(size_of(columns[np.isin(columns["hash"], hashes)]))
    return found


def _kept_columns(folder: Place, block: Block) -> np.ndarray:
    return read_columns(folder, block)[read_kept(folder, block, (0, block.size.documents))]


def leave_some_to_train_on(shares: Shares) -> Shares:
    """Gives a language back what was held out where that is all it has: a few documents, all of them by chance."""
    return {
        (SPLITS[0], language) if (SPLITS[0], language) not in shares else (split, language): of_key
        for (split, language), of_key in shares.items()
    }
