"""A sample of sentences to train a tokeniser on: bounded, the same every time, and fair to small languages."""

import hashlib
import heapq
from collections.abc import Iterable, Iterator

from mmbert_jax.data.sources import Document

# sentencepiece passes over sentences of more than 4192 bytes; this many characters are never more.
SENTENCE_CHARACTERS = 1000


def sentences(text: str) -> Iterator[str]:
    """The lines of a text, long ones in parts; lines of white space are left out."""
    for line in text.split("\n"):
        if line.strip():
            for start in range(0, len(line), SENTENCE_CHARACTERS):
                yield line[start : start + SENTENCE_CHARACTERS]


def sample_sentences(documents: Iterable[Document], max_sentences: int) -> dict[str, list[str]]:
    """At most `max_sentences` sentences by language: all of the small languages, equally many of the others.

    Of each language those are kept whose places (file, line, sentence in it) have the lowest hashes: the same sample
    every time, with little more than `max_sentences` in memory at any time.

    Args:
      documents: any number of them.
      max_sentences: for all languages together.

    Returns:
      language -> sentences, both in a fixed order.
    """
    kept: dict[str, list[tuple[int, str]]] = {}  # heaps, the highest hash (negated) on top
    cap = max_sentences
    total = 0
    for document in documents:
        heap = kept.setdefault(document.language, [])
        for i, sentence in enumerate(sentences(document.text)):
            # Of its place, not of its text: or a line that occurs a million times could take every place.
            place = f"{document.input_index} {document.number} {i}".encode()
            digest = hashlib.blake2b(place, digest_size=8).digest()
            item = (-int.from_bytes(digest, "little"), sentence)
            if len(heap) < cap:
                heapq.heappush(heap, item)
                total += 1
            else:
                heapq.heappushpop(heap, item)
        if total > 1.25 * max_sentences:
            cap = _level([len(heap) for heap in kept.values()], max_sentences)
            total = _shrink(kept, cap)
    if total > max_sentences:
        _shrink(kept, _level([len(heap) for heap in kept.values()], max_sentences))
    return {
        language: [sentence for _, sentence in sorted(kept[language], reverse=True)]
        for language in sorted(kept)
    }


def _level(counts: list[int], limit: int) -> int:
    """The largest cap for which the counts, capped, add up to at most `limit`; at least 1."""
    low, high = 1, max(counts)
    while low < high:
        middle = (low + high + 1) // 2
        if sum(min(count, middle) for count in counts) <= limit:
            low = middle
        else:
            high = middle - 1
    return low


def _shrink(kept: dict[str, list[tuple[int, str]]], cap: int) -> int:
    for language, heap in kept.items():
        if len(heap) > cap:
            kept[language] = heapq.nlargest(cap, heap)  # negated: the lowest hashes
            heapq.heapify(kept[language])
    return sum(map(len, kept.values()))
