"""A trained model, from a checkpoint or a Hugging Face folder, ready to encode texts and to fill masks."""

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from mmbert_jax.checkpoint import restore_params
from mmbert_jax.data.tokenizer import Tokenizer, load_tokenizer
from mmbert_jax.errors import UserError
from mmbert_jax.hf.config import disagreement
from mmbert_jax.hf.load import load_masked_lm
from mmbert_jax.inference.checkpoint_tokenizer import checkpoint_tokenizer
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.model.heads import MLM, HeadConfig
from mmbert_jax.places import Place, absolute, place
from mmbert_jax.run import is_run

DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Model:
    """What inference needs.

    Attributes:
      params: nested dict of float32 arrays on the device.
      max_length: tokens of a text, <bos> and <eos> included, beyond which it is cut.
      dtype: in which the model computes, "float32" or "bfloat16"; pooling and probabilities are float32.
      fingerprint: tells this model from another, or from itself at another step.
    """

    params: Mapping
    config: ModelConfig
    tokenizer: Tokenizer
    max_length: int
    dtype: str
    fingerprint: str


def load(
    path: str | Place,
    *,
    tokenizer: str | Place | None = None,
    max_length: int | None = None,
    dtype: str | None = None,
) -> Model:
    """Loads a model; neither torch nor `transformers` is needed.

    Args:
      path: a run folder (its newest checkpoint), one checkpoint in it, or a folder with the config.json and the
        safetensors of a ModernBertForMaskedLM.
      tokenizer: folder or file; None takes the one that the model was trained with.
      max_length: None takes the longest text that the model was trained on.
      dtype: None takes bfloat16 on accelerators and float32 on a CPU.

    Raises:
      UserError: nothing there, another head than that of a masked LM, or the weights, the config and the tokeniser
        do not fit each other.
    """
    path = place(path)
    dtype = dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    if dtype not in DTYPES:
        raise UserError(f"dtype is {dtype!r}; it has to be one of {', '.join(DTYPES)}")
    # A run folder has a config.json too, but that of the run.
    if (path / "config.json").is_file() and not is_run(path):
        stored = load_masked_lm(path)
        params, config = stored.params, stored.config.model
        trained_length, special_ids = stored.config.max_positions, stored.config.special_ids
        found = load_tokenizer(tokenizer or path)
        if field := disagreement(special_ids, found.special):
            raise UserError(
                f"{path}: {field} is {special_ids[field]} in config.json, which is not what the tokeniser {found.path}"
                f" has ({found.special.to_dict()}); give the model's own with --tokenizer DIR"
            )
    else:
        params, meta = restore_params(path)
        head = HeadConfig.from_config(meta["config"])
        if head.kind != MLM:
            raise UserError(
                f"{path} holds a model with the head {head.kind!r}; texts are encoded and masks filled by a masked LM."
                " Export it with tools/export_hf.py and use it with transformers"
            )
        config = ModelConfig.from_config(meta["config"]["model"])
        trained_length = int(meta["config"]["data"]["row_length"])
        found = checkpoint_tokenizer(meta, tokenizer)
    if found.vocab_size > config.vocab_size:
        raise UserError(
            f"the tokeniser {found.path} has {found.vocab_size} entries, but the embedding of {path} has"
            f" {config.vocab_size}; give the tokeniser that the model was trained with"
        )
    max_length = trained_length if max_length is None else max_length
    if max_length < 2:
        raise UserError(f"max_length is {max_length}; <bos> and <eos> alone are 2 tokens")
    # Nothing is dropped here, and Hugging Face folders say so: one model, one set of compiled programs.
    config = dataclasses.replace(config, attention_output_dropout=0.0)
    return Model(
        jax.device_put(params),
        config,
        found,
        max_length,
        dtype,
        _fingerprint(params, config, found),
    )


def tokenise(model: Model, texts: Sequence[str]) -> tuple[list[list[int]], list[bool]]:
    """`<bos> text <eos>` of each text, and whether it was cut: at `model.max_length` tokens, <eos> still at the end.

    <bos> and <eos> are what the tokeniser has for them: [CLS] and [SEP] of ModernBERT's.
    """
    room = model.max_length - 2
    ids = model.tokenizer.encode_batch(texts) if texts else []
    bos, eos = model.tokenizer.special.bos, model.tokenizer.special.eos
    return [[bos, *i[:room], eos] for i in ids], [len(i) > room for i in ids]


def _fingerprint(params: Mapping, config: ModelConfig, tokenizer: Tokenizer) -> str:
    """A hash over the model's shape, its tokeniser, and some thousand values of every tensor."""
    digest = hashlib.sha256(f"{config} {tokenizer.sha256}".encode())
    for leaf in jax.tree.leaves(params):
        values = np.asarray(leaf).reshape(-1)
        digest.update(values[:: max(1, values.size // 1024)].tobytes())
    return digest.hexdigest()


def use_compile_cache(folder: str | Place | None = None) -> Place | None:
    """Keeps compiled programs, so that the next process with the same shapes does not compile them again.

    To be called before anything is compiled.

    Args:
      folder: None takes $JAX_COMPILATION_CACHE_DIR, or else `mmbert_jax/compiled` in the user's cache folder.

    Returns:
      The folder; None, and nothing is kept, for a user who has none.
    """
    folder = folder or os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if not folder:
        try:
            caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        except (
            RuntimeError
        ):  # a user without HOME and without an entry in passwd, as in many containers
            return None
        folder = Path(caches) / "mmbert_jax" / "compiled"
    folder = absolute(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return folder
