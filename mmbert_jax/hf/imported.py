"""What a checkpoint that was made from a Hugging Face folder says of itself."""

import dataclasses

from mmbert_jax.data.tokenizer import load_tokenizer
from mmbert_jax.data.tokenizer_identity import content
from mmbert_jax.hf.config import SPECIAL_IDS, HfConfig
from mmbert_jax.hf.tokenizer import open_copied
from mmbert_jax.model.heads import MLM
from mmbert_jax.places import Place, resolved


def import_meta(folder: Place, config: HfConfig) -> dict:
    """What a checkpoint records about an imported model: shape and head, origin, and its tokeniser if it has one."""
    own_ids = config.special_ids != SPECIAL_IDS
    meta = {
        "config": {
            "model": dataclasses.asdict(config.model),
            "data": {"row_length": config.max_positions},
        },
        "phase": "imported",
        "step": 0,
        "row": 0,
        "tokens": 0,
        "import": {"model": str(resolved(folder))},
    }
    if config.head.kind != MLM:
        meta["config"]["head"] = dataclasses.asdict(config.head)
    if own_ids:
        meta["config"]["special_ids"] = dict(config.special_ids)
    if (folder / "tokenizer.json").exists():
        tokenizer = (open_copied if own_ids else load_tokenizer)(folder)
        meta["tokenizer"] = {
            "sha256": tokenizer.sha256,
            "content": content(folder / "tokenizer.json"),
            "vocab_size": tokenizer.vocab_size,
            "path": str(resolved(folder)),
        }
    return meta
