"""Exact duplicates: of the documents with one hash the first in order of the inputs is kept, whatever its language.

Texts are compared by the 64 bits that also decide a document's split. Among 10^10 different texts 10^20 / 2 / 2^64,
some 3 pairs, have the same ones by chance: 3 documents are lost, against 80 GB for hashes twice as long.

No process sees all hashes. Groups of parts write theirs in order of ranges of hashes; who has a range reads it of every
group and says which documents are not the first; and each group makes a mask of its parts' documents of that. So a
process has a group's columns, or a range's, and there are as many requests as groups times ranges: of 10^10 documents,
5,000 times 1,200. Groups and ranges follow from the parts, not from who does the work.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mmbert_jax.data.prepare.documents import place_of, size_of
from mmbert_jax.data.prepare.parts import (
    Block,
    Key,
    Part,
    corpus_ids,
    read_columns,
    read_range,
    remove_parts,
    write_kept,
)
from mmbert_jax.data.prepare.workers import Run
from mmbert_jax.files import atomic_file
from mmbert_jax.places import Place, is_remote

FOLDER = "duplicates"
_GROUP = 64  # parts
# Documents of a range. Sorting them takes some 60 bytes each.
_RANGE = 1 << 23
_KEY = np.dtype([("hash", "<u8"), ("id", "<u8")])

# Part, and of each of its slices what has to be added to a number for the document's id.
_Group = tuple[tuple[Part, np.ndarray], ...]


def drop_duplicates(
    parts: Sequence[Part], first_ids: dict[str, np.ndarray], run: Run, folder: Place
) -> tuple[list[Part], int]:
    """The parts without duplicates, and how many there were.

    Args:
      first_ids: see `parts.first_ids`.
      folder: where the parts lie; masks of their documents are written there.
    """
    keyed = [(part, first_ids[part.name]) for part in parts]
    groups: list[_Group] = [tuple(keyed[i : i + _GROUP]) for i in range(0, len(keyed), _GROUP)]
    documents = sum(block.size.documents for part in parts for block in part.blocks.values())
    n = -(-documents // _RANGE)
    within = folder / FOLDER
    if not is_remote(within):
        within.mkdir(exist_ok=True)
    # [groups, n + 1]: where each range begins in what a group has written
    bounds = np.array(list(run(write_keys, [(folder, i, x, n) for i, x in enumerate(groups)])))
    jobs = [(within, i, bounds[:, i : i + 2]) for i in range(n)]
    dropped = sum(run(find_repeats, jobs), np.zeros(len(groups), np.int64))
    # [groups, n + 1]: and where each group's documents in what was said of a range
    said = np.cumsum(np.concatenate([np.zeros((1, n), int), np.diff(bounds, axis=1)]), axis=0)
    jobs = [(folder, group, n, said[i : i + 2]) for i, group in enumerate(groups) if dropped[i]]
    masked = run(write_masks, jobs)
    found = []
    for group, count in zip(groups, dropped.tolist(), strict=True):
        found += next(masked) if count else [part for part, _ in group]
    remove_parts(within)
    return found, int(dropped.sum())


def write_keys(job: tuple[Place, int, _Group, int]) -> np.ndarray:
    """Writes a group's hashes and ids in order of ranges; where each range begins, int [n + 1]."""
    folder, number, group, n = job
    keys = []
    for part, first in group:
        for block in part.blocks.values():
            columns = read_columns(folder, block)
            key = np.empty(len(columns), _KEY)
            key["hash"] = columns["hash"]
            key["id"] = corpus_ids(columns["id"], first)
            keys.append(key)
    found = np.concatenate([np.empty(0, _KEY), *keys])
    order, bounds = _in_ranges(found["hash"], n)
    with atomic_file(_keys_file(folder / FOLDER, number), "wb") as file:
        file.write(found[order].tobytes())
    return bounds


def find_repeats(job: tuple[Place, int, np.ndarray]) -> np.ndarray:
    """Writes which documents of a range are not the first with their hash; how many each group has, int [groups].

    Args:
      job: a folder, the range's number, and where the range begins and ends in each group's file, [groups, 2].
    """
    folder, number, bounds = job
    size = _KEY.itemsize
    keys = np.concatenate(
        [
            np.frombuffer(
                read_range(_keys_file(folder, i), start * size, (stop - start) * size), _KEY
            )
            for i, (start, stop) in enumerate(bounds.tolist())
        ]
    )
    order = np.lexsort((keys["id"], keys["hash"]))
    hashes, ids = keys["hash"][order], keys["id"][order]
    new = np.concatenate([[True], hashes[1:] != hashes[:-1]])
    # A document that is to be repeated is there several times, with one id.
    first = ids[np.flatnonzero(new)][np.cumsum(new) - 1]
    repeated = np.empty(len(keys), bool)
    repeated[order] = ids != first
    with atomic_file(_repeats_file(folder, number), "wb") as file:
        file.write(repeated.tobytes())
    sizes = bounds[:, 1] - bounds[:, 0]
    of_group = np.repeat(np.arange(len(bounds)), sizes)
    return np.bincount(of_group[repeated], minlength=len(bounds))


def write_masks(job: tuple[Place, _Group, int, np.ndarray]) -> list[Part]:
    """Writes masks of the documents that are kept of a group's parts; the parts as they are then.

    Args:
      job: a folder, the group, the number of ranges, and where the group begins and ends in each, [2, n].
    """
    folder, group, n, said = job
    blocks = [block for part, _ in group for block in part.blocks.values()]
    columns = [read_columns(folder, block) for block in blocks]
    order, _ = _in_ranges(np.concatenate([x["hash"] for x in columns]), n)
    repeated = np.empty(len(order), bool)
    repeated[order] = np.concatenate(
        [
            np.frombuffer(read_range(_repeats_file(folder / FOLDER, i), start, stop - start), bool)
            for i, (start, stop) in enumerate(said.T.tolist())
        ]
    )
    found, at, document = [], 0, 0
    for part, _ in group:
        blocks_left: dict[Key, Block] = {}
        masks = [np.empty(0, bool)]
        for key, block in part.blocks.items():
            mask = ~repeated[document : document + len(columns[at])]
            size = size_of(columns[at][mask])
            if size.documents:
                blocks_left[key] = replace(block, kept=size, kept_at=sum(map(len, masks)))
            masks.append(mask)
            document, at = document + len(mask), at + 1
        write_kept(folder, part.name, np.concatenate(masks))
        found.append(replace(part, blocks=blocks_left))
    return found


def _in_ranges(hashes: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The order of hashes by which of n ranges they are in, and where each begins, int [n + 1]."""
    of = place_of(hashes) * np.uint64(n) >> np.uint64(32)
    order = np.argsort(of, kind="stable")
    return order, np.searchsorted(of[order], np.arange(n + 1, dtype=np.uint64))


def _keys_file(folder: Place, group: int) -> Place:
    return folder / f"{group:06}.keys"


def _repeats_file(folder: Place, number: int) -> Place:
    return folder / f"{number:06}.repeats"
