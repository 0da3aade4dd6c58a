"""An exported folder, loaded by `transformers`, has to give the logits that this project computes from it."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mmbert_jax.errors import UserError, brief
from mmbert_jax.hf.load import load_model
from mmbert_jax.hf.model_card import HEADS
from mmbert_jax.model.heads import ENCODER, SPANS, outputs
from mmbert_jax.parallel.mesh import make_mesh

# Of the largest value that a model gives. float32 on both sides leaves some 1e-6 at full size, a wrong theta or window
# 1e-2 and more.
TOLERANCE = 1e-3
SAMPLE_TOKENS = 160  # beyond half the window of local layers, so that a wrong window shows
BITS = "weights verified bit for bit"


class Mismatch(RuntimeError):
    """What was written is not what was meant."""


def compare_with_transformers(folder: Path) -> str:
    """Compares in float32, on a text of random tokens, whatever dtype is stored.

    Both sides compute on the CPU, and at full precision: a GPU's or a TPU's float32 is rounded to less by default.

    Returns:
      What was compared: a sentence. One that begins with "warning:" where nothing could be: a package is not there,
      does not work here, or is too old; memory is short. None of that says anything about the folder.

    Raises:
      Mismatch: `transformers` gives something else, or misses tensors.
      UserError: it is no folder that `load_model` reads.
    """
    missing = [name for name in ("torch", "transformers") if not importlib.util.find_spec(name)]
    if missing:
        return f"{BITS}; logits not, which needs {' and '.join(missing)}"
    try:
        return _compare(folder)
    except (Mismatch, UserError):
        raise
    # What other packages raise here is theirs: a CUDA that torch does not find, a ModernBERT that is not known yet.
    except Exception as error:
        return (
            f"warning: {BITS}, but its outputs could not be compared with those of transformers:"
            f" {type(error).__name__}: {brief(error)}"
        )


def _compare(folder: Path) -> str:
    import torch
    import transformers

    model = load_model(folder)
    config, head = model.config.model, model.config.head
    rng = np.random.default_rng(0)
    length = min(SAMPLE_TOKENS, model.config.max_positions)
    tokens = rng.integers(0, config.vocab_size, (1, length)).astype(np.int32)
    row = (tokens, np.ones_like(tokens), np.arange(length, dtype=np.int32)[None])
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, [_cpu()])
    with jax.set_mesh(mesh), jax.default_matmul_precision("highest"):
        params, *row = jax.device_put((model.params, *row), NamedSharding(mesh, PartitionSpec()))
        ours = np.asarray(outputs(params, config, *row, head))
    auto_class = getattr(transformers, HEADS[head.kind][2])
    theirs, told = auto_class.from_pretrained(folder, output_loading_info=True)
    if wrong := {
        what: sorted(map(str, told[what]))
        for what in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if told.get(what)
    }:
        raise Mismatch(
            f"transformers {transformers.__version__} takes other tensors than were written: {wrong}"
        )
    with torch.no_grad():
        out = theirs.eval().float()(
            input_ids=torch.from_numpy(tokens).long(),
            attention_mask=torch.ones(1, length, dtype=torch.long),
        )
    if head.kind == ENCODER:
        theirs = out.last_hidden_state
    elif head.kind == SPANS:
        theirs = torch.stack((out.start_logits, out.end_logits), dim=-1)
    else:
        theirs = out.logits
    theirs = theirs.numpy().reshape(ours.shape)
    difference, size = np.abs(ours - theirs).max(), np.abs(ours).max()
    if not difference <= TOLERANCE * max(size, 1.0):
        raise Mismatch(
            f"transformers {transformers.__version__} computes something else from what was written: the outputs differ"
            f" by up to {difference:.1e}, at values up to {size:.1f}"
        )
    return (
        f"{BITS}; outputs equal those of transformers {transformers.__version__} to"
        f" {difference:.0e} at values up to {size:.1f}"
    )


def _cpu() -> jax.Device:
    try:
        return jax.devices("cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves it out
        return jax.devices()[0]
