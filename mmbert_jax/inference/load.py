"""A trained model, from a checkpoint or a Hugging Face folder, ready for texts."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from mmbert_jax.checkpoint import restore_params
from mmbert_jax.data.tokenizer import Tokenizer, load_tokenizer
from mmbert_jax.errors import UserError
from mmbert_jax.hf.config import disagreement
from mmbert_jax.hf.load import is_model_folder, load_model
from mmbert_jax.hf.sentence_transformers import SentenceModules, read_modules, recorded_modules
from mmbert_jax.inference.checkpoint_tokenizer import checkpoint_tokenizer
from mmbert_jax.inference.devices import data_mesh, replicate, replicate_modules
from mmbert_jax.inference.model import Model
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.model.heads import HeadConfig
from mmbert_jax.places import Place, place

DTYPES = ("float32", "bfloat16")


def load(
    path: str | Place,
    *,
    tokenizer: str | Place | None = None,
    max_length: int | None = None,
    dtype: str | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Model:
    """Loads a model; neither torch nor `transformers` is needed.

    Args:
      path: a run folder (its newest checkpoint), one checkpoint in it, or a folder with the config.json and the
        safetensors of a ModernBERT, whatever its head.
      tokenizer: folder or file; None takes the one that the model was trained with.
      max_length: None takes the longest text that the model was trained on, or less, where its Sentence Transformers
        modules say so.
      dtype: None takes bfloat16 on accelerators and float32 on a CPU.
      devices: over which the texts are spread; None takes all that this process has.

    Raises:
      UserError: nothing there, or the weights, the config and the tokeniser do not fit each other.
    """
    path = place(path)
    dtype = dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    if dtype not in DTYPES:
        raise UserError(f"dtype is {dtype!r}; it has to be one of {', '.join(DTYPES)}")
    if is_model_folder(path):
        stored = load_model(path)
        params, config, head = stored.params, stored.config.model, stored.config.head
        trained_length, special_ids = stored.config.max_positions, stored.config.special_ids
        modules = read_modules(path)
        found = load_tokenizer(tokenizer or path)
        if field := disagreement(special_ids, found.special):
            raise UserError(
                f"{path}: {field} is {special_ids[field]} in config.json, which is not what the tokeniser {found.path}"
                f" has ({found.special.to_dict()}); give the model's own with --tokenizer DIR"
            )
    else:
        params, meta = restore_params(path)
        head = HeadConfig.from_config(meta["config"])
        config = ModelConfig.from_config(meta["config"]["model"])
        trained_length = int(meta["config"]["data"]["row_length"])
        found = checkpoint_tokenizer(meta, tokenizer)
        modules = recorded_modules(meta)
    if found.vocab_size > config.vocab_size:
        raise UserError(
            f"the tokeniser {found.path} has {found.vocab_size} entries, but the embedding of {path} has"
            f" {config.vocab_size}; give the tokeniser that the model was trained with"
        )
    if modules and modules.width != config.hidden_size:
        raise UserError(
            f"{path}: the Sentence Transformers modules are for vectors of {modules.width} values; the model's have"
            f" {config.hidden_size}"
        )
    if max_length is None:
        max_length = min(trained_length, (modules and modules.max_length) or trained_length)
    if max_length < 2:
        raise UserError(f"max_length is {max_length}; <bos> and <eos> alone are 2 tokens")
    # Nothing is dropped here, and Hugging Face folders say so: one model, one set of compiled programs.
    config = dataclasses.replace(config, attention_output_dropout=0.0)
    mesh = data_mesh(devices)
    return Model(
        params=replicate(params, mesh),
        config=config,
        head=head,
        tokenizer=found,
        max_length=max_length,
        dtype=dtype,
        modules=replicate_modules(modules, mesh),
        mesh=mesh,
        fingerprint=_fingerprint(params, config, found, modules),
    )


def _fingerprint(
    params: Mapping, config: ModelConfig, tokenizer: Tokenizer, modules: SentenceModules | None
) -> str:
    """A hash over the model's shape, its tokeniser, and some thousand values of every tensor."""
    digest = hashlib.sha256(f"{config} {tokenizer.sha256}".encode())
    behind = dataclasses.asdict(modules) if modules else {}
    settings = {name: value for name, value in behind.items() if name != "dense"}
    digest.update(repr(settings).encode() if modules else b"")
    for leaf in jax.tree.leaves((params, behind.get("dense", ()))):
        if isinstance(leaf, str):  # a dense layer's activation
            digest.update(leaf.encode())
            continue
        values = np.asarray(leaf).reshape(-1)
        digest.update(values[:: max(1, values.size // 1024)].tobytes())
    return digest.hexdigest()
