"""How much of a text repeats itself: the measures and limits of table A1 of Rae et al. 2021 (arXiv:2112.11446).

They are meant for words. Where most of a text is in a script that has no spaces, n words are n times so many characters
(words.py), from wherever they begin. datatrove's filter, which has the same measures and limits, takes its words from
spaCy, jieba, TensorFlow and a dozen others. Unlike there, what is there once is no repetition, in however short a text.
"""

import re

import numpy as np

from mmbert_jax.data.prepare.words import characters_of_word, code_points, split_words

# (words, share of the characters)
TOP_N_GRAMS = ((2, 0.2), (3, 0.18), (4, 0.16))
DUPLICATE_N_GRAMS = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))
# Share of the lines and of the paragraphs, and of their characters.
DUPLICATES, DUPLICATE_CHARACTERS = 0.3, 0.2

_PARAGRAPHS, _LINES = re.compile(r"\n{2,}"), re.compile(r"\n+")
# Odd, so that no bit of an n-gram is lost in its hash.
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def repetition(text: str) -> str | None:
    """Which limit a text that is not empty is above, if any: the first one in the table."""
    paragraphs, lines = _PARAGRAPHS.split(text.strip()), _LINES.split(text)
    for what, found in (("paragraphs", paragraphs), ("lines", lines)):
        number, characters = _duplicates(found)
        if number / len(found) > DUPLICATES:
            return f"duplicate {what}"
        if characters / len(text) > DUPLICATE_CHARACTERS:
            return f"characters of duplicate {what}"
    ids, lengths, step, joint = _words(text)
    ends = np.concatenate([[0], np.cumsum(lengths)])
    hashes, n = ids, 1
    for words, limit in TOP_N_GRAMS:
        hashes, n = _longer(hashes, n, ids, words * step), words * step
        if len(hashes):
            _, first, counts = np.unique(hashes, return_index=True, return_counts=True)
            most = first[counts == counts.max()].min()
            length = ends[most + n] - ends[most] + joint * (n - 1)
            # One that is there once is a large share of a short text, but no repetition.
            if counts.max() > 1 and length * counts.max() / len(text) > limit:
                return f"most frequent {words}-gram"
    least = min(limit for _, limit in DUPLICATE_N_GRAMS)
    for words, limit in DUPLICATE_N_GRAMS:
        hashes, n = _longer(hashes, n, ids, words * step), words * step
        covered = _covered(hashes, n, lengths)
        # Longer n-grams that were there before have shorter ones within that were, too.
        if covered / len(text) <= least:
            return None
        if covered / len(text) > limit and _repeated(hashes, n, ends) / len(text) > limit:
            return f"duplicate {words}-grams"
    return None


def _duplicates(found: list[str]) -> tuple[int, int]:
    """How many are there a second time, and their characters."""
    different = set(found)
    return len(found) - len(different), sum(map(len, found)) - sum(map(len, different))


def _words(text: str) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Of each word a number and its length, uint64 and int [n]; how many make a word; characters between two."""
    points = code_points(text)
    characters = characters_of_word(points)
    if characters:
        return points.astype(np.uint64), np.ones(len(points), int), characters, 0
    words = split_words(text)
    numbers = {word: i for i, word in enumerate(dict.fromkeys(words), 1)}
    ids = np.fromiter(map(numbers.__getitem__, words), np.uint64, len(words))
    return ids, np.fromiter(map(len, words), int, len(words)), 1, 1


def _longer(hashes: np.ndarray, n: int, ids: np.ndarray, longer: int) -> np.ndarray:
    """Hashes of each `longer` ids in succession, uint64, from those of n; [0] where there are not so many."""
    for i in range(n, longer):
        hashes = hashes[:-1] * _FACTOR + ids[i:]
    return hashes


def _covered(hashes: np.ndarray, n: int, lengths: np.ndarray) -> int:
    """Characters of all words of n-grams that were there before."""
    _, first = np.unique(hashes, return_index=True)
    if len(first) == len(hashes):
        return 0
    begin = np.ones(len(hashes), int)
    begin[first] = 0
    depth = np.zeros(len(lengths) + 1, int)
    depth[: len(hashes)] += begin
    depth[n : n + len(hashes)] -= begin
    return int(lengths[np.cumsum(depth)[:-1] > 0].sum())


def _repeated(hashes: np.ndarray, n: int, ends: np.ndarray) -> int:
    """Characters of n-grams that were there before, of which none overlap."""
    seen: set[int] = set()
    values, characters, i = hashes.tolist(), 0, 0
    while i < len(values):
        if values[i] in seen:
            characters += int(ends[i + n] - ends[i])
            i += n
        else:
            seen.add(values[i])
            i += 1
    return characters
