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
from mmbert_jax.hf.model_card import model_card
from mmbert_jax.hf.names import to_theirs
from mmbert_jax.hf.tokenizer import CopiedTokenizer, copy_files, to_hf_files
from mmbert_jax.hf.verify import compare_with_transformers
from mmbert_jax.hf.weights import load_weights, save_weights
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.model.heads import HeadConfig
from mmbert_jax.places import Place, place

# Lists what an export wrote, so that a later export can tell its own folder from somebody else's.
MARKER = "mmbert_jax_export.json"
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


def export_hf(
    output: str | Place,
    params: Mapping,
    meta: Mapping,
    tokenizer: Tokenizer | CopiedTokenizer,
    *,
    dtype: str = "float32",
    max_shard_bytes: int = 5_000_000_000,
    held_out_groups: Mapping | None = None,
) -> str:
    """Writes weights, config.json, tokeniser files and a model card, and verifies what it wrote.

    The weights are read back and every bit compared; where torch and `transformers` are installed, they load the folder
    and have to give this model's logits. A folder that fails does not stay.

    Args:
      output: a folder that does not exist, is empty, or holds an earlier export and nothing else (which is replaced).
      params, meta: of a checkpoint; `meta["config"]` tells the model's shape, its head, the longest row it was trained
        on; see `hf.config.recorded_ids` for the special ids.
      dtype: "float32", or "bfloat16" for half the size (rounded to nearest even).
      held_out_groups: for the model card; None takes what `meta` has, of the evaluation before its step.

    Returns:
      What was verified, or why it could not be: a sentence to print.

    Raises:
      UserError: the output folder holds something else, or the parameters or the tokeniser do not fit the config.
      RuntimeError: what was written is not what was meant.
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
    tensors = {name: x.astype(DTYPES[dtype]) for name, x in to_theirs(params, config, head).items()}
    fields = to_hf(config, max_positions, dtype, head, recorded_ids(meta))

    with new_folder(output, phase=meta.get("phase"), step=meta.get("step")) as folder:
        save_weights(folder, tensors, max_shard_bytes)
        check_written(folder, tensors)
        write_json(folder / "config.json", fields)
        if isinstance(tokenizer, CopiedTokenizer):
            copy_files(tokenizer, folder)
        else:
            to_hf_files(tokenizer, folder, max_positions)
        count = sum(x.size for x in tensors.values())
        write_text(
            folder / "README.md", model_card(output.name, meta, fields, count, held_out_groups)
        )
        return compare_with_transformers(folder)


@contextlib.contextmanager
def new_folder(output: Place, **note: object) -> Iterator[Path]:
    """A hidden folder to write a model into; it becomes `output` when the block ends, and vanishes when it raises.

    A marker in it lists its files, so that a later export, merge or trimming may replace the folder and nothing else.

    Args:
      output: absent, empty, or such a folder.
      note: what the marker records besides.

    Raises:
      UserError: the output folder holds something else.
    """
    check_output(output)
    with atomic_folder(output, replace=True, last=MARKER) as folder:
        yield folder
        marker = {
            "written_by": "mmbert_jax",
            **note,
            "files": {path.name: sha256(path) for path in sorted(folder.iterdir())},
        }
        write_json(folder / MARKER, marker)


def check_output(output: Place) -> None:
    """Raises a `UserError` unless the folder is absent, empty, or an earlier export with nothing added to it."""
    check_folder(output, replace=True)
    if not output.exists():
        return
    found = {path.name for path in output.iterdir()}
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
        raise RuntimeError(
            f"wrote other tensors than meant: {sorted(read.keys() ^ tensors.keys())}"
        )
    for name, tensor in tensors.items():
        if read[name].dtype != tensor.dtype or read[name].tobytes() != tensor.tobytes():
            raise RuntimeError(f"{name} reads back differently; is the disk full or damaged?")
