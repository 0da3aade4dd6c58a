"""Merging whole checkpoints: the checks before, TIES tensor by tensor, and what it did."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mmbert_jax.errors import UserError
from mmbert_jax.merge.ties import Conflicts, ties


def merge(
    base: Mapping, models: Sequence[Mapping], weights: Sequence[float], density: float, scale: float
):
    """Merges trees of parameters, one tensor at a time.

    Returns:
      The merged tree and, by path, what was kept and in conflict.
    """
    flat_base = flatten_dict(base, sep="/")
    flat_models = [flatten_dict(model, sep="/") for model in models]
    merged, counts = {}, {}
    for path, tensor in flat_base.items():
        tensors = [np.asarray(model[path]) for model in flat_models]
        merged[path], counts[path] = ties(
            np.asarray(tensor), tensors, weights, density=density, scale=scale
        )
    return unflatten_dict(merged, sep="/"), counts


def check_same(base: tuple[Mapping, Mapping], model: tuple[Mapping, Mapping], name: str) -> None:
    """Raises a `UserError` unless two checkpoints (parameters, meta) are of one model and one tokeniser."""
    (base_params, base_meta), (params, meta) = base, model
    for field, value in base_meta["config"]["model"].items():
        if field == "attention_output_dropout":  # concerns training alone
            continue
        other = meta["config"]["model"].get(field)
        if other != value:
            raise UserError(
                f"{name}: config.model.{field} is {other}, the base's is {value}; merge models of one shape"
            )
    ours, theirs = ((m.get("tokenizer") or {}).get("sha256") for m in (base_meta, meta))
    if ours and theirs and ours != theirs:
        raise UserError(
            f"{name}: trained with another tokeniser than the base; their embeddings cannot be merged"
        )
    shapes = {path: x.shape for path, x in flatten_dict(base_params, sep="/").items()}
    others = {path: x.shape for path, x in flatten_dict(params, sep="/").items()}
    for path in sorted(shapes.keys() | others.keys()):
        if shapes.get(path) != others.get(path):
            raise UserError(
                f"{name}: {path} has shape {others.get(path)}, the base's {shapes.get(path)}"
            )


def describe(counts: Mapping[str, Conflicts], num_models: int) -> str:
    """A table by group of tensors (the same tensor of all layers is a group)."""
    groups: dict[str, list[Conflicts]] = defaultdict(list)
    for path, count in counts.items():
        parts = path.split("/")
        groups["/".join(["layers", *parts[2:]] if parts[0] == "layers" else parts)].append(count)
    groups["all"] = list(counts.values())
    lines = [f"{'tensors':<20} {'entries':>12} {'kept':>7} {'changed':>8} {'sign conflicts':>15}"]
    for name, members in groups.items():
        size = sum(c.size for c in members)
        kept = sum(c.kept for c in members) / (size * num_models)
        changed = sum(c.changed for c in members)
        conflicts = sum(c.conflicts for c in members) / max(1, changed)
        lines.append(
            f"{name:<20} {size:>12,} {kept:>7.1%} {changed / size:>8.1%} {conflicts:>15.1%}"
        )
    lines.append(
        "kept: of all task vectors; sign conflicts: of the entries that any task vector changes"
    )
    return "\n".join(lines)


def merged_meta(
    recipe: Mapping, base: tuple[str, Mapping], models: Sequence[tuple[str, Mapping]]
) -> dict:
    """The meta of a merged checkpoint, from the recipe and (path, meta) of the base and of each model.

    Config and tokeniser are the base's; the row length is the longest of any, the languages are those of all.
    """
    everyone = [base[1], *(meta for _, meta in models)]
    config = base[1]["config"]
    row_length = max(meta["config"]["data"]["row_length"] for meta in everyone)
    return base[1] | {
        "phase": "merged",
        "step": 0,  # no training of its own
        "row": 0,
        "tokens": 0,
        "languages": sorted(
            {language for meta in everyone for language in meta.get("languages", ())}
        ),
        "held_out_groups": {},  # the base's figures are not the merged model's
        "config": config | {"phase": "merged", "data": config["data"] | {"row_length": row_length}},
        "merge": dict(recipe)
        | {"base": _parent(*base), "models": [_parent(*model) for model in models]},
    }


def _parent(path: str, meta: Mapping) -> dict:
    return {"path": str(path)} | {key: meta.get(key) for key in ("phase", "step", "tokens")}
