"""A tokenizer.json of Gemma's kind, small enough to write down: special ids 0 to 4, byte fallback, a few merges."""

import json
import string
from pathlib import Path

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
MERGES = (
    ("▁", "t"),
    ("h", "e"),
    ("▁t", "he"),
    ("i", "s"),
    ("▁", "is"),
    ("▁", "a"),
    ("a", "n"),
    ("an", "d"),
)


def write_small_tokenizer(folder: Path) -> Path:
    """Writes tokenizer.json into a new folder and returns the folder; the vocabulary has 332 entries."""
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", ".", *string.ascii_letters, "é", *(left + right for left, right in MERGES)]
    description = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": content, "special": content != "<mask>", "normalized": False}
            | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
            for i, content in enumerate(SPECIAL)
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {piece: i for i, piece in enumerate(pieces)},
            "merges": [list(merge) for merge in MERGES],
        },
    }
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(json.dumps(description), encoding="utf-8")
    return folder
