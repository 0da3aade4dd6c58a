"""What must hold before models are merged: that they are alike in all that a merge mixes, and all numbers."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from mmbert_jax.data.tokenizer_identity import same_tokenizer
from mmbert_jax.errors import UserError
from mmbert_jax.hf.config import SPECIAL_IDS, read_config, recorded_ids
from mmbert_jax.hf.sentence_transformers import MODULES, same_modules
from mmbert_jax.hf.weights import INDEX, SINGLE, finite
from mmbert_jax.merge.models import CHECKPOINT, HUGGING_FACE, StoredModel, modules_of
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.model.heads import HeadConfig

# These concern training alone.
_OF_TRAINING = ("attention_output_dropout", "dropout")
# Fields of a head, as config.json calls them.
_THEIR_NAMES = {
    "kind": "architectures",
    "labels": "id2label",
    "pooling": "classifier_pooling",
    "activation": "classifier_activation",
    "dense_bias": "classifier_bias",
}


def check_alike(first: StoredModel, others: Iterable[StoredModel]) -> None:
    """Raises a `UserError` unless all models are of one kind, shape, head, tokeniser and set of special ids.

    And have the same Sentence Transformers modules, those that have any.
    """
    pooled = first if modules_of(first) else None
    for other in others:
        if other.kind != first.kind:
            raise UserError(
                f"{other.path} is a {other.kind} and {first.path} a {first.kind}: make all of them checkpoints with"
                " tools/import_hf.py, or folders with tools/export_hf.py"
            )
        for (name, ours), (_, theirs) in zip(_mixed(first), _mixed(other), strict=True):
            unknown = name.endswith("problem_type") and "" in (ours, theirs)
            if ours != theirs and not unknown:
                raise UserError(
                    f"{other.path}: {name} is {theirs!r}, that of {first.path} is {ours!r};"
                    " models have to agree in it to be merged"
                )
        if not same_tokenizer(first.tokenizer, other.tokenizer):
            raise UserError(
                f"{other.path}: has another tokeniser than {first.path}; their embeddings cannot be merged"
            )
        if modules := modules_of(other):
            pooled = pooled or other
            if not same_modules(modules, modules_of(pooled)):
                raise UserError(
                    f"{other.path}: its Sentence Transformers modules compute something else than those of"
                    f" {pooled.path}; modules are not merged: take {MODULES} out of copies of the folders"
                )
        for name in sorted(first.shapes.keys() | other.shapes.keys()):
            if first.shapes.get(name) != other.shapes.get(name):
                raise UserError(
                    f"{other.path}: {name} has shape {other.shapes.get(name)}, that of {first.path} has"
                    f" {first.shapes.get(name)}"
                )


def read_finite(model: StoredModel, name: str) -> tuple[np.ndarray, np.dtype]:
    """A model's tensor in float32, and the dtype in which it is stored.

    Raises:
      UserError: an entry of it is infinite or no number.
    """
    stored = model.read(name)
    tensor = stored.astype(np.float32, copy=False)
    if not finite(tensor):
        bad = np.count_nonzero(~np.isfinite(tensor))
        raise UserError(
            f"{_file(model, name)}: {bad:,} of {tensor.size:,} entries of {name} are infinite or no numbers (NaN);"
            f" leave out {model.path}, or take an earlier checkpoint of it"
        )
    return tensor, stored.dtype


def check_finite(name: str, merged: np.ndarray, cast: np.ndarray) -> None:
    """Raises a `UserError` where a merge's outcome is no number, or is beyond what its dtype can hold."""
    if finite(cast):
        return
    if finite(merged):
        raise UserError(
            f"{name} reaches {np.abs(merged).max():.3g} when merged, beyond {cast.dtype.name}; store the merged model"
            " wider: --dtype float32, or dtype: float32 in a recipe"
        )
    raise UserError(f"{name} is not finite when merged; choose smaller weights or a smaller lambda")


def _mixed(model: StoredModel) -> Iterator[tuple[str, Any]]:
    """All that has to be equal, by the name that the model's own file has for it; the head before the sizes."""
    if model.kind == HUGGING_FACE:
        config = read_config(model.meta)
        head, special_ids = config.head, config.special_ids
        names = _THEIR_NAMES
    else:
        head, special_ids = HeadConfig.from_config(model.meta["config"]), recorded_ids(model.meta)
        names = {}
    where = "config.json: " if model.kind == HUGGING_FACE else "config."
    for prefix, part, called in (
        ("" if names else "head.", head, names),
        ("model.", model.config, {}),
    ):
        for field in dataclasses.fields(HeadConfig if part is head else ModelConfig):
            if field.name not in _OF_TRAINING:
                yield where + prefix + called.get(field.name, field.name), getattr(part, field.name)
    for name in SPECIAL_IDS:
        yield where + name, special_ids[name]


def _file(model: StoredModel, name: str) -> str:
    """The file that a tensor lies in; of a checkpoint, where a parameter is spread over several, their folder."""
    if model.kind == CHECKPOINT:
        return str(model.folder / "params")
    file = SINGLE
    if not (model.folder / SINGLE).exists():
        index: Mapping[str, Any] = json.loads((model.folder / INDEX).read_bytes())
        file = index["weight_map"][name]
    return str(model.folder / file)
