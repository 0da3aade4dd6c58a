"""More held-out documents of languages whose share of them is next to nothing; and never all of a language."""

from pathlib import Path

import numpy as np

from mmbert_jax.data.corpus import SPLITS
from mmbert_jax.data.prepare.tokenise import Spills
from mmbert_jax.data.prepare.workers import Run
from mmbert_jax.data.spill import Size, SpillWriter, read_blocks, read_hashes


def hold_out_enough(spills: Spills, least: int, run: Run) -> Spills:
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


def leave_some_to_train_on(spills: Spills) -> Spills:
    """Gives a language back what was held out where that is all it has: a few documents, all of them by chance."""
    return {
        ("train", language) if ("train", language) not in spills else (split, language): spill
        for (split, language), spill in spills.items()
    }
