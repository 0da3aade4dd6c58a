"""Reads a sentencepiece model's protocol buffer, as far as a conversion needs it.

sentencepiece ships generated classes for it, but they refuse to be imported beside an older protobuf, which other
packages hold back; and SentencePieceProcessor does not tell a user-defined symbol from an ordinary piece. Field
numbers are from sentencepiece_model.proto.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from mmbert_jax.errors import UserError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}


@dataclass(frozen=True)
class SentencePieceModel:
    pieces: list[tuple[str, int]]  # (piece, type), in order of ids
    model_type: str
    has_charsmap: bool  # whether the normaliser changes characters
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool


def parse_model(data: bytes) -> SentencePieceModel:
    """The model in a serialised ModelProto; UserError if it ends too soon."""
    pieces: list[tuple[str, int]] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    try:
        for field, value in _fields(data):
            if field == 1:
                piece = dict(_fields(value))
                pieces.append((piece[1].decode(), piece.get(3, NORMAL)))
            elif field == 2:
                trainer = dict(_fields(value))
            elif field == 3:
                normalizer = dict(_fields(value))
    except (IndexError, KeyError, struct.error, UnicodeDecodeError) as error:
        raise UserError(f"damaged sentencepiece model ({error!r})") from None
    return SentencePieceModel(
        pieces=pieces,
        model_type=MODEL_TYPES.get(trainer.get(3, 1), "unknown"),
        has_charsmap=bool(normalizer.get(2)),
        add_dummy_prefix=bool(normalizer.get(3, 1)),
        remove_extra_whitespaces=bool(normalizer.get(4, 1)),
    )


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
