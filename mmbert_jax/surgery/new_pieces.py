"""More pieces for a BPE tokenizer.json, learnt on text in a new script; texts without that script keep their ids.

A BPE always carries out the merge of the lowest rank that is possible. New merges stand behind all old ones, and what
they make is a string that the old vocabulary does not have, so no old merge has it for a part: a text is first split as
before, then new merges join what the old tokeniser had left apart. So they are learnt on that, the old pieces of the
text, as BPE goes on: the most frequent neighbours become one piece.

Only characters of the new script are joined, with a space in front at most: letters and marks that the text has, and
that the texts to keep have not or next to never. Everything that a new merge makes has such a character in it (in
byte-level BPE: the first bytes of one), so **a text without any of `affected_characters` has the ids it had**. Where a
text to keep has some of them, and is split otherwise, the pieces at fault are dropped, until it is as before.

With byte fallback (Gemma's kind) a character that the old vocabulary spells in bytes becomes a piece first: merges join
characters there. In byte-level BPE (ModernBERT's kind) merges make characters of bytes by themselves; so one text to
keep in the script costs all pieces whose characters begin with the bytes that it has.
"""

import dataclasses
import heapq
import itertools
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import tokenizers

from mmbert_jax.data.special_tokens import Description, pieces_of
from mmbert_jax.surgery.vocabulary import BYTE, is_byte_level, merges_of

# A character, or a pair of pieces, that a text has less often is not learnt.
LEAST = 10
# Of the characters of the texts to keep, a character of the new script is at most this share: languages are named in
# their own script, and such a name is no reason to leave the script alone.
NEXT_TO_NEVER = 1e-5
LONGEST = 16  # characters in a piece, as in sentencepiece
SPACES = ("▁", "Ġ")  # what a space is written as in pieces of the two kinds

Word = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class NewPieces:
    """What a tokeniser gets.

    Attributes:
      characters: those that become pieces, in order of their ids.
      merges: pairs of pieces, each of which makes a new one, in order of their ranks and ids.
    """

    characters: tuple[str, ...] = ()
    merges: tuple[tuple[str, str], ...] = ()

    def pieces(self) -> list[str]:
        """The new pieces in order of their ids."""
        return [*self.characters, *(left + right for left, right in self.merges)]

    def without(self, dropped: Iterable[str]) -> "NewPieces":
        """The same without some pieces, and without those that are built from them."""
        gone = set(dropped)
        merges = []
        for left, right in self.merges:
            if {left, right, left + right} & gone:
                gone.add(left + right)
            else:
                merges.append((left, right))
        return NewPieces(tuple(c for c in self.characters if c not in gone), tuple(merges))


def new_characters(counts: Mapping[str, int], kept: Mapping[str, int]) -> frozenset[str]:
    """The letters and marks of the new script.

    Args:
      counts: of each character in the text to learn from.
      kept: in the texts to keep.
    """
    most = NEXT_TO_NEVER * sum(kept.values())
    return frozenset(
        c
        for c, count in counts.items()
        if count >= LEAST and kept.get(c, 0) <= most and unicodedata.category(c)[0] in "LM"
    )


def learn_pieces(
    description: Description, characters: frozenset[str], texts: Iterable[Sequence[str]], most: int
) -> NewPieces:
    """At most so many new pieces from a text.

    Args:
      description: the old tokeniser, of a kind that `vocabulary.check_supported` allows and no Unigram.
      characters: of the new script.
      texts: batches of them.
      most: pieces.
    """
    old = pieces_of(description)
    spelled = () if is_byte_level(description) else sorted(characters - old.keys())
    # Which of them fit is known when they are counted; until then all are pieces.
    tokenizer = _load(extend_description(description, NewPieces(spelled)))
    fits = _fits(description, characters)
    words: Counter[Word] = Counter()
    for batch in texts:
        for encoding in tokenizer.encode_batch(list(batch), add_special_tokens=False):
            words.update(_words(encoding.tokens, encoding.word_ids, fits))
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for piece in word:
            counts[piece] += count
    ranked = sorted(spelled, key=lambda c: (-counts[c], c))[:most]
    merges = _merge_most_frequent(words, most - len(ranked), _joins(description, characters), old)
    missing = set(spelled) - set(ranked)
    return NewPieces(tuple(ranked), tuple(merges)).without(missing)


def extend_description(description: Description, new: NewPieces) -> Description:
    """The tokeniser with new pieces, numbered on from its last id."""
    model, pieces = dict(description["model"]), new.pieces()
    vocabulary = dict(model["vocab"])
    if pieces:
        # `tokenizers` numbers added tokens on from the vocabulary unless they are in it; without merges that lead to
        # them they are in no text.
        for token in description["added_tokens"]:
            vocabulary.setdefault(token["content"], token["id"])
    first = 1 + max(pieces_of(description).values())
    vocabulary |= {piece: first + i for i, piece in enumerate(pieces)}
    merges = [*merges_of(description), *new.merges]
    return description | {
        "model": model | {"vocab": vocabulary, "merges": [list(pair) for pair in merges]}
    }


def old_ids(description: Description, new: NewPieces) -> list[tuple[int, ...]]:
    """Of each new piece, the ids by which the old tokeniser spelled it."""
    vocabulary = pieces_of(description)
    spelled = {piece: (i,) for piece, i in vocabulary.items()}
    for c in new.characters:
        spelled[c] = tuple(vocabulary[f"<0x{byte:02X}>"] for byte in c.encode())
    for left, right in new.merges:
        spelled[left + right] = spelled[left] + spelled[right]
    return [spelled[piece] for piece in new.pieces()]


def drop_until_kept(
    description: Description,
    new: NewPieces,
    affected: Sequence[tuple[str, str]],
    texts: Iterable[Sequence[str]],
) -> NewPieces:
    """The pieces that leave the ids of all texts as they were.

    What leaves the ids of a text does so among fewer pieces, too: no pair of the text is merged. So one pass is enough.

    Args:
      description: the old tokeniser.
      affected: see `affected_characters`; texts without them are not looked at.
      texts: batches of texts to keep.
    """
    if not new.pieces():
        return new
    some = re.compile("[" + "".join(f"{re.escape(a)}-{re.escape(b)}" for a, b in affected) + "]")
    old, extended = _load(description), None
    for batch in texts:
        changed = [text for text in batch if some.search(text)]
        while changed:
            extended = extended or _load(extend_description(description, new))
            before, after = (
                t.encode_batch(changed, add_special_tokens=False) for t in (old, extended)
            )
            found = [
                (text, b.tokens)
                for text, a, b in zip(changed, before, after, strict=True)
                if a.ids != b.ids
            ]
            changed = [text for text, _ in found]
            if found:
                new = new.without({t for _, tokens in found for t in tokens} & {*new.pieces()})
                extended = None
    return new


def affected_characters(
    description: Description, characters: frozenset[str], new: NewPieces
) -> list[tuple[str, str]]:
    """First and last of each range of characters without which a text keeps its ids."""
    if not new.pieces():
        return []
    points = {ord(c) for c in characters}
    if is_byte_level(description):
        # All that begin with the same bytes: 64 of those that take several.
        points |= {p & ~63 | i for p in points if p > 127 for i in range(64)}
    ranges: list[list[int]] = []
    for p in sorted(points):
        if ranges and ranges[-1][1] == p - 1:
            ranges[-1][1] = p
        else:
            ranges.append([p, p])
    return [(chr(a), chr(b)) for a, b in ranges]


def _load(description: Description) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(description))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _words(
    tokens: Sequence[str], word_ids: Sequence[int | None], fits: Callable[[str], bool]
) -> Iterable[Word]:
    """Neighbours that new merges may join: inside of what the tokeniser splits first, and from a space to the next."""
    word: list[str] = []
    of = None
    for token, i in zip(tokens, word_ids, strict=True):
        joined = fits(token)
        if word and (not joined or i != of or token.startswith(SPACES)):
            if len(word) > 1:
                yield tuple(word)
            word = []
        if joined:
            word.append(token)
        of = i
    if len(word) > 1:
        yield tuple(word)


def _merge_most_frequent(
    words: Mapping[Word, int],
    most: int,
    joins: Callable[[str], bool],
    old: Mapping[str, int],
) -> list[tuple[str, str]]:
    """The merges of a BPE that goes on from the pieces of `words`: of equally frequent pairs, the first by spelling."""
    parts = [list(word) for word in words]
    weights = list(words.values())
    pairs: Counter[tuple[str, str]] = Counter()
    where: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    for index, (word, weight) in enumerate(zip(parts, weights, strict=True)):
        for pair in itertools.pairwise(word):
            pairs[pair] += weight
            where[pair].add(index)
    made = set(old)
    # A pair's count may have changed since it was put there: then it is put there again.
    queue = [(-count, pair) for pair, count in pairs.items() if count >= LEAST]
    heapq.heapify(queue)
    merges: list[tuple[str, str]] = []
    while queue and len(merges) < most:
        negative, pair = heapq.heappop(queue)
        left, right = pair
        count = pairs[pair]
        if -negative != count or left + right in made or not joins(left + right):
            continue
        merges.append(pair)
        made.add(left + right)
        changed: set[tuple[str, str]] = set()
        for index in list(where[pair]):
            word, weight = parts[index], weights[index]
            before = Counter(itertools.pairwise(word))
            joined = _join(word, left, right)
            after = Counter(itertools.pairwise(joined))
            parts[index] = joined
            for other in before.keys() | after.keys():
                difference = after[other] - before[other]
                if difference:
                    pairs[other] += difference * weight
                    changed.add(other)
                    (where[other].add if after[other] else where[other].discard)(index)
        for other in changed:
            if pairs[other] >= LEAST:
                heapq.heappush(queue, (-pairs[other], other))
    return merges


def _join(word: Sequence[str], left: str, right: str) -> list[str]:
    joined: list[str] = []
    at = 0
    while at < len(word):
        if word[at] == left and at + 1 < len(word) and word[at + 1] == right:
            joined.append(left + right)
            at += 2
        else:
            joined.append(word[at])
            at += 1
    return joined


# --- which pieces are of the new script ---


def _fits(description: Description, characters: frozenset[str]) -> Callable[[str], bool]:
    """Whether an old piece has nothing but the new script, or a space in front of it."""
    if is_byte_level(description):
        pattern = _in_bytes(characters)
        return lambda piece: bool(pattern.fullmatch(_to_bytes(piece)))
    return lambda piece: (
        not BYTE.fullmatch(piece) and all(c in characters for c in piece.removeprefix("▁"))
    )


def _joins(description: Description, characters: frozenset[str]) -> Callable[[str], bool]:
    """Whether a new piece is of the new script, with a character (in byte-level BPE: its first bytes) in it."""
    fits = _fits(description, characters)
    if is_byte_level(description):
        begins = re.compile(b"|".join(map(re.escape, sorted({_head(c) for c in characters}))))
        longest = 3 * LONGEST
        return lambda piece: (
            len(piece) <= longest and fits(piece) and bool(begins.search(_to_bytes(piece)))
        )
    return lambda piece: len(piece) <= LONGEST and fits(piece) and piece != "▁"


def _head(character: str) -> bytes:
    """The bytes of a character but for its last; of a character of one byte, that."""
    spelled = character.encode()
    return spelled[:-1] or spelled


def _in_bytes(characters: frozenset[str]) -> re.Pattern[bytes]:
    """A space, the end of a character, whole ones that begin like those of the script, the beginning of one."""
    heads = {_head(c) for c in characters}
    whole = [re.escape(h) + (b"[\x80-\xbf]" if h[0] > 127 else b"") for h in sorted(heads)]
    begun = sorted({h[:n] for h in heads if h[0] > 127 for n in range(1, len(h) + 1)})
    end = b"(?:" + b"|".join(map(re.escape, begun)) + b")?" if begun else b""
    return re.compile(b" ?[\x80-\xbf]{0,3}(?:" + b"|".join(whole) + b")*" + end, re.DOTALL)


def _byte_alphabet() -> dict[str, int]:
    """Character -> the byte that byte-level BPE writes as it (GPT-2's table)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(b): b for b in shown} | {chr(256 + n): b for n, b in enumerate(hidden)}


_BYTES = _byte_alphabet()


def _to_bytes(piece: str) -> bytes:
    """Of a byte-level piece; added tokens may have other characters, which no byte is written as."""
    return bytes(_BYTES.get(c, 0) for c in piece)
