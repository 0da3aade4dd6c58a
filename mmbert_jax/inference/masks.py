"""What a model puts in place of its tokeniser's mask token.

Letters: B rows of a batch, L row length, M masks, D hidden size.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from mmbert_jax.errors import UserError
from mmbert_jax.inference.devices import computing, spread
from mmbert_jax.inference.in_flight import gather
from mmbert_jax.inference.rows import Batch, batch_arrays, plan_for
from mmbert_jax.inference.tokenise import tokenise
from mmbert_jax.model import heads
from mmbert_jax.model.config import ModelConfig

if TYPE_CHECKING:
    from mmbert_jax.inference.model import Model

# Masks that go through the head at once: all their logits are held, 64 MB for a vocabulary of 256,000.
MASKS_AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What may stand at one mask: token id, its text (with the leading space, if any), its probability."""

    token_id: int
    token: str
    probability: float


def fill_mask(
    model: "Model",
    texts: str | Sequence[str],
    top_k: int = 5,
    *,
    batch_tokens: int | None = None,
    progress: bool = False,
) -> list[list[list[Prediction]]] | list[list[Prediction]]:
    """The `top_k` likeliest tokens for every mask of every text, likeliest first: result[text][mask][rank]; of one
    text alone result[mask][rank].

    Texts are packed into rows; what stands in one text does not influence another. A mask stands for a token with the
    white space before it, as pieces are masked in training.

    Args:
      batch_tokens: how many tokens go through each device at once; None: `rows.default_batch_tokens()`.
      progress: say on stderr how far it is.

    Raises:
      UserError: the model is no masked LM; a text has no mask token, or one beyond `model.max_length`; or there are not
        `top_k` tokens.
    """
    if alone := isinstance(texts, str):
        texts = [texts]
    if model.head.kind != heads.MLM:
        raise UserError(f"the model's head is {model.head.kind!r}; masks are filled by a masked LM")
    places = [f"text {number} ({text[:60]!r})" for number, text in enumerate(texts, start=1)]
    sequences, _ = masked_sequences(model, texts, places)
    batches = run(model, sequences, top_k, batch_tokens=batch_tokens)
    filled = gather(batches, sequences, functools.partial(by_text, model=model), progress)
    return filled[0] if alone else filled


def masked_sequences(
    model: "Model", texts: Sequence[str], places: Sequence[str]
) -> tuple[list[list[int]], list[bool]]:
    """`tokenise`, and every text has a mask and none is cut off; `places` name the texts in messages."""
    sequences, cut = tokenise(model, texts)
    mask, mask_id = model.tokenizer.pieces["mask"], model.tokenizer.special.mask
    for text, where, ids, was_cut in zip(texts, places, sequences, cut, strict=True):
        masks, found = text.count(mask), ids.count(mask_id)
        if not masks:
            raise UserError(f"{where} has no {mask}; write {mask} where a token is to be guessed")
        if was_cut and found < masks:
            raise UserError(
                f"{where} has a {mask} beyond the {model.max_length} tokens that are read; shorten it"
            )
        if found != masks:
            raise UserError(
                f"{where} has {mask} {masks} times, of which the tokeniser {model.tokenizer.path} finds {found}; write"
                f" spaces around {mask}"
            )
    return sequences, cut


def run(
    model: "Model",
    sequences: Sequence[Sequence[int]],
    top_k: int,
    *,
    batch_tokens: int | None = None,
) -> Iterator[tuple[Batch, list[tuple[jax.Array, jax.Array]]]]:
    """Starts one batch after the other on the device; `by_text` takes apart what comes out.

    Yields:
      A batch, and of all its masks, row by row, probabilities float32 [M, top_k] and ids int32 [M, top_k] in parts of
      MASKS_AT_ONCE; the last part may have some more rows than there are masks.
    """
    if not 1 <= top_k <= model.config.vocab_size:
        raise UserError(
            f"top_k is {top_k}; it has to be between 1 and the vocabulary's {model.config.vocab_size}"
        )
    dtype, special = jnp.dtype(model.dtype), model.tokenizer.special
    for batch in plan_for(model, sequences, batch_tokens):
        arrays = batch_arrays(batch, sequences, special.pad)
        with computing(model):
            hidden = heads.encode(
                model.params, model.config, **spread(arrays, model.mesh), dtype=dtype
            )
        masked = np.flatnonzero(arrays["tokens"] == special.mask)
        parts = []
        for start in range(0, len(masked), MASKS_AT_ONCE):
            part = masked[start : start + MASKS_AT_ONCE]
            # A power of two, so that few numbers of masks need a program of their own.
            slots = 1 << (len(part) - 1).bit_length()
            with computing(model):
                vectors = _gather(hidden, np.resize(part, slots))
                parts.append(_top(model.params, model.config, vectors, top_k))
        yield batch, parts


def by_text(
    batch: Batch, out: list[tuple[jax.Array, jax.Array]], sequences, model: "Model"
) -> Iterator[tuple[int, list[list[Prediction]]]]:
    """Each text of a batch of `run` and what may stand at its masks."""
    probabilities, ids = (np.concatenate([np.asarray(part[i]) for part in out]) for i in (0, 1))
    mask = 0
    for text in (text for row in batch.rows for text in row):
        masks = []
        for _ in range(sequences[text].count(model.tokenizer.special.mask)):
            masks.append(
                [
                    Prediction(int(i), model.tokenizer.token_text(int(i)), float(p))
                    for p, i in zip(probabilities[mask], ids[mask], strict=True)
                ]
            )
            mask += 1
        yield text, masks


@jax.jit
def _gather(hidden: jax.Array, masked: jax.Array) -> jax.Array:
    """Of hidden states [B, L, D] those at flat positions int32 [M]: [M, D]."""
    return hidden.reshape(-1, hidden.shape[-1])[masked]


@functools.partial(jax.jit, static_argnames=("config", "top_k"))
def _top(params, config: ModelConfig, hidden, top_k: int) -> tuple[jax.Array, jax.Array]:
    """Probabilities float32 [M, top_k] and ids int32 [M, top_k] for hidden states [M, D]."""
    logits = heads.bind(config, params).logits(hidden)
    return jax.lax.top_k(jax.nn.softmax(logits), top_k)
