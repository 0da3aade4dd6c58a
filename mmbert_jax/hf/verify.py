"""An exported folder, loaded by `transformers`, has to give the logits that this project computes from it."""

import importlib.util
from pathlib import Path

import numpy as np

from mmbert_jax.hf.load import load_model
from mmbert_jax.hf.model_card import HEADS
from mmbert_jax.model.heads import ENCODER, SPANS, outputs

# Of the largest value that a model gives. float32 on both sides leaves some 1e-6 at full size, a wrong theta or window
# 1e-2 and more.
TOLERANCE = 1e-3
SAMPLE_TOKENS = 160  # beyond half the window of local layers, so that a wrong window shows


def compare_with_transformers(folder: Path) -> str:
    """Compares in float32, on a text of random tokens, whatever dtype is stored.

    Returns:
      What was compared, or which package is not there to compare with: a sentence.

    Raises:
      RuntimeError: the folder does not load, or gives something else.
    """
    missing = [name for name in ("torch", "transformers") if not importlib.util.find_spec(name)]
    if missing:
        return f"weights verified bit for bit; logits not, which needs {' and '.join(missing)}"
    import torch
    import transformers

    model = load_model(folder)
    config, head = model.config.model, model.config.head
    rng = np.random.default_rng(0)
    length = min(SAMPLE_TOKENS, model.config.max_positions)
    tokens = rng.integers(0, config.vocab_size, (1, length)).astype(np.int32)
    row = (tokens, np.ones_like(tokens), np.arange(length, dtype=np.int32)[None])
    ours = np.asarray(outputs(model.params, config, *row, head))
    try:
        theirs = getattr(transformers, HEADS[head.kind][2]).from_pretrained(folder).eval().float()
        with torch.no_grad():
            out = theirs(
                input_ids=torch.from_numpy(tokens).long(),
                attention_mask=torch.ones(1, length, dtype=torch.long),
            )
    except Exception as error:
        raise RuntimeError(
            f"transformers {transformers.__version__} does not load what was written: {error}"
        ) from error
    if head.kind == ENCODER:
        theirs = out.last_hidden_state
    elif head.kind == SPANS:
        theirs = torch.stack((out.start_logits, out.end_logits), dim=-1)
    else:
        theirs = out.logits
    theirs = theirs.numpy().reshape(ours.shape)
    difference, size = np.abs(ours - theirs).max(), np.abs(ours).max()
    if not difference <= TOLERANCE * max(size, 1.0):
        raise RuntimeError(
            f"transformers {transformers.__version__} computes something else from what was written: the outputs differ"
            f" by up to {difference:.1e}, at values up to {size:.1f}"
        )
    return (
        f"weights verified bit for bit; outputs equal those of transformers {transformers.__version__} to"
        f" {difference:.0e} at values up to {size:.1f}"
    )
