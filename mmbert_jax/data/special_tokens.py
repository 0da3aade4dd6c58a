"""Finds out which tokens of a tokenizer.json are special, and for what."""

import json
from collections.abc import Mapping
from typing import Any

from mmbert_jax.data.special_ids import GEMMA, PIECES, ROLES, SpecialIds, as_ranges
from mmbert_jax.errors import UserError
from mmbert_jax.places import Place

TOKENIZER_JSON, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
# What names special tokens beside a tokenizer.json; the later one is read first.
NAMING = ("special_tokens_map.json", TOKENIZER_CONFIG)

# The names in those files, the first that is there. <s> or [CLS] is `bos_token` to some and `cls_token` to others;
# where both are, what `transformers` puts at the head of a text is `cls_token`.
_NAMES = {
    "pad": ("pad_token",),
    "eos": ("sep_token", "eos_token"),
    "bos": ("cls_token", "bos_token"),
    "unk": ("unk_token",),
    "mask": ("mask_token",),
}
# What the tokens are called where no file says so: Gemma's, BERT's and ModernBERT's, RoBERTa's and XLM-R's.
_CONVENTIONS = (
    PIECES,
    ("[PAD]", "[SEP]", "[CLS]", "[UNK]", "[MASK]"),
    ("<pad>", "</s>", "<s>", "<unk>", "<mask>"),
)
_NEEDED = ("pad", "eos", "bos", "mask")

Description = dict[str, Any]  # the content of a tokenizer.json


def naming_files(path: Place) -> list[Place]:
    """The files beside a tokenizer.json that name its special tokens."""
    if path.name != TOKENIZER_JSON:
        return []
    return [path.parent / name for name in NAMING if (path.parent / name).is_file()]


def find_special(path: Place, description: Description) -> tuple[SpecialIds, dict[str, str]]:
    """The special ids of a tokenizer.json, and the piece of each role.

    Gemma's five in front are taken as they are. Otherwise the files beside it name the tokens, or else they are called
    as is usual.

    Raises:
      UserError: there is no padding, end, beginning or mask, or one token is two of them.
    """
    ids = pieces_of(description)
    if all(ids.get(piece) == i for i, piece in enumerate(PIECES)):
        pieces = dict(zip(ROLES, PIECES, strict=True))
    else:
        pieces = _named(path, ids) or _usual(ids)
    if missing := [role for role in _NEEDED if pieces.get(role) not in ids]:
        names = ", ".join(f"{role} ({', '.join(_NAMES[role])})" for role in missing)
        first = {i: piece for piece, i in ids.items()}
        raise UserError(
            f"{path}: no token is known for {names}; ids 0 to 4 are {', '.join(str(first.get(i)) for i in range(5))}."
            f" Name the tokens in a {TOKENIZER_CONFIG} beside it, or make a tokeniser with tools/train_tokenizer.py"
        )
    found = {role: ids.get(pieces.get(role)) for role in ROLES}
    if found["mask"] in [found[role] for role in ROLES if role != "mask"]:
        raise UserError(f"{path}: {pieces['mask']} is the mask and another special token as well")
    special = {token["id"] for token in description["added_tokens"] if token.get("special")}
    present = sorted(set(ids.values()))
    holes = tuple((a + 1, b) for a, b in zip([-1, *present], present, strict=False) if b > a + 1)
    others = as_ranges(special - set(found.values()), holes)
    return SpecialIds(**found, others=others), {r: p for r, p in pieces.items() if p in ids}


def named_ends(path: Place, ids: Mapping[str, int]) -> set[str]:
    """The pieces that the files beside a tokenizer.json call its beginning or end; `ids` are those of all pieces.

    Raises:
      UserError: such a file is no JSON object.
    """
    fields = _fields_beside(path)
    named = {_piece(fields.get(name)) for role in ("bos", "eos") for name in _NAMES[role]}
    return {piece for piece in named if piece in ids}


def has_gemmas(special: SpecialIds) -> bool:
    """Whether a tokeniser's five are Gemma's."""
    return all(getattr(special, role) == getattr(GEMMA, role) for role in ROLES)


def pieces_of(description: Description) -> dict[str, int]:
    """Every piece of a tokenizer.json and its id, added tokens included."""
    vocabulary = description["model"]["vocab"]
    if not isinstance(vocabulary, Mapping):  # Unigram: [piece, score] in order of ids
        vocabulary = {piece: i for i, (piece, _) in enumerate(vocabulary)}
    added = {token["content"]: token["id"] for token in description.get("added_tokens") or ()}
    return {**vocabulary, **added}


def _named(path: Place, ids: Mapping[str, int]) -> dict[str, str]:
    """Role -> piece by the files beside the tokeniser; empty unless they name all that is needed."""
    fields = _fields_beside(path)
    found = {}
    for role, names in _NAMES.items():
        for name in names:
            piece = _piece(fields.get(name))
            if piece in ids:
                found.setdefault(role, piece)
    return found if all(role in found for role in _NEEDED) else {}


def _fields_beside(path: Place) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for file in naming_files(path):
        try:
            fields |= json.loads(file.read_bytes().decode("utf-8-sig"))
        except (ValueError, TypeError) as error:
            raise UserError(f"{file}: not a JSON object ({error})") from None
    return fields


def _piece(value: Any) -> Any:
    return value.get("content") if isinstance(value, Mapping) else value


def _usual(ids: Mapping[str, int]) -> dict[str, str]:
    """Role -> piece by the convention of which most are there."""
    best = max(_CONVENTIONS, key=lambda pieces: sum(piece in ids for piece in pieces))
    return dict(zip(ROLES, best, strict=True))
