"""A smaller vocabulary for a BPE tokeniser with byte fallback (tokenizer.json): what is left gives the same tokens.

BPE starts from characters and always carries out the merge of the lowest rank. A token of a text was built by merges
inside its own span alone, and a merge across its ends would have come earlier if it had ever been the lowest; so the
pieces on the way to a token are those on the way from its spelling alone. If those are kept too, with every merge
between kept pieces in the old order, then on a text whose tokens are all kept each step finds the same merge: it is
there, and there are only fewer that could come before it. The tokens are the same.

A text with other tokens is spelled in the kept ones, in the end in bytes, which all stay.
"""

import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from mmbert_jax.errors import UserError

BYTE = re.compile(r"<0x[0-9A-F]{2}>")
# The first ids, which the model's config names.
NUM_SPECIAL_IDS = 5

Description = dict[str, Any]  # the content of a tokenizer.json


def check_supported(description: Description, name: str) -> None:
    """Raises a `UserError` for a tokeniser whose tokens a trimmed one could not reproduce."""
    model = description["model"]
    bytes_found = sum(1 for piece in model["vocab"] if BYTE.fullmatch(piece))
    for unsupported, what in (
        (model["type"] != "BPE", f"it is a {model['type']}, not a BPE"),
        (not model.get("byte_fallback"), "it has no byte fallback"),
        (bytes_found != 256, f"it has {bytes_found} of the 256 bytes"),
        (model.get("ignore_merges"), "it takes whole words before it merges (ignore_merges)"),
        (model.get("dropout"), "it drops merges at random (dropout)"),
        (
            model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"),
            "it marks the insides or ends of words",
        ),
    ):
        if unsupported:
            raise UserError(f"{name}: this tokeniser's vocabulary cannot be trimmed: {what}")


def ids_to_keep(description: Description, used: Iterable[int]) -> list[int]:
    """Ids that a trimmed tokeniser needs so that it gives all of `used` in the same places, sorted.

    Those are `used`, the pieces that they are built from, the special ids, all added tokens, all bytes, and the
    character that stands for the space: as bytes it would not become a space again.
    """
    vocabulary: Mapping[str, int] = description["model"]["vocab"]
    pieces = {i: piece for piece, i in vocabulary.items()}
    added = {token["id"] for token in description["added_tokens"]}
    kept = set(range(NUM_SPECIAL_IDS)) | added
    kept.update(i for piece, i in vocabulary.items() if BYTE.fullmatch(piece))
    kept.update(vocabulary[c] for c in _written_by_normalizer(description) if c in vocabulary)
    ranks = {pair: rank for rank, pair in enumerate(_merges(description))}
    for i in set(used) - kept:
        kept.update(vocabulary[piece] for piece in _built_from(pieces[i], ranks))
    return sorted(kept)


def trim_description(description: Description, keep: list[int]) -> Description:
    """The tokeniser with only these ids, numbered anew in their order."""
    new_id = {old: new for new, old in enumerate(keep)}
    vocabulary = {
        piece: new_id[i] for piece, i in description["model"]["vocab"].items() if i in new_id
    }
    merges = [
        [left, right]
        for left, right in _merges(description)
        if left in vocabulary and right in vocabulary and left + right in vocabulary
    ]
    added = [token | {"id": new_id[token["id"]]} for token in description["added_tokens"]]
    return description | {
        "added_tokens": added,
        "post_processor": _renumber(description.get("post_processor"), new_id),
        "model": description["model"] | {"vocab": vocabulary, "merges": merges},
    }


def _merges(description: Description) -> list[tuple[str, str]]:
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


def _written_by_normalizer(description: Description) -> set[str]:
    """Characters that the normaliser or the pre-tokeniser puts into a text, such as U+2581 for the space."""
    written, stack = set(), [description.get("normalizer"), description.get("pre_tokenizer")]
    while stack:
        part = stack.pop()
        if isinstance(part, Mapping):
            for name, value in part.items():
                if name in ("content", "replacement", "prepend") and isinstance(value, str):
                    written.update(value)
                stack.append(value)
        elif isinstance(part, list):
            stack.extend(part)
    return written


def _renumber(part: Any, new_id: Mapping[int, int]) -> Any:
    """A post-processor with its special tokens' ids renumbered."""
    if isinstance(part, list):
        return [_renumber(item, new_id) for item in part]
    if not isinstance(part, Mapping):
        return part
    return {
        name: [new_id[i] for i in value] if name == "ids" else _renumber(value, new_id)
        for name, value in part.items()
    }
