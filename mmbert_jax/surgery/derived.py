"""What all operations on models have in common: how the model is read, what the one that comes out records."""

from collections.abc import Mapping
from typing import Any

from mmbert_jax.checkpoint import restore_params
from mmbert_jax.hf.imported import import_meta
from mmbert_jax.hf.load import is_model_folder, load_model
from mmbert_jax.places import Place


def read_model(path: Place) -> tuple[dict, dict]:
    """Parameters and meta, of a run or checkpoint or of a Hugging Face folder.

    Raises:
      UserError: there is no model, or it is damaged.
    """
    if is_model_folder(path):
        model = load_model(path)
        return model.params, import_meta(path, model.config)
    return restore_params(path)


def derived_meta(
    meta: Mapping, phase: str, model: Mapping, told: Mapping[str, Mapping[str, Any]]
) -> dict:
    """The meta of a model that was made from another: no training of its own, and where it comes from.

    Args:
      meta: of the other.
      model: config of the new one.
      told: by name, what was done, to which the other's phase, step and tokens are added.
    """
    parent = {name: meta.get(name) for name in ("phase", "step", "tokens")}
    return {name: value for name, value in meta.items() if name != "fingerprint"} | {
        "phase": phase,
        "step": 0,
        "row": 0,
        "tokens": 0,
        "history": [*meta.get("history", []), parent],
        "held_out_groups": {},  # the other model's figures
        "config": meta["config"] | {"phase": phase, "model": dict(model)},
        **{name: {**what, **parent} for name, what in told.items()},
    }
