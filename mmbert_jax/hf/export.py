"""From a checkpoint's parameters to a folder that `transformers`' Auto classes load."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from mmbert_jax.checksums import sha256
from mmbert_jax.data.tokenizer import Tokenizer
from mmbert_jax.errors import UserError
from mmbert_jax.files import (
    atomic_folder,
    check_folder,
    is_left_of_upload,
    read_json,
    write_json,
    write_text,
)
from mmbert_jax.hf.config import recorded_ids, to_hf
from mmbert_jax.hf.imported import exported_fields, stored_dtype
from mmbert_jax.hf.model_card import CARD, model_card
from mmbert_jax.hf.names import to_theirs
from mmbert_jax.hf.sentence_transformers import recorded_files, width, write_modules
from mmbert_jax.hf.tokenizer import CopiedTokenizer, copy_files, to_hf_files
from mmbert_jax.hf.verify import BITS, Mismatch, compare_with_transformers
from mmbert_jax.hf.weights import finite, load_weights, save_weights
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.model.heads import HeadConfig
from mmbert_jax.places import Place, files_under, place

# Lists what an export wrote, so that a later export can tell its own folder from somebody else's.
MARKER = "mmbert_jax_export.json"
DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}


def export_hf(
    output: str | Place,
    params: Mapping,
    meta: Mapping,
    tokenizer: Tokenizer | CopiedTokenizer,
    *,
    dtype: str | None = None,
    max_shard_bytes: int = 5_000_000_000,
    held_out_groups: Mapping | None = None,
    verify: bool = True,
) -> str:
    """Writes weights, config.json, tokeniser files and a model card, and verifies what it wrote.

    The weights are read back and every bit compared; where torch and `transformers` are installed, they load the folder
    and have to give this model's logits. A folder of which they give something else does not stay; one that they cannot
    load here does.

    Args:
      output: a folder that does not exist, is empty, or holds an earlier export and nothing else (which is replaced).
      params, meta: of a checkpoint; `meta["config"]` tells the model's shape, its head, the longest row it was trained
        on; see `hf.config.recorded_ids` for the special ids.
      dtype: one of `DTYPES`, rounded to nearest even; None takes that of imported weights that nothing has changed
        since, and float32 for all others.
      held_out_groups: for the model card; None takes what `meta` has, of the evaluation before its step.
      verify: whether `transformers` is asked.

    Returns:
      What was verified, or why it could not be, and what was left out: sentences to print, a line each.

    Raises:
      UserError: the output folder holds something else, the parameters or the tokeniser do not fit the config, or a
        parameter is not finite in `dtype`.
      Mismatch: what was written is not what was meant.
    """
    output = place(output)
    check_output(output)
    config = ModelConfig.from_config(meta["config"]["model"])
    head = HeadConfig.from_config(meta["config"])
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"the tokeniser has {tokenizer.vocab_size} entries but config.model.vocab_size is {config.vocab_size};"
            " give the tokeniser that the checkpoint was trained with"
        )
    held_out_groups = (
        meta.get("held_out_groups", {}) if held_out_groups is None else held_out_groups
    )
    max_positions = int(meta["config"]["data"]["row_length"])
    dtype = dtype or stored_dtype(meta) or "float32"
    tensors = {
        name: to_dtype(name, x, dtype) for name, x in to_theirs(params, config, head).items()
    }
    fields = to_hf(config, max_positions, dtype, head, recorded_ids(meta))
    modules, note = _modules(meta, config)

    with new_folder(output, phase=meta.get("phase"), step=meta.get("step")) as folder:
        save_weights(folder, tensors, max_shard_bytes)
        check_written(folder, tensors)
        write_json(folder / "config.json", exported_fields(meta, fields, dtype))
        write_modules(folder, modules)
        if isinstance(tokenizer, CopiedTokenizer):
            copy_files(tokenizer, folder)
        else:
            to_hf_files(tokenizer, folder, max_positions)
        count = sum(x.size for x in tensors.values())
        card = model_card(output.name, meta, fields, count, held_out_groups, bool(modules))
        write_text(folder / CARD, card)
        del tensors
        if verify:
            verified = compare_with_transformers(folder)
        else:
            verified = f"{BITS}; outputs not compared with those of transformers, as asked for"
    return "\n".join(filter(None, (verified, note)))


def to_dtype(name: str, tensor: np.ndarray, dtype: str) -> np.ndarray:
    """A tensor as it is stored.

    Raises:
      UserError: an entry is no number, or is beyond what the dtype holds.
    """
    with np.errstate(over="ignore"):
        stored = tensor.astype(DTYPES[dtype])
    if finite(stored):
        return stored
    if finite(tensor):
        raise UserError(
            f"{name} reaches {np.abs(tensor).max():.3g}, beyond {dtype}; store it wider: --dtype float32"
        )
    raise UserError(
        f"{name} has entries that are infinite or no numbers (NaN); export an earlier checkpoint"
    )


def _modules(meta: Mapping, config: ModelConfig) -> tuple[dict[str, bytes], str]:
    """The files of the imported model's Sentence Transformers modules; what is to be said where they no longer fit."""
    files = recorded_files(meta)
    if not files or width(files) in (config.hidden_size, None):
        return files, ""
    return {}, (
        f"the imported model's Sentence Transformers modules are left out: they are for vectors of {width(files)}"
        f" values, and the model's have {config.hidden_size}"
    )


@contextlib.contextmanager
def new_folder(output: Place, **note: object) -> Iterator[Path]:
    """A hidden folder to write a model into; it becomes `output` when the block ends, and vanishes when it raises.

    A marker in it lists its files, so that a later export, merge or trimming may replace the folder and nothing else. A
    README.md that was edited since it was written is kept, which is said.

    Args:
      output: absent, empty, or such a folder.
      note: what the marker records besides.

    Raises:
      UserError: the output folder holds something else.
    """
    check_output(output)
    edited = _edited_card(output)
    with atomic_folder(output, replace=True, last=MARKER) as folder:
        yield folder
        # Of the card, the sum is that of the generated one: another tells that it was edited.
        marker = {
            "written_by": "mmbert_jax",
            **note,
            "files": {name: sha256(folder / name) for name in _names(folder)},
        }
        write_json(folder / MARKER, marker)
        if edited is not None:
            (folder / CARD).write_bytes(edited)
            print(
                f"{output / CARD} was edited and stays as it is; remove it to have one of this model written",
                flush=True,
            )


def _edited_card(output: Place) -> bytes | None:
    """The card of an earlier export, if it is not the one that was written."""
    if not (output / CARD).is_file() or is_left_of_upload(output):
        return None
    written = read_json(output / MARKER)["files"].get(CARD)
    return None if sha256(output / CARD) == written else (output / CARD).read_bytes()


def _names(folder: Place) -> list[str]:
    """Every file in a folder, by its path in it."""
    return [str(path)[len(str(folder)) + 1 :] for path in files_under(folder)]


def check_output(output: Place) -> None:
    """Raises a `UserError` unless the folder is absent, empty, or an earlier export with nothing added to it."""
    check_folder(output, replace=True)
    if not output.exists():
        return
    found = set(_names(output))
    if not found or is_left_of_upload(output):
        return
    if MARKER not in found:
        raise UserError(
            f"{output} holds files that no export wrote ({sorted(found)[0]}, ...); give an empty folder"
        )
    foreign = sorted(found - {MARKER} - set(read_json(output / MARKER)["files"]))
    if foreign:
        raise UserError(
            f"{output} holds an export and something else ({foreign[0]}); move that away or give an empty folder"
        )


def check_written(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    """Reads the weights back; what is on disk has to be what was meant, bit for bit."""
    read = load_weights(folder)
    if read.keys() != tensors.keys():
        raise Mismatch(f"wrote other tensors than meant: {sorted(read.keys() ^ tensors.keys())}")
    for name, tensor in tensors.items():
        if read[name].dtype != tensor.dtype or read[name].tobytes() != tensor.tobytes():
            raise Mismatch(f"{name} reads back differently; is the disk full or damaged?")
