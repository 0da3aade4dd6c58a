"""A folder's safetensors files: one, or shards with an index, in the layout that `transformers` reads and writes."""

import dataclasses
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from mmbert_jax import buckets
from mmbert_jax.errors import UserError
from mmbert_jax.files import check_uploaded, naming, write_json
from mmbert_jax.places import Place, filesystem

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

# The format's names of dtypes that NumPy has.
_DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    **{f"F{8 * n}": np.dtype(f"f{n}") for n in (2, 4, 8)},
    **{f"{kind.upper()}{8 * n}": np.dtype(f"{kind}{n}") for kind in "iu" for n in (1, 2, 4, 8)},
}


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


def load_weights(folder: Place) -> dict[str, np.ndarray]:
    """All tensors of a folder, in their stored dtypes.

    Raises:
      UserError: no safetensors file (a pickled `.bin` is not opened, since that can run code), or a damaged one.
    """
    shapes, read = open_weights(folder)
    return {name: read(name) for name in shapes}


def open_weights(
    folder: Place,
) -> tuple[dict[str, tuple[int, ...]], Callable[[str], np.ndarray]]:
    """A folder's tensors, to be read one at a time: of a file in a bucket, the bytes of that tensor alone.

    Returns:
      Shapes by name, and a function from a name to that tensor in its stored dtype.

    Raises:
      UserError: as `load_weights`, also when a tensor is read.
    """
    check_uploaded(folder)
    tensors: dict[str, tuple[Place, _Stored]] = {}
    for file, names in _files(folder).items():
        stored = _read_header(folder / file)
        for name in stored if names is None else names:
            if name not in stored:
                raise UserError(
                    f"{folder / file} has no {name}, although {INDEX} says so; copy the folder again"
                )
            tensors[name] = folder / file, stored[name]

    def read(name: str) -> np.ndarray:
        path, found = tensors[name]
        data = _read_range(path, found.start, found.start + found.nbytes)
        return np.frombuffer(data, found.dtype).reshape(found.shape)

    return {name: found.shape for name, (_, found) in tensors.items()}, read


def finite(tensor: np.ndarray) -> bool:
    """Whether all entries are numbers."""
    # A NaN is the least and the largest of its tensor, so that nothing of the tensor's size is needed.
    return not tensor.size or bool(np.isfinite(tensor.min()) and np.isfinite(tensor.max()))


@dataclasses.dataclass(frozen=True)
class _Stored:
    """Where a tensor lies in its file, and as what."""

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _read_header(path: Place) -> dict[str, _Stored]:
    """What a safetensors file holds, by its header: its length in 8 bytes, then JSON, and behind it the tensors' bytes.

    https://github.com/huggingface/safetensors#format. The library itself opens only files on a disk.
    """
    try:
        with naming(path):
            size = filesystem(path).size(str(path))
        if size < 8:
            raise ValueError(f"it has {size} bytes")
        if (opening := _read_range(path, 0, 8)) == b"version ":
            raise UserError(
                f"{path} is a pointer of Git LFS and not the file; fetch it with `git lfs pull`"
            )
        length = int.from_bytes(opening, "little")
        if 8 + length > size:
            raise ValueError(f"its header has {length:,} bytes, the file {size:,}")
        stored = {}
        for name, entry in json.loads(_read_range(path, 8, 8 + length)).items():
            if name == "__metadata__":
                continue
            if entry["dtype"] not in _DTYPES:
                raise UserError(f"{path}: {name} is stored as {entry['dtype']}, which is not read")
            start, stop = entry["data_offsets"]
            shape = tuple(entry["shape"])
            stored[name] = _Stored(_DTYPES[entry["dtype"]], shape, 8 + length + start)
            if start < 0 or stop - start != stored[name].nbytes or 8 + length + stop > size:
                raise ValueError(f"{name} has bytes {start:,} to {stop:,} behind its header")
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is missing although {INDEX} names it; copy the folder again"
        ) from error
    except UserError:
        raise
    # ValueErrors are JSON's, too; the others come of JSON that is no such header.
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error!r}); copy the folder again") from error
    return stored


def _read_range(path: Place, start: int, stop: int) -> bytes:
    with naming(path):
        data = buckets.read_range(path, start, stop)
    if len(data) != stop - start:
        raise UserError(f"{path} became shorter while it was read; copy the folder again")
    return data


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
