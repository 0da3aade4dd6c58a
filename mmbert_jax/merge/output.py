"""Writing a merged model: a checkpoint from checkpoints, a Hugging Face folder from Hugging Face folders."""

import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict

from mmbert_jax.checkpoint import Meta, write_params
from mmbert_jax.checksums import sha256
from mmbert_jax.errors import UserError
from mmbert_jax.files import atomic_folder, check_folder, write_json, write_text
from mmbert_jax.hf.config import SPECIAL_IDS, read_config
from mmbert_jax.hf.export import check_output, check_written, new_folder
from mmbert_jax.hf.model_card import CARD, frame
from mmbert_jax.hf.sentence_transformers import write_modules
from mmbert_jax.hf.weights import save_weights
from mmbert_jax.merge.models import CHECKPOINT, StoredModel, licence, modules_of
from mmbert_jax.merge.recipe import METHODS, Recipe
from mmbert_jax.merge.report import Outcome, to_json
from mmbert_jax.places import Place, place, resolved
from mmbert_jax.run import SUMS, run_folder

REPORT = "merge.json"
# What belongs to a model's folder besides its weights; everything else in it tells of the one model alone.
COPIED = ("config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json")
MAX_SHARD_BYTES = 5_000_000_000


def check_target(output: Place, models: Iterable[StoredModel]) -> None:
    """Raises a `UserError` where the output would overwrite something that a merge did not write, or a model."""
    models = list(models)
    for model in models:
        source, target = resolved(model.path), resolved(output)
        if source == target or target in source.parents:
            raise UserError(
                f"--output {output} would overwrite {model.path}; choose another folder"
            )
    if models[0].kind != CHECKPOINT:
        check_output(output)
    else:
        check_folder(output)


def write_merged(
    output: Place,
    recipe: Recipe,
    base: StoredModel | None,
    models: Sequence[StoredModel],
    merged: Iterable[tuple[str, np.ndarray, Outcome]],
) -> dict[str, Outcome]:
    """Writes what `recipe.merge` yields, and `merge.json` with the recipe and every tensor's outcome beside it.

    Returns:
      The outcomes, by tensor.

    Raises:
      UserError: see `check_target`.
    """
    everyone = [*([base] if base else []), *models]
    check_target(output, everyone)
    tensors, outcomes = {}, {}
    for name, tensor, outcome in merged:
        tensors[name], outcomes[name] = tensor, outcome
    described = describe_recipe(recipe, base, models)
    report = described | {"tensors": to_json(outcomes, len(models))}
    if everyone[0].kind == CHECKPOINT:
        _write_checkpoint(output, tensors, merged_meta(described, everyone), report)
    else:
        _write_folder(output, tensors, everyone, report, recipe.dtype)
    return outcomes


def describe_recipe(
    recipe: Recipe, base: StoredModel | None, models: Sequence[StoredModel]
) -> dict[str, Any]:
    """The recipe with its parents and with what merged them, as the merged model records it."""
    parents = {"base": _parent(base)} if base else {}
    return (
        {"by": f"mmbert_jax {importlib.metadata.version('mmbert_jax')}"}
        | recipe.describe()
        | parents
        | {"models": [_parent(model) for model in models]}
    )


def merged_meta(described: Mapping[str, Any], models: Sequence[StoredModel]) -> Meta:
    """The meta of a merged checkpoint.

    Config and tokeniser are those of the first of `models` (the base, where there is one), modules of Sentence
    Transformers those of the first that has any; the row length is the longest of any, the languages are those of all.
    It has no fingerprint, having been trained on nothing itself.
    """
    metas = [model.meta for model in models]
    config = metas[0]["config"]
    row_length = max(meta["config"]["data"]["row_length"] for meta in metas)
    own = {name: value for name, value in metas[0].items() if name != "fingerprint"}
    imported = dict(own.get("imported") or {})
    for model in reversed(models):
        if modules_of(model):
            imported["sentence_transformers"] = model.meta["imported"]["sentence_transformers"]
    if imported:
        own["imported"] = imported | {"licence": licence(models)}
    return own | {
        "phase": "merged",
        "step": 0,  # no training of its own
        "row": 0,
        "tokens": 0,
        "languages": sorted({language for meta in metas for language in meta.get("languages", ())}),
        "held_out_groups": {},  # the base's figures are not the merged model's
        "config": config | {"phase": "merged", "data": config["data"] | {"row_length": row_length}},
        "merge": dict(described),
    }


def _parent(model: StoredModel) -> dict[str, Any]:
    """A model by what tells it from others: where it lay, which training step it was, and its content's sums."""
    if model.kind != CHECKPOINT:
        weights = sorted(model.folder.glob("*.safetensors"))
        return {"path": model.path, "sums": {file.name: sha256(file) for file in weights}}
    return {
        "path": model.path,
        "run": str(run_folder(model.folder)),
        **{key: model.meta.get(key) for key in ("phase", "step", "tokens")},
        "sums": sha256(model.folder / SUMS),
    }


def _write_checkpoint(output: Place, tensors: dict, meta: Meta, report: dict) -> None:
    with atomic_folder(output, last=SUMS) as folder:
        write_params(folder, unflatten_dict(tensors, sep="/"), meta)
        write_json(folder / REPORT, report)


def _write_folder(
    output: Place, tensors: dict, models: Sequence[StoredModel], report: dict, dtype: str | None
) -> None:
    first = models[0]
    source = place(first.path)
    modules = next(filter(None, map(modules_of, models)), {})
    with new_folder(output, phase="merged") as folder:
        save_weights(folder, tensors, MAX_SHARD_BYTES)
        check_written(folder, tensors)
        for pattern in COPIED:
            for file in sorted(source.glob(pattern)):
                (folder / file.name).write_bytes(file.read_bytes())
        if dtype:
            named = {name for name in ("dtype", "torch_dtype") if name in first.meta}
            fields = dict.fromkeys(named or {"torch_dtype"}, dtype)
            write_json(folder / "config.json", dict(first.meta) | fields)
        write_modules(folder, modules)
        write_json(folder / REPORT, report)
        write_text(folder / CARD, _card(output.name, report, models, bool(modules)))


def _card(
    name: str, report: Mapping[str, Any], models: Sequence[StoredModel], sentences: bool
) -> str:
    config = read_config(models[0].meta)
    front_matter, usage = frame(
        name,
        config.head,
        config.special_ids == SPECIAL_IDS,
        sentences=sentences,
        licence=licence(models),
    )
    lines = [f"# {name}\n", f"Merged with {report['by']}: {report['method']}, from\n"]
    if "base" in report:
        lines.append(f"- {_told(report['base'])} (the base)")
    for model, weight in zip(report["models"], report["weights"], strict=True):
        told = f"weight {weight:g}" if isinstance(weight, int | float) else "a weight by tensor"
        lines.append(f"- {_told(model)}, {told}")
    settings = [
        f"{key} {value:g}" if isinstance(value, int | float) else f"{key} by tensor or model"
        for key, value in report.items()
        if key in METHODS[report["method"]]
    ]
    if settings:
        lines.append("\nSettings: " + ", ".join(settings))
    lines.append(f"\n`{REPORT}` says what the merge did to every tensor.\n")
    return "\n".join([front_matter, *lines, usage])


def _told(parent: Mapping[str, Any]) -> str:
    sums = ", ".join(f"{file} {digest[:12]}" for file, digest in parent["sums"].items())
    return f"`{parent['path']}` (SHA-256: {sums})"
