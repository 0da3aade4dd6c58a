"""Held-out documents with one token masked, for showing what a model makes of several scripts."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mmbert_jax.data.corpus import decode_row, read_manifest, rows_source
from mmbert_jax.data.language_codes import meant_by
from mmbert_jax.data.tokenizer import load_tokenizer
from mmbert_jax.places import Place

# Tokens of a document that are shown.
SHOWN_TOKENS = 24


@dataclass(frozen=True)
class MaskedExample:
    """A text with one mask token, its language, and what the mask hides."""

    language: str
    text: str
    hidden: str


def masked_examples(
    corpus: Place, groups: Sequence[Sequence[str]], per_group: int = 2
) -> list[MaskedExample]:
    """Beginnings of held-out documents (of parts of long ones), each of another script, from every group of languages.

    Args:
      corpus: folder of a corpus that has held-out rows.
      groups: languages in the order in which they are tried.
      per_group: how many examples to take from a group, at most.
    """
    manifest = read_manifest(corpus)
    row_length = min(manifest["row_lengths"], key=int)
    split = manifest["row_lengths"][row_length]["held_out"]
    rows = rows_source(corpus, manifest, int(row_length), "held_out")
    tokenizer = load_tokenizer(corpus / "tokenizer")
    special, mask = tokenizer.special, tokenizer.pieces["mask"]
    meant = meant_by(split["languages"], {name for group in groups for name in group})
    scripts: set[str] = set()
    examples = []
    for group in groups:
        taken = 0
        for language in (x for name in group for x in meant.get(name, ())):
            if taken == per_group:
                break
            tokens, ends, _ = decode_row(rows[split["languages"][language]["first_row"]])
            ids = [int(i) for i in tokens[: ends[0]] if i not in (special.bos, special.eos)][
                :SHOWN_TOKENS
            ]
            pieces = [tokenizer.decode([i]) for i in ids]
            script = _script(tokenizer.decode(ids))
            if script in scripts:
                continue
            for i in _candidates(pieces):
                text = tokenizer.decode(ids[:i]) + mask + tokenizer.decode(ids[i + 1 :])
                # The text must be read as the tokens that it was made from.
                if tokenizer.encode(text) == [*ids[:i], special.mask, *ids[i + 1 :]]:
                    examples.append(MaskedExample(language, text, pieces[i]))
                    scripts.add(script)
                    taken += 1
                    break
    return examples


def _script(text: str) -> str:
    """The script of most letters, by the first word of their Unicode names: 'LATIN', 'CYRILLIC', ..."""
    names = Counter(unicodedata.name(c, "?").split()[0] for c in text if c.isalpha())
    return names.most_common(1)[0][0] if names else ""


def _candidates(pieces: Sequence[str]) -> list[int]:
    """Where to put the mask, best first: on letters, on a whole word where spaces show words, near the middle."""

    def is_word(i: int) -> bool:
        after = pieces[i + 1] if i + 1 < len(pieces) else ""
        return pieces[i].startswith(" ") and not (
            after and unicodedata.category(after[0])[0] in "LM"
        )

    letters = [i for i, piece in enumerate(pieces) if _is_letters(piece)]
    return sorted(letters, key=lambda i: (not is_word(i), abs(i - len(pieces) // 2)))


def _is_letters(text: str) -> bool:
    """Whether a text is of letters and the marks that belong to them, apart from spaces around it."""
    stripped = text.strip()
    return bool(stripped) and all(unicodedata.category(c)[0] in "LM" for c in stripped)
