"""What a checkpoint that was made from a Hugging Face folder says of itself, and what its export has from there.

Its meta keeps, as `imported`, what no parameter holds: the content of config.json, in which dtype the weights were
stored, the modules of Sentence Transformers, and the licence that its card names. Runs that start from it hand that on,
as do merges.
"""

import dataclasses
import importlib.metadata
from collections.abc import Mapping
from typing import Any

from mmbert_jax.checksums import sha256
from mmbert_jax.data.tokenizer import load_tokenizer
from mmbert_jax.data.tokenizer_identity import content, describe_tokenizer
from mmbert_jax.errors import UserError
from mmbert_jax.hf.config import SPECIAL_IDS, HfConfig, disagreement, read_config, to_hf
from mmbert_jax.hf.model_card import CARD, licence_of
from mmbert_jax.hf.sentence_transformers import module_files, record_modules
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
        "import": {
            "model": str(resolved(folder)),
            "by": f"mmbert_jax {importlib.metadata.version('mmbert_jax')}",
            "sums": {file.name: sha256(file) for file in sorted(folder.glob("*.safetensors"))},
        },
        "imported": {"config": dict(config.fields), "dtype": config.stored},
    }
    if (folder / CARD).is_file():
        card = (folder / CARD).read_bytes().decode("utf-8", "replace")
        meta["imported"]["licence"] = licence_of(card)
    if files := module_files(folder):
        meta["imported"]["sentence_transformers"] = record_modules(folder, files)
    if config.head.kind != MLM:
        meta["config"]["head"] = dataclasses.asdict(config.head)
    if own_ids:
        meta["config"]["special_ids"] = dict(config.special_ids)
    if (folder / "tokenizer.json").exists():
        record = _record(folder, config) if own_ids else describe_tokenizer(load_tokenizer(folder))
        meta["tokenizer"] = record | {"path": str(resolved(folder))}
    return meta


def stored_dtype(meta: Mapping) -> str:
    """The dtype that holds a checkpoint's weights exactly, since they were imported from it; "" where none is known."""
    untouched = meta.get("phase") == "imported"
    return (meta.get("imported") or {}).get("dtype", "") if untouched else ""


def exported_fields(meta: Mapping, fields: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The content of config.json of a checkpoint's export.

    Of an imported model it is what was imported, but for what has changed since: a field of `fields` that says
    something else than it would have said of the model that was imported.

    Args:
      meta: of the checkpoint.
      fields: what `hf.config.to_hf` says of it.
      dtype: in which the weights are stored now.
    """
    imported = meta.get("imported") or {}
    if not imported.get("config"):
        return dict(fields)
    was = read_config(imported["config"])
    before = to_hf(was.model, was.max_positions, dtype, was.head, was.special_ids)
    changed = {name: value for name, value in fields.items() if before.get(name) != value}
    result = {
        name: value
        for name, value in imported["config"].items()
        if not (name in before and name not in fields)
        # Follow from what has changed, and are read before it.
        and not (name == "num_labels" and "id2label" in changed)
        and not (name == "sliding_window" and "local_attention" in changed)
        and not (name == "head_dim" and {"hidden_size", "num_attention_heads"} & changed.keys())
    } | changed
    if dtype != imported.get("dtype"):
        named = {name for name in ("dtype", "torch_dtype") if name in result} or {"torch_dtype"}
        result |= dict.fromkeys(named, dtype)
    return result


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
