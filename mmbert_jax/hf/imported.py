"""What a checkpoint that was made from a Hugging Face folder says of itself."""

import dataclasses

from mmbert_jax.data.tokenizer import load_tokenizer
from mmbert_jax.data.tokenizer_identity import content, describe_tokenizer
from mmbert_jax.errors import UserError
from mmbert_jax.hf.config import SPECIAL_IDS, HfConfig, disagreement
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
        record = _record(folder, config) if own_ids else describe_tokenizer(load_tokenizer(folder))
        meta["tokenizer"] = record | {"path": str(resolved(folder))}
    return meta


def _record(folder: Place, config: HfConfig) -> dict:
    """The record of another tokeniser than Gemma's; without `special_ids` where it cannot be trained with.

    It still goes through to an export: a classifier's needs no mask.
    """
    try:
        tokenizer = load_tokenizer(folder)
    except UserError:
        tokenizer = None
    if tokenizer and not disagreement(config.special_ids, tokenizer.special):
        return describe_tokenizer(tokenizer)
    copied = open_copied(folder)
    return {
        "sha256": copied.sha256,
        "content": content(folder / "tokenizer.json"),
        "vocab_size": copied.vocab_size,
    }
