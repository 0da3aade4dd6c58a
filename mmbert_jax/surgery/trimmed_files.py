"""The files of a folder whose vocabulary is trimmed: what names its special tokens, config.json, weights."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmbert_jax.data.special_tokens import TOKENIZER_CONFIG
from mmbert_jax.errors import UserError
from mmbert_jax.files import read_json, write_json
from mmbert_jax.hf.export import check_written
from mmbert_jax.hf.sentence_transformers import module_files, write_modules
from mmbert_jax.hf.weights import open_weights, save_weights
from mmbert_jax.places import Place

CONFIG = "config.json"
# Tensors with a row for each id, in any of the model's classes.
BY_ID = ("tok_embeddings.weight", "decoder.weight", "decoder.bias")
# `tokenizer.model` is not copied: it would still have the whole vocabulary.
COPIED = ("special_tokens_map.json",)
MAX_SHARD_BYTES = 5_000_000_000
# The decoder's bias in rows that no token has: such an id is never predicted, and no loss feels it. It is well within
# all stored dtypes.
NEVER = -1e4


@dataclasses.dataclass(frozen=True)
class NamingFiles:
    """What a folder says about ids besides tokenizer.json.

    Attributes:
      config: config.json.
      tokenizer_config: tokenizer_config.json; None where there is none.
    """

    config: dict[str, Any]
    tokenizer_config: dict[str, Any] | None

    def ids(self) -> set[int]:
        """All ids that they name."""
        return {i for _, ids in _ids_by_field(self.config) for i in ids} | {
            int(i) for i in self._added()
        }

    def _added(self) -> Mapping[str, Any]:
        added = (self.tokenizer_config or {}).get("added_tokens_decoder")
        return {} if added is None else added

    def renumbered(self, new_id: Mapping[int, int], rows: int) -> "NamingFiles":
        """The same with new ids, for an embedding of so many rows."""
        config = self.config | {"vocab_size": rows}
        for field, ids in _ids_by_field(self.config):
            new = [new_id[i] for i in ids]
            config[field] = new if isinstance(self.config[field], list) else new[0]
        names = self.tokenizer_config
        if self._added():
            added = {str(new_id[int(i)]): token for i, token in self._added().items()}
            names = names | {"added_tokens_decoder": added}
        return NamingFiles(config, names)


def read_naming_files(folder: Place) -> NamingFiles:
    """Raises a `UserError` for files that are missing, damaged or do not hold what they should."""
    config = _read_object(folder / CONFIG)
    size = config.get("vocab_size")
    if not isinstance(size, int):
        raise UserError(f"{folder / CONFIG}: vocab_size is {size!r}; it has to be a whole number")
    path = folder / TOKENIZER_CONFIG
    names = _read_object(path) if path.is_file() else None
    added = (names or {}).get("added_tokens_decoder")
    if added is not None and not (isinstance(added, Mapping) and all(i.isdecimal() for i in added)):
        raise UserError(f"{path}: added_tokens_decoder does not go from ids to tokens")
    return NamingFiles(config, names)


def write_names(source: Place, folder: Path, files: NamingFiles) -> None:
    """The files that name the tokens of the tokenizer.json in `folder`, and modules of Sentence Transformers."""
    if files.tokenizer_config is not None:
        write_json(folder / TOKENIZER_CONFIG, files.tokenizer_config)
    for name in COPIED:
        if (source / name).is_file():
            (folder / name).write_bytes((source / name).read_bytes())
    write_modules(folder, module_files(source) or {})


def write_model(
    source: Place, folder: Path, files: NamingFiles, keep: list[int], rows: int
) -> dict[str, dict[str, int]]:
    """Writes the weights with the rows of `keep` and as many more as make `rows`; returns what that comes to."""
    size = files.config["vocab_size"]
    if keep[-1] >= size:
        raise UserError(
            f"{source}: its tokeniser has the id {keep[-1]}, but config.json's vocab_size is {size}"
        )
    shapes, read = open_weights(source)
    if not any(name.endswith(BY_ID) for name in shapes):
        raise UserError(
            f"{source}: no tensor is called {BY_ID[0]}: this is no ModernBERT, whose embedding could be trimmed"
        )
    tensors, before = {}, 0
    for name, shape in shapes.items():
        tensor = read(name)
        before += tensor.nbytes
        if name.endswith(BY_ID):
            if shape[0] != size:
                raise UserError(
                    f"{source}: {name} has {shape[0]} rows, but config.json's vocab_size is {size}"
                )
            tensor = _rows(tensor, keep, rows)
        tensors[name] = tensor
    save_weights(folder, tensors, MAX_SHARD_BYTES)
    check_written(folder, tensors)
    new_id = {old: new for new, old in enumerate(keep)}
    write_json(folder / CONFIG, files.renumbered(new_id, rows).config)
    return {
        "rows": {"before": size, "after": rows},
        "parameters": {
            "before": sum(map(math.prod, shapes.values())),
            "after": sum(tensor.size for tensor in tensors.values()),
        },
        "bytes": {"before": before, "after": sum(tensor.nbytes for tensor in tensors.values())},
    }


def _rows(tensor: np.ndarray, keep: list[int], rows: int) -> np.ndarray:
    """The rows of `keep`, then those that no token has."""
    result = np.zeros((rows, *tensor.shape[1:]), tensor.dtype)
    result[: len(keep)] = tensor[np.asarray(keep)]
    if tensor.ndim == 1:
        result[len(keep) :] = NEVER
    return result


def _ids_by_field(config: Mapping[str, Any]) -> Iterator[tuple[str, list[int]]]:
    """The fields of config.json that name ids: one, or several."""
    for field, value in config.items():
        ids = value if isinstance(value, list) else [value]
        if field.endswith("_token_id") and ids and all(isinstance(i, int) for i in ids):
            yield field, ids


def _read_object(path: Place) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object")
    return value
