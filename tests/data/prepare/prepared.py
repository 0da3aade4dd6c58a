"""Corpora as tools/prepare_corpus.py leaves them, read without this project's own reader."""

import hashlib
import json
import struct
import zlib
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[3]
BOS, EOS = 2, 1
HELD_OUT = 0.25


def to_jsonl(records) -> bytes:
    lines = (json.dumps({"language": a, "text": b}, ensure_ascii=False) for a, b in records)
    return "".join(line + "\n" for line in lines).encode()


def read_rows(folder, row_length, split):
    """Every row as (tokens of each segment, ids of its documents), straight from the shards."""
    manifest = json.loads((folder / "manifest.json").read_text())
    rows = []
    for shard in manifest["row_lengths"][str(row_length)][split]["shards"]:
        path = folder / shard["file"]
        assert path.stat().st_size == shard["bytes"]
        slots = np.load(path)
        assert len(slots) == shard["rows"]
        for row, slot in enumerate(map(np.ndarray.tobytes, slots)):
            checksum, length = struct.unpack_from("<II", slot)
            assert checksum == zlib.crc32(slot[4:], row)
            record = slot[8 : 8 + length]
            assert not any(slot[8 + length :])
            n, s = struct.unpack_from("<II", record)
            tokens = list(struct.unpack_from(f"<{n}I", record, 8))
            ends = struct.unpack_from(f"<{s}I", record, 8 + 4 * n)
            ids = struct.unpack_from(f"<{s}Q", record, 8 + 4 * n + 4 * s)
            starts = (0, *ends[:-1])
            rows.append(([tokens[a:b] for a, b in zip(starts, ends, strict=True)], ids))
    return rows


def is_held_out(text: str, share: float = HELD_OUT) -> bool:
    """The rule: the upper half of the text's 64-bit hash, as a share of all that it could be."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest[4:], "little") < share * 2**32


OPTIONS = ("--row_length", 64, 256, "--shard_tokens", 3000)
OPTIONS += ("--held_out", HELD_OUT, "--held_out_documents", 0)


def content(folder):
    """Every file of a corpus but the manifest's list of inputs."""
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    manifest = json.loads(files.pop("manifest.json"))
    del manifest["inputs"]
    return files, manifest
