"""Small corpora with known content, written through the project's record format and writer, or ArrayRecord's own."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from mmbert_jax.data import corpus
from mmbert_jax.data.shards import ShardWriter


def write_corpus(
    folder: Path,
    rows: Mapping[str, int],
    *,
    row_length: int = 16,
    held_out: Mapping[str, int] | None = None,
    rows_per_shard: int = 1000,
    tokenizer: str | Mapping = "a",
    filling: int = 9,
    old: bool = False,
) -> Path:
    """A corpus with `rows[language]` training rows and `held_out[language]` held-out rows.

    The tokens of a row say which it is (see `identify`): <bos>, 10 + split, 10 + language's index, 10 + row // 1000,
    10 + row % 1000, then a second segment; all others are `filling`.

    Args:
      tokenizer: its sha256, or fields of its record.
      old: as corpora of version 1 were, without their shards' sizes.
    """
    folder.mkdir(parents=True)
    splits = {}
    for split, of_split in (("train", rows), ("held_out", held_out or {})):
        records, languages = [], {}
        for index, language in enumerate(sorted(of_split)):
            languages[language] = {
                "first_row": len(records),
                "rows": of_split[language],
                "tokens": of_split[language] * (row_length - 2),
                "documents": of_split[language],
                "bytes": 0,
            }
            for row in range(of_split[language]):
                tokens = np.full(row_length - 2, filling)
                tokens[[0, 5]] = 2
                tokens[1:5] = np.array([split == "held_out", index, row // 1000, row % 1000]) + 10
                document = corpus.document_id(0, len(records) + 1)
                records.append(corpus.encode_row(tokens, [5, row_length - 2], [document, document]))
        shards = []
        for start in range(0, len(records), rows_per_shard):
            name = f"{split}_{row_length}-{len(shards):05d}{'.arrayrecord' if old else '.npy'}"
            path = folder / name
            writer = ArrayRecordWriter(str(path), "group_size:1") if old else ShardWriter(path)
            for record in records[start : start + rows_per_shard]:
                writer.write(record)
            writer.close()
            of_shard = records[start : start + rows_per_shard]
            digest = hashlib.blake2b(b"".join(of_shard), digest_size=8).hexdigest()
            shards.append({"file": name, "rows": len(of_shard), "digest": digest})
            if not old:
                shards[-1]["bytes"] = path.stat().st_size
        splits[split] = {"shards": shards, "fill": 1.0, "languages": languages}
    manifest = {
        "format": "mmbert_jax corpus",
        "version": 1 if old else 2,
        "source": folder.name,
        "inputs": ["text.jsonl"],
        "tokenizer": {"vocab_size": 2048, "file": "tokenizer.json"}
        | ({"sha256": tokenizer} if isinstance(tokenizer, str) else dict(tokenizer)),
        "row_lengths": {str(row_length): splits},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def identify(tokens: np.ndarray) -> list[tuple[int, int]]:
    """(index of the language in its corpus, row) of each row of tokens [B, L]."""
    return [(int(row[2]) - 10, (int(row[3]) - 10) * 1000 + int(row[4]) - 10) for row in tokens]
