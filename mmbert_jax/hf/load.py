"""From a folder that `transformers` wrote (or `hf.export`) to parameters; needs neither `transformers` nor torch."""

import dataclasses
import json
from collections.abc import Callable, Container

import numpy as np

from mmbert_jax.errors import UserError
from mmbert_jax.files import check_uploaded
from mmbert_jax.hf.config import ARCHITECTURES, HfConfig, read_config
from mmbert_jax.hf.names import PREFIX, to_ours
from mmbert_jax.hf.weights import finite, load_weights
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.model.heads import ENCODER, MLM
from mmbert_jax.places import Place, place
from mmbert_jax.run import is_run

# The stored dtypes that float32 holds exactly.
EXACT_IN_FLOAT32 = ("float32", "bfloat16", "float16")
EMBEDDING, DECODER = "model.embeddings.tok_embeddings.weight", "decoder.weight"


@dataclasses.dataclass(frozen=True)
class HfModel:
    """A folder's content.

    Attributes:
      params: nested dict of float32 arrays, in the tree of `heads.init_params`.
    """

    params: dict
    config: HfConfig


def is_model_folder(path: Place) -> bool:
    """Whether a path is that of a Hugging Face folder; a run folder has a config.json too, but that of the run."""
    return (path / "config.json").is_file() and not is_run(path)


def load_hf(folder: str | Place) -> tuple[dict, ModelConfig, int]:
    """Parameters, shape and `max_position_embeddings` of `load_masked_lm`."""
    model = load_masked_lm(folder)
    return model.params, model.config.model, model.config.max_positions


def load_masked_lm(folder: str | Place) -> HfModel:
    """Reads a local ModernBertForMaskedLM.

    Raises:
      UserError: see `load_model`; or another head.
    """
    model = load_model(folder)
    config = model.config
    if config.head.kind != MLM:
        raise UserError(
            f"{folder}: architectures is [{ARCHITECTURES[config.head.kind]!r}]; a {ARCHITECTURES[MLM]} is needed here"
        )
    return model


def load_model(folder: str | Place) -> HfModel:
    """Reads a local ModernBERT: masked LM, sequence or token classifier, question answering, or bare encoder.

    Raises:
      UserError: no such folder, another architecture, pickled or damaged weights, tensors that are missing, surplus
        or of another shape than config.json says, or not finite; the message names the file, field or tensor.
    """
    folder = place(folder)
    check_uploaded(folder)
    try:
        fields = json.loads((folder / "config.json").read_bytes())
    except FileNotFoundError as error:
        raise UserError(
            f"{folder / 'config.json'} does not exist; give a local folder of a model"
        ) from error
    except ValueError as error:
        raise UserError(f"{folder / 'config.json'} is not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise UserError(f"{folder / 'config.json'} does not hold a JSON object")
    try:
        config = read_config(fields)
        tensors = load_weights(folder)
        for name, tensor in tensors.items():
            if tensor.dtype.name not in EXACT_IN_FLOAT32:
                raise UserError(
                    f"{name} is stored as {tensor.dtype.name}; only {', '.join(EXACT_IN_FLOAT32)} are read"
                )
        stored = {tensor.dtype.name for tensor in tensors.values()}
        config = dataclasses.replace(config, stored=stored.pop() if len(stored) == 1 else "")
        tensors = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            if not finite(tensor):
                bad = np.count_nonzero(~np.isfinite(tensor))
                raise UserError(
                    f"{bad:,} of {tensor.size:,} entries of {name} are infinite or no numbers (NaN);"
                    " copy the folder again, or take another model"
                )
        if config.head.kind == MLM and has_tied_copy(tensors, tensors.__getitem__):
            del tensors[DECODER]
        if config.head.kind == ENCODER and all(name.startswith(PREFIX) for name in tensors):
            tensors = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
        return HfModel(to_ours(tensors, config.model, config.head), config)
    except UserError as error:
        raise UserError(
            str(error) if str(folder) in str(error) else f"{folder}: {error}"
        ) from error


def has_tied_copy(names: Container[str], read: Callable[[str], np.ndarray]) -> bool:
    """Whether the tied decoder of a masked LM is stored a second time, as some writers do.

    Raises:
      UserError: it is another one than the embeddings, which is something that this model does not have.
    """
    if DECODER not in names or EMBEDDING not in names:
        return False
    if not np.array_equal(read(DECODER), read(EMBEDDING)):
        raise UserError(f"{DECODER} differs from {EMBEDDING}; only tied decoders are supported")
    return True
