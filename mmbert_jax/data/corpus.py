"""A corpus on a disk or in a bucket: packed rows in shards, language after language, and manifest.json.

The row with global number i of one (row length, split) is record i of its shards laid end to end. Languages are in
sorted order and each is one range of rows.

A record, little-endian:
  uint32 [2]         number of tokens n, number of segments s
  uint32 [n]         tokens, without padding
  uint32 [s]         segment ends, exclusive, cumulative: the last is n
  uint64 [s]         document ids: input file's index << 40 | line (or record) number from 1

In the manifest a shard has its file, its rows, its bytes and, since it tells one corpus from another, a digest of its
records but for their document ids. How its file holds the records is described in data/shards.py. Version 1 had
ArrayRecord files, and no bytes; the first of them no digests either. `tokenizer` is a record of
data/tokenizer_identity.py.
"""

import json
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmbert_jax.data.rows import Rows, find_shards
from mmbert_jax.errors import UserError
from mmbert_jax.places import Place, place

FORMAT, VERSION = "mmbert_jax corpus", 2
READ_VERSIONS = (1, 2)
MANIFEST = "manifest.json"
SPLITS = ("train", "held_out")
DOCUMENT_BITS = 40
_HEADER = struct.Struct("<II")

Manifest = dict[str, Any]


def document_id(input_index: int, number: int) -> int:
    """The id of record `number` (from 1) of the corpus's input file `input_index`."""
    return input_index << DOCUMENT_BITS | number


def locate_document(manifest: Manifest, document: int) -> tuple[str, int]:
    """The input file and the line in it (from 1; 1 for a file that is one document) that a document id stands for."""
    number = int(document) & ((1 << DOCUMENT_BITS) - 1)
    return manifest["inputs"][int(document) >> DOCUMENT_BITS], number


def encode_row(tokens: np.ndarray, segment_ends: np.ndarray, document_ids: np.ndarray) -> bytes:
    """The record of one row: tokens [n], segment_ends [s], document_ids [s]."""
    return b"".join(
        (
            np.array([len(tokens), len(segment_ends)], "<u4").tobytes(),
            np.asarray(tokens, "<u4").tobytes(),
            np.asarray(segment_ends, "<u4").tobytes(),
            np.asarray(document_ids, "<u8").tobytes(),
        )
    )


def trained_part(record: bytes) -> bytes:
    """A record without its document ids: where the texts lay when they were prepared decides nothing in training."""
    tokens, segments = _HEADER.unpack_from(record)
    return record[: 8 + 4 * (tokens + segments)]


def decode_row(record: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens uint32 [n], segment_ends uint32 [s], document_ids uint64 [s]) of one record, read-only views of it."""
    tokens, segments = _HEADER.unpack_from(record) if len(record) >= _HEADER.size else (0, -1)
    if len(record) != 8 + 4 * tokens + 12 * segments:
        raise UserError(
            f"a record of {len(record)} bytes is not a packed row: prepare the corpus again"
        )
    return (
        np.frombuffer(record, "<u4", tokens, 8),
        np.frombuffer(record, "<u4", segments, 8 + 4 * tokens),
        np.frombuffer(record, "<u8", segments, 8 + 4 * (tokens + segments)),
    )


def rows_to_arrays(
    rows: Sequence[tuple[np.ndarray, np.ndarray]], row_length: int, pad: int
) -> dict[str, np.ndarray]:
    """Rows as the model takes them: `tokens`, `segment_ids`, `positions`, each int32 [len(rows), row_length].

    Segments count from 1, 0 is padding; positions restart at 0 in each segment and are 0 in the padding.

    Args:
      rows: tokens [n] and segment ends [s] of each, exclusive, cumulative, none twice; both empty for a row of padding.
      pad: the id that stands in the padding.
    """
    shape = len(rows), row_length
    tokens = np.empty(shape, np.int32)
    # What changes from one column to the next, to be summed up along the rows.
    segment_ids, positions = np.zeros(shape, np.int32), np.ones(shape, np.int32)
    segment_ids[:, 0], positions[:, 0] = 1, 0
    count = np.array([len(ends) for _, ends in rows], np.int64)
    ends = [ends for _, ends in rows]
    stop = np.concatenate([[], *ends], dtype=np.int64, casting="unsafe")
    length = np.diff(stop, prepend=0)
    last = np.cumsum(count)[count > 0] - 1  # of each row's segments
    length[last[:-1] + 1] = stop[last[:-1] + 1]
    first_column = np.repeat(np.arange(len(rows)) * row_length, count)
    followed = np.ones(len(stop), bool)
    followed[last] = False
    start = (first_column + stop)[followed]
    segment_ids.reshape(-1)[start] = 1
    positions.reshape(-1)[start] = 1 - length[followed]
    np.cumsum(segment_ids, axis=1, out=segment_ids)
    np.cumsum(positions, axis=1, out=positions)
    for i, (of_row, _) in enumerate(rows):
        used = len(of_row)
        tokens[i, :used] = of_row
        if used < row_length:
            tokens[i, used:], segment_ids[i, used:], positions[i, used:] = pad, 0, 0
    return {"tokens": tokens, "segment_ids": segment_ids, "positions": positions}


def read_manifest(corpus_dir: str | Place) -> Manifest:
    """The manifest of a corpus.

    Raises:
      UserError: no corpus there, a damaged manifest, or one of another version.
    """
    path = place(corpus_dir) / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{corpus_dir}: no corpus here ({MANIFEST} is missing); make one with tools/prepare_corpus.py"
        ) from None
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); prepare the corpus again") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path}: not the manifest of a {FORMAT}")
    if manifest.get("version") not in READ_VERSIONS:
        raise UserError(
            f"{path}: version {manifest.get('version')}, but this program reads versions"
            f" {' and '.join(map(str, READ_VERSIONS))}; prepare the corpus again"
        )
    return manifest


def rows_source(
    corpus_dir: str | Place, manifest: Manifest, row_length: int, split: str
) -> Rows | tuple[()]:
    """The records of one row length and split, addressed by global row number; can be pickled for worker processes.

    Every shard is asked for its size first; none is opened before one of its rows is read.

    Raises:
      UserError: the corpus has no such row length, or a shard is missing or has another size than was written; when a
        row is read, that its shard cannot be read, or its bytes do not match their checksum.
    """
    if str(row_length) not in manifest["row_lengths"]:
        raise UserError(
            f"{corpus_dir}: no rows of {row_length} tokens, only of {', '.join(manifest['row_lengths'])}; "
            f"prepare the corpus with --row_length {row_length}"
        )
    entries = manifest["row_lengths"][str(row_length)][split]["shards"]
    return Rows(find_shards(place(corpus_dir), entries)) if entries else ()
