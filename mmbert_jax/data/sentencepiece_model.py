"""Reads a sentencepiece model's protocol buffer, as far as a conversion needs it, and writes it as a tokenizer.json.

A sentencepiece BPE becomes a `tokenizers` BPE with the same ids for every text: byte fallback, spaces as U+2581, and
for merges all splits of a piece into two pieces. sentencepiece merges the pair whose result has the lowest id, and the
leftmost of equals; `tokenizers` takes the merge of the lowest rank, so merges are ranked by the result's id.

sentencepiece ships generated classes for it, but they refuse to be imported beside an older protobuf, which other
packages hold back; and SentencePieceProcessor does not tell a user-defined symbol from an ordinary piece. Field
numbers are from sentencepiece_model.proto.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mmbert_jax.data.special_ids import GEMMA, PIECES
from mmbert_jax.errors import UserError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
SPACE = "▁"
# Numbers of model_type, treat_whitespace_as_suffix and byte_fallback in TrainerSpec; of precompiled_charsmap,
# add_dummy_prefix, remove_extra_whitespaces and escape_whitespaces in NormalizerSpec.
_TRAINER, _NORMALIZER = (3, 24, 35), (2, 3, 4, 5)


@dataclass(frozen=True)
class SentencePieceModel:
    pieces: list[tuple[str, int]]  # (piece, type), in order of ids
    scores: list[float]
    model_type: str
    has_charsmap: bool  # whether the normaliser changes characters
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    space_is_suffix: bool  # of the piece before it
    space_is_escaped: bool  # as U+2581
    # All that decides which ids a text gets, as it stands in the file: messages of pieces, then the fields of trainer
    # and normaliser that the processor looks at.
    decisive: tuple[bytes, ...]

    def obstacle(self) -> str | None:
        """What a tokenizer.json would not do as this model does; None where the conversion gives the same ids."""
        for unsupported, what in (
            (self.model_type != "bpe", f"model type {self.model_type}"),
            (self.has_charsmap, "a normaliser that changes characters"),
            (self.add_dummy_prefix, "a space added in front of every text"),
            (self.remove_extra_whitespaces, "removal of extra white space"),
            (self.space_is_suffix, "white space at the end of pieces"),
            (not self.space_is_escaped, "white space that is not escaped"),
            (sum(kind == BYTE for _, kind in self.pieces) != 256, "no byte fallback"),
        ):
            if unsupported:
                return what
        return None


def parse_model(data: bytes) -> SentencePieceModel:
    """The model in a serialised ModelProto; UserError if it ends too soon."""
    pieces: list[tuple[str, int]] = []
    scores: list[float] = []
    messages: list[bytes] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    try:
        for field, value in _fields(data):
            if field == 1:
                piece = dict(_fields(value))
                pieces.append((piece[1].decode(), piece.get(3, NORMAL)))
                scores.append(struct.unpack("<f", piece.get(2, bytes(4)))[0])
                messages.append(value)
            elif field == 2:
                trainer = dict(_fields(value))
            elif field == 3:
                normalizer = dict(_fields(value))
    except (IndexError, KeyError, struct.error, UnicodeDecodeError) as error:
        raise UserError(f"damaged sentencepiece model ({error!r})") from None
    settings = [trainer.get(i) for i in _TRAINER] + [normalizer.get(i) for i in _NORMALIZER]
    return SentencePieceModel(
        pieces=pieces,
        scores=scores,
        model_type=MODEL_TYPES.get(trainer.get(3, 1), "unknown"),
        has_charsmap=bool(normalizer.get(2)),
        add_dummy_prefix=bool(normalizer.get(3, 1)),
        remove_extra_whitespaces=bool(normalizer.get(4, 1)),
        space_is_suffix=bool(trainer.get(24, 0)),
        space_is_escaped=bool(normalizer.get(5, 1)),
        decisive=(*messages, *(repr(setting).encode() for setting in settings)),
    )


def as_tokenizer_json(model: SentencePieceModel) -> dict[str, Any]:
    """What a tokenizer.json says of a model that has no `obstacle`; post-processor, padding and truncation are None."""
    vocabulary = {piece: i for i, (piece, _) in enumerate(model.pieces)}
    normal = {piece: i for i, (piece, kind) in enumerate(model.pieces) if kind == NORMAL}
    merges = []
    for piece, i in normal.items():
        for at in range(1, len(piece)):
            left, right = normal.get(piece[:at]), normal.get(piece[at:])
            if left is not None and right is not None:
                merges.append((i, left, right))
    merges.sort()
    pieces = [piece for piece, _ in model.pieces]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(i, PIECES[i]) for i in range(5)]
        + [
            # Symbols with spaces in them are written with U+2581, so they are looked for in the normalised text.
            added_token(i, piece) | {"special": False, "normalized": True}
            for i, (piece, kind) in enumerate(model.pieces)
            if kind == USER_DEFINED and i > GEMMA.mask
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": PIECES[GEMMA.unk],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [[pieces[left], pieces[right]] for _, left, right in merges],
        },
    }


def added_token(i: int, content: str) -> dict[str, Any]:
    """An entry of a tokenizer.json's added tokens; the mask token takes the space on its left with it."""
    return {
        "id": i,
        "content": content,
        "single_word": False,
        "lstrip": i == GEMMA.mask,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of a message: int for a varint, bytes for the rest; a repeated field comes repeatedly."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
        else:
            if kind == 2:
                size, at = _varint(data, at)
            else:
                size = {1: 8, 5: 4}[kind]
            value, at = data[at : at + size], at + size
            if at > len(data):
                raise IndexError("it ends within a field")
        yield key >> 3, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
