"""Models to merge, on disk and read one tensor at a time: checkpoints, or Hugging Face folders with safetensors."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from mmbert_jax.checkpoint import open_params
from mmbert_jax.data.special_tokens import pieces_of
from mmbert_jax.errors import UserError
from mmbert_jax.files import read_json
from mmbert_jax.hf.config import read_config
from mmbert_jax.hf.load import DECODER, EXACT_IN_FLOAT32, has_tied_copy, is_model_folder
from mmbert_jax.hf.model_card import CARD, licence_of
from mmbert_jax.hf.sentence_transformers import module_files, recorded_files
from mmbert_jax.hf.weights import open_weights
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.places import Place, place
from mmbert_jax.run import locate

CHECKPOINT, HUGGING_FACE = "checkpoint", "Hugging Face folder"


@dataclasses.dataclass(frozen=True)
class StoredModel:
    """A model on disk.

    Attributes:
      path: as the user named it.
      kind: CHECKPOINT or HUGGING_FACE.
      shapes: of its tensors, by name.
      read: name -> tensor as stored; nothing is kept.
      config: its shape.
      meta: of a checkpoint: its meta; of a Hugging Face folder: the content of config.json.
      tokenizer: its record (data/tokenizer_identity.py), which decides what the embeddings mean; None where it is not
        known. Of a Hugging Face folder the content is what its ids stand for.
      folder: where the tensors lie: of a run, the checkpoint that was the newest when it was opened.
    """

    path: str
    kind: str
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]
    config: ModelConfig
    meta: Mapping[str, Any]
    tokenizer: Mapping[str, Any] | None
    folder: Place


def open_model(path: str | Place) -> StoredModel:
    """Opens a run folder (its newest checkpoint), one checkpoint, or a Hugging Face folder.

    Raises:
      UserError: there is none of these; a Hugging Face folder holds another architecture, or pickled weights.
    """
    path = place(path)
    if is_model_folder(path):
        return _open_hugging_face(path)
    folder = locate(path)
    shapes, read, meta = open_params(folder)
    return StoredModel(
        path=str(path),
        kind=CHECKPOINT,
        shapes=shapes,
        read=read,
        config=ModelConfig.from_config(meta["config"]["model"]),
        meta=meta,
        tokenizer=meta.get("tokenizer"),
        folder=folder,
    )


def modules_of(model: StoredModel) -> dict[str, bytes]:
    """The files of its Sentence Transformers modules; none where it has none."""
    if model.kind == CHECKPOINT:
        return recorded_files(model.meta)
    return module_files(model.folder) or {}


def licence(models: Iterable[StoredModel]) -> dict[str, str]:
    """What the cards of all of them say alike of their licence; see `hf.model_card.licence_of`."""
    found = []
    for model in models:
        if model.kind == CHECKPOINT:
            found.append((model.meta.get("imported") or {}).get("licence", {}))
        else:
            card = model.folder / CARD
            found.append(licence_of(card.read_text()) if card.is_file() else {})
    return found[0] if all(one == found[0] for one in found) else {}


def _open_hugging_face(folder: Place) -> StoredModel:
    try:
        fields = json.loads((folder / "config.json").read_bytes())
        config = read_config(fields).model
    except ValueError as error:  # a UserError too: it does not know the folder
        raise UserError(f"{folder}: {error}") from error
    shapes, read = open_weights(folder)
    try:
        tied_copy = has_tied_copy(shapes, read)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    # Merged by itself it would be untied.
    shapes = {name: shape for name, shape in shapes.items() if name != DECODER or not tied_copy}

    def read_floats(name: str) -> np.ndarray:
        tensor = read(name)
        if tensor.dtype.name not in EXACT_IN_FLOAT32:
            raise UserError(
                f"{folder}: {name} is stored as {tensor.dtype.name}; only {', '.join(EXACT_IN_FLOAT32)} can be merged"
            )
        return tensor

    return StoredModel(
        path=str(folder),
        kind=HUGGING_FACE,
        shapes=shapes,
        read=read_floats,
        config=config,
        meta=fields,
        tokenizer=_vocabulary(folder / "tokenizer.json"),
        folder=folder,
    )


def _vocabulary(path: Place) -> dict[str, str] | None:
    """What a tokenizer.json's ids stand for, as a record's content; two that split texts otherwise may still merge."""
    if not path.is_file():
        return None
    description = read_json(path)
    try:
        listed = sorted(pieces_of(description).items())
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is no tokenizer.json of a model with a vocabulary ({error!r}); copy it again"
        ) from error
    return {"content": hashlib.sha256(json.dumps(listed).encode()).hexdigest()}
