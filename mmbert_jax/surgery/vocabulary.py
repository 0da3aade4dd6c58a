"""A smaller vocabulary for a tokenizer.json: on texts whose tokens are all kept, it gives the same tokens.

**BPE** starts from characters (or bytes) and always carries out the merge of the lowest rank. A token of a text was
built by merges inside its own span alone, and a merge across its ends would have come earlier if it had ever been the
lowest; so the pieces on the way to a token are those on the way from its spelling alone. If those are kept too, with
every merge between kept pieces in the old order, then on a text whose tokens are all kept each step finds the same
merge: it is there, and there are only fewer that could come before it. The tokens are the same. A text with other
tokens is spelled in the kept ones, in the end in bytes, which all stay: as pieces of their own (Gemma's kind, which has
"\\t" itself for one of them) or as the characters that byte-level BPE writes for them (ModernBERT's kind).

**Unigram** takes the pieces whose scores have the largest sum. Pieces keep their scores, so the best sequence remains
the best among fewer, also where sums tie: the one whose last piece begins first is taken, of each beginning of a text.
The price of an unknown character hangs on the lowest score of all, so one piece with that score stays. So do all pieces
of one character: no text gets an unknown that had none.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel

from mmbert_jax.data.special_tokens import Description, pieces_of
from mmbert_jax.errors import UserError

BYTE = re.compile(r"<0x[0-9A-F]{2}>")
BPE, UNIGRAM = "BPE", "Unigram"


def check_supported(description: Description, name: str) -> None:
    """Raises a `UserError` for a tokeniser whose tokens a trimmed one could not reproduce."""
    if description["model"].get("type") != UNIGRAM:
        check_bpe(description, name, "trimmed")


def check_bpe(description: Description, name: str, done: str) -> None:
    """Raises a `UserError` for all but BPE that spells everything and splits a text by its merges alone.

    Args:
      done: what is done to a vocabulary, for the message.
    """
    model = description["model"]
    kind = model.get("type")
    spelled = _bytes(description) if kind == BPE else None
    for unsupported, what in (
        (
            kind != BPE,
            f"it is a {kind}" + (", neither BPE nor Unigram" if done == "trimmed" else ", no BPE"),
        ),
        (spelled is None, "it is a BPE without byte fallback that is not byte-level either"),
        (len(spelled or ()) != 256, f"it has {len(spelled or ())} of the 256 bytes"),
        (model.get("ignore_merges"), "it takes whole words before it merges (ignore_merges)"),
        (model.get("dropout"), "it drops merges at random (dropout)"),
        (
            model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"),
            "it marks the insides or ends of words",
        ),
    ):
        if unsupported:
            raise UserError(f"{name}: this tokeniser's vocabulary cannot be {done}: {what}")


def ids_to_keep(
    description: Description, used: Iterable[int], named: Iterable[int] = ()
) -> list[int]:
    """Ids that a trimmed tokeniser needs so that it gives all of `used` in the same places, sorted.

    Those are `used`, the ids that files beside it name (`named`) and that it names itself (special and other added
    tokens, the unknown one, padding), and what it spells everything with; of a BPE also the pieces that `used` are
    built from.

    Raises:
      UserError: an id has no piece, or merges do not lead to it.
    """
    used, model = set(used), description["model"]
    kept = used | set(named) | _ids_in(description)
    pieces = {i: piece for piece, i in pieces_of(description).items()}
    if absent := sorted(kept - pieces.keys()):
        raise UserError(
            f"the tokeniser has no piece with the id {absent[0]}, which its files or config.json name"
        )
    if model["type"] == UNIGRAM:
        return sorted(kept | _always_in_unigram(model["vocab"]))
    kept |= _always_in_bpe(description)
    added = {token["id"] for token in description["added_tokens"]}
    merged = [pieces[i] for i in used - added if not BYTE.fullmatch(pieces[i])]
    ranks = {pair: rank for rank, pair in enumerate(merges_of(description))} if merged else {}
    for piece in merged:
        kept.update(model["vocab"][part] for part in _built_from(piece, ranks))
    return sorted(kept)


def trim_description(description: Description, keep: list[int]) -> Description:
    """The tokeniser with only these ids, numbered anew in their order."""
    new_id = {old: new for new, old in enumerate(keep)}
    model = dict(description["model"])
    if model["type"] == UNIGRAM:
        model["vocab"] = [model["vocab"][i] for i in keep if i < len(model["vocab"])]
        if model.get("unk_id") is not None:
            model["unk_id"] = new_id[model["unk_id"]]
    else:
        model["vocab"] = {p: new_id[i] for p, i in model["vocab"].items() if i in new_id}
        model["merges"] = [
            [left, right]
            for left, right in merges_of(description)
            if {left, right, left + right} <= model["vocab"].keys()
        ]
    return {
        name: model if name == "model" else _renumber(part, new_id.__getitem__)
        for name, part in description.items()
    }


def _ids_in(description: Description) -> set[int]:
    """The ids that a tokenizer.json names besides its vocabulary."""
    found: set[int] = set()

    def note(i: int) -> int:
        found.add(i)
        return i

    _renumber({name: part for name, part in description.items() if name != "model"}, note)
    if (unknown := _unknown(description)) is not None:
        found.add(unknown)
    return found


def _unknown(description: Description) -> int | None:
    model = description["model"]
    if model["type"] == UNIGRAM:
        return model.get("unk_id")
    return pieces_of(description).get(model.get("unk_token"))


def _renumber(part: Any, change: Callable[[int], int]) -> Any:
    """What is not the model: added tokens, post-processors' special tokens and padding, with their ids changed."""
    if isinstance(part, list):
        return [_renumber(item, change) for item in part]
    if not isinstance(part, Mapping):
        return part
    result = {}
    for name, value in part.items():
        if (name == "id" and isinstance(value, int)) or name == "pad_id":
            result[name] = change(value)
        elif name == "ids":
            result[name] = [change(i) for i in value]
        elif name in ("sep", "cls") and isinstance(value, list):  # of BERT's and RoBERTa's
            piece, i = value
            result[name] = [piece, change(i)]
        else:
            result[name] = _renumber(value, change)
    return result


# --- BPE ---


def _bytes(description: Description) -> set[int] | None:
    """The ids that spell one byte each; None where there is no such thing."""
    vocabulary = description["model"]["vocab"]
    if is_byte_level(description):
        return {vocabulary[c] for c in ByteLevel.alphabet() if c in vocabulary}
    if not description["model"].get("byte_fallback"):
        return None
    found = set()
    for byte in range(256):
        # A character that is in the vocabulary is never spelled in bytes; those below 0x80 are one byte.
        spellings = (f"<0x{byte:02X}>", *([chr(byte)] if byte < 0x80 else []))
        found.update([vocabulary[s] for s in spellings if s in vocabulary][:1])
    return found


def is_byte_level(description: Description) -> bool:
    return any(
        part.get("type") == "ByteLevel"
        for name in ("normalizer", "pre_tokenizer")
        for part in _parts(description.get(name))
    )


def _always_in_bpe(description: Description) -> set[int]:
    """Bytes, and the character that stands for the space: as bytes it would not become a space again."""
    vocabulary = description["model"]["vocab"]
    # Also those of bytes that are there as characters, so that every name of a byte still means it.
    named = {i for piece, i in vocabulary.items() if BYTE.fullmatch(piece)}
    written = {vocabulary[c] for c in _written_by_normalizer(description) if c in vocabulary}
    return (_bytes(description) or set()) | named | written


def merges_of(description: Description) -> list[tuple[str, str]]:
    """Pairs in the order of their ranks; older files write a pair as one string."""
    return [
        tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge)
        for merge in description["model"]["merges"]
    ]


def _built_from(piece: str, ranks: Mapping[tuple[str, str], int]) -> set[str]:
    """A piece and all pieces on the way to it from its characters: of equal ranks, the leftmost pair merges first."""
    symbols = list(piece)
    seen = {piece, *symbols}
    while len(symbols) > 1:
        pairs = enumerate(itertools.pairwise(symbols))
        rank, at = min(((ranks[pair], at) for at, pair in pairs if pair in ranks), default=(-1, -1))
        if rank < 0:
            raise UserError(
                f"tokenizer.json: its merges do not lead to the piece {piece!r}, which the text was split into"
            )
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        seen.add(symbols[at])
    return seen


def _parts(part: Any) -> Iterable[Mapping[str, Any]]:
    """A normaliser or pre-tokeniser and what it is made of."""
    if isinstance(part, Mapping):
        yield part
        part = list(part.values())
    for item in part if isinstance(part, list) else ():
        yield from _parts(item)


def _written_by_normalizer(description: Description) -> set[str]:
    """Characters that the normaliser or the pre-tokeniser puts into a text, such as U+2581 for the space."""
    return {
        character
        for name in ("normalizer", "pre_tokenizer")
        for part in _parts(description.get(name))
        for field in ("content", "replacement", "prepend")
        if isinstance(part.get(field), str)
        for character in part[field]
    }


# --- Unigram ---


def _always_in_unigram(vocabulary: list) -> set[int]:
    lowest = min(range(len(vocabulary)), key=lambda i: vocabulary[i][1])
    spelling = {
        i for i, (piece, _) in enumerate(vocabulary) if len(piece) == 1 or BYTE.fullmatch(piece)
    }
    return spelling | {lowest}
