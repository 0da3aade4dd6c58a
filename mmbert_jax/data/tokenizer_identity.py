"""Which tokeniser it is: what it does to texts, not how its file is written.

A record is what manifests and checkpoints keep of a tokeniser: `sha256` of its file, `vocab_size`, `special_ids`, and
`content`, a digest of all that decides which ids a text gets: pieces, ids, merges, scores, normaliser, pre-tokeniser,
added tokens. `special_ids` (data/special_ids.py) is left out by those from before other ones than Gemma's were read.
Post-processor, decoder, padding, truncation and the file's layout are not in it, so that an export of a tokeniser is
the same tokeniser. A sentencepiece model that can be written as a tokenizer.json has that tokenizer.json's content.
"""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmbert_jax.data.sentencepiece_model import (
    NORMAL,
    SentencePieceModel,
    as_tokenizer_json,
    parse_model,
)
from mmbert_jax.data.special_ids import GEMMA, PIECES, from_record
from mmbert_jax.data.tokenizer import Tokenizer

Record = Mapping[str, Any]

# What a file may spell out or leave out; both mean the same.
_DEFAULTS = {
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
# `data.tokenizer` sets these of Gemma's <mask> itself, whatever the file says.
_SET_FOR_MASK = ("special", "lstrip", "normalized")


def same_tokenizer(a: Record | None, b: Record | None) -> bool:
    """Whether two records are of one tokeniser: equal bytes, or equal content where both know theirs; and used alike.

    Special tokens may be named beside a tokenizer.json, so that equal files can begin and end a text otherwise.

    Records from before `content` was kept are compared by their bytes. What is not known (an imported model without a
    tokeniser) is taken to fit: there is nothing to refuse it by.
    """
    a, b = a or {}, b or {}
    if "special_ids" in a and "special_ids" in b:
        ours, theirs = (dataclasses.replace(from_record(record), others=()) for record in (a, b))
        if ours != theirs:
            return False
    for key in ("sha256", "content"):
        if key in a and a[key] == b.get(key):
            return True
    known = [key for key in ("sha256", "content") if key in a and key in b]
    return not known


def describe_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """A tokeniser's record, with its file's name."""
    return {
        "sha256": tokenizer.sha256,
        "content": content(tokenizer.path),
        "vocab_size": tokenizer.vocab_size,
        "special_ids": tokenizer.special.to_dict(),
        "file": tokenizer.path.name,
    }


def is_recorded(path: Path, sha256: str, record: Record | None) -> bool:
    """Whether the tokeniser in a file is the one of a record; the file is read only where its bytes are others."""
    known = {"sha256": sha256}
    return same_tokenizer(known, record) or (
        "content" in (record or {}) and same_tokenizer(known | {"content": content(path)}, record)
    )


def short(record: Record | None) -> str:
    """A name for a record in messages."""
    record = record or {}
    return (record.get("content") or record.get("sha256") or "unknown")[:12]


def content(path: Path) -> str:
    """The digest of a sentencepiece `.model` or a `tokenizer.json` that `load_tokenizer` can read."""
    data = path.read_bytes()
    if path.suffix != ".model":
        return _of_json(json.loads(data))
    model = parse_model(data)
    # The conversion merges in the order of ids; with scores in another order it would be another tokeniser.
    in_order = all(a >= b for a, b in itertools.pairwise(_scores_of_merges(model)))
    if in_order and not model.obstacle():
        return _of_json(as_tokenizer_json(model))
    return _digest("sentencepiece", *(part.hex() for part in model.decisive))


def _scores_of_merges(model: SentencePieceModel) -> list[float]:
    return [
        score for score, (_, kind) in zip(model.scores, model.pieces, strict=True) if kind == NORMAL
    ]


def _of_json(description: Mapping[str, Any]) -> str:
    model = {
        name: value
        for name, value in description["model"].items()
        if not (name in _DEFAULTS and value in (_DEFAULTS[name], ""))
    }
    vocabulary, merges = model.pop("vocab"), model.pop("merges", ())
    if isinstance(vocabulary, Mapping):
        vocabulary = sorted((i, piece) for piece, i in vocabulary.items())
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    return _digest(
        "tokenizer.json",
        sorted(map(_added, description.get("added_tokens") or ()), key=lambda token: token["id"]),
        description.get("normalizer"),
        description.get("pre_tokenizer"),
        model,
        vocabulary,
        merges,
    )


def _added(token: Mapping[str, Any]) -> dict[str, Any]:
    is_mask = token["id"] == GEMMA.mask and token["content"] == PIECES[GEMMA.mask]
    flags = [name for name in _FLAGS if token.get(name) and not (is_mask and name in _SET_FOR_MASK)]
    return {"id": token["id"], "content": token["content"], "flags": flags}


def _digest(*parts: Any) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(json.dumps(part, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()
