"""A folder's safetensors files: one, or shards with an index, in the layout that `transformers` reads and writes."""

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mmbert_jax.errors import UserError
from mmbert_jax.files import write_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def save_weights(folder: Path, tensors: dict[str, np.ndarray], max_shard_bytes: int) -> None:
    """Writes the tensors (C-contiguous) into an empty folder, in shards where they exceed `max_shard_bytes`.

    A shard is filled in the order of `tensors`; a tensor larger than a shard gets one of its own.
    """
    shards: list[dict[str, np.ndarray]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        if shards[-1] and filled + tensor.nbytes > max_shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += tensor.nbytes
    if len(shards) == 1:
        _save(shards[0], folder / SINGLE)
        return
    weight_map = {}
    for i, shard in enumerate(shards, start=1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors"
        _save(shard, folder / file)
        weight_map |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(folder / INDEX, index)


def _save(tensors: dict[str, np.ndarray], path: Path) -> None:
    # `transformers` refuses files that do not say which framework's layout they have; "pt" is what it writes itself.
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if not found:
            raise OSError(f"{path} cannot be written: {error}") from error
        number = int(found.group(1))
        raise OSError(number, os.strerror(number), str(path)) from error


def load_weights(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a folder on this machine, in their stored dtypes.

    Raises:
      UserError: no safetensors file (a pickled `.bin` is not opened, since that can run code), or a damaged one.
    """
    tensors = {}
    for file, names in _files(folder).items():
        with _opened(folder / file) as opened:
            for name in opened.keys() if names is None else names:
                tensors[name] = opened.get_tensor(name)
    return tensors


def open_weights(
    folder: Path,
) -> tuple[dict[str, tuple[int, ...]], Callable[[str], np.ndarray]]:
    """A folder's tensors, to be read one at a time.

    Returns:
      Shapes by name, and a function from a name to that tensor in its stored dtype.

    Raises:
      UserError: as `load_weights`, also when a tensor is read.
    """
    shapes, places = {}, {}
    for file, names in _files(folder).items():
        with _opened(folder / file) as opened:
            for name in opened.keys() if names is None else names:
                shapes[name] = tuple(opened.get_slice(name).get_shape())
                places[name] = file

    def read(name: str) -> np.ndarray:
        with _opened(folder / places[name]) as opened:
            return opened.get_tensor(name)

    return shapes, read


@contextlib.contextmanager
def _opened(path: Path) -> Iterator:
    try:
        with safe_open(path, framework="np") as opened:
            yield opened
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is missing although {INDEX} names it; copy the folder again"
        ) from error
    except SafetensorError as error:
        raise UserError(f"{path} cannot be read ({error}); copy the folder again") from error


def _files(folder: Path) -> dict[str, list[str] | None]:
    """File name -> names of the tensors to read from it, None for all of them."""
    if (folder / SINGLE).exists():
        return {SINGLE: None}
    if (folder / INDEX).exists():
        try:
            weight_map = dict(json.loads((folder / INDEX).read_bytes())["weight_map"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{folder / INDEX} is damaged ({error!r}); copy the folder again"
            ) from error
        for file in weight_map.values():
            if Path(str(file)).name != file or Path(file).suffix != ".safetensors":
                raise UserError(
                    f"{folder / INDEX} names {file!r}, which is no safetensors file of this folder; copy it again"
                )
        files: dict[str, list[str] | None] = {file: [] for file in weight_map.values()}
        for name, file in weight_map.items():
            files[file].append(name)
        return files
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if pickles:
        raise UserError(
            f"{folder} holds only pickled weights ({pickles[0]}), which can run code when opened; load it with"
            f" `transformers` where you trust it and `save_pretrained` it, which writes {SINGLE}"
        )
    raise UserError(f"{folder} holds neither {SINGLE} nor {INDEX}")
