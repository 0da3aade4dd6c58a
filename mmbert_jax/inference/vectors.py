"""Vectors of texts, or of their tokens.

Letters: N texts, B rows of a batch, L row length, S texts in a row, D hidden size.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from mmbert_jax.errors import UserError
from mmbert_jax.hf.sentence_transformers import SentenceModules, apply_modules
from mmbert_jax.inference.devices import computing, spread
from mmbert_jax.inference.in_flight import gather
from mmbert_jax.inference.quantise import OUTPUTS, quantise
from mmbert_jax.inference.rows import Batch, batch_arrays, parts_of, plan_for, slots_for
from mmbert_jax.inference.tokenise import tokenise
from mmbert_jax.model import heads

if TYPE_CHECKING:
    from mmbert_jax.inference.model import Model

POOLINGS = (*heads.TEXT_POOLINGS, "tokens")


def encode(
    model: "Model",
    texts: str | Sequence[str],
    pooling: str | None = None,
    *,
    prompt: str | None = None,
    prompt_name: str | None = None,
    truncate_dim: int | None = None,
    normalise: bool = False,
    output: str = "float32",
    ranges: np.ndarray | None = None,
    batch_tokens: int | None = None,
    progress: bool = False,
) -> np.ndarray | list[np.ndarray]:
    """Vectors of texts, in their order. Texts longer than `model.max_length` are cut there.

    Texts are packed into rows; what stands in one text does not influence another.

    Args:
      texts: several, or one alone.
      pooling: "mean" over all tokens of a text, <bos> and <eos> included, "cls", the vector of <bos>, "weightedmean" or
        "lasttoken", see `heads.pool`; "tokens" gives a vector for every token. None: what the Sentence Transformers
        modules of the model say, whose layers behind the pooling are applied then; or the mean, where it has none.
      prompt: put in front of every text, such as "query: ".
      prompt_name: instead, the name of one that the model has; with neither, its default prompt, if it has one.
      truncate_dim: how many of a vector's first dimensions are kept, before it is normalised; None: what the model's
        modules say, or all.
      normalise: divide every vector by its length, also where no module does.
      output, ranges: the vectors' type, see `quantise`.
      batch_tokens: how many tokens go through each device at once; None: `rows.default_batch_tokens()`.
      progress: say on stderr how far it is.

    Returns:
      [N, D] of the type that `output` says; for "tokens" a list of [tokens of the text, D]. Of one text alone [D], or
      [its tokens, D].

    Raises:
      UserError: an argument that cannot be.
    """
    if alone := isinstance(texts, str):
        texts = [texts]
    pooling = pooling or default_pooling(model)
    check_output(pooling, output)
    prompt = find_prompt(model, prompt, prompt_name)
    sequences, _ = tokenise(model, [prompt + text for text in texts])
    results = run(
        model,
        sequences,
        pooling,
        truncate_dim=truncate_dim,
        normalise=normalise,
        batch_tokens=batch_tokens,
    )
    vectors = gather(results, sequences, functools.partial(by_text, pooling=pooling), progress)
    if pooling == "tokens":
        vectors = [quantise(vector, output) for vector in vectors]
        return vectors[0] if alone else vectors
    shape = (len(vectors), vector_size(model, pooling, truncate_dim))
    stacked = np.stack(vectors) if vectors else np.zeros(shape, np.float32)
    quantised = quantise(stacked, output, ranges)
    return quantised[0] if alone else quantised


def default_pooling(model: "Model") -> str:
    """What the model was made for, or the mean."""
    return model.modules.pooling if model.modules else "mean"


def find_prompt(model: "Model", prompt: str | None, prompt_name: str | None) -> str:
    """What is put in front of texts, see `encode`; raises a `UserError` for a name that the model does not have."""
    known = model.modules.prompts if model.modules else {}
    if prompt is not None:
        if prompt_name is not None:
            raise UserError("give prompt or prompt_name, not both")
        return prompt
    if prompt_name is None:
        prompt_name = model.modules.default_prompt if model.modules else None
        return "" if prompt_name is None else known[prompt_name]
    if prompt_name not in known:
        raise UserError(
            f"prompt_name is {prompt_name!r}; the model has {', '.join(sorted(known)) or 'no prompts'}"
        )
    return known[prompt_name]


def check_output(pooling: str, output: str) -> None:
    """Raises a `UserError` for a pooling or a type that there is not, or that do not go together."""
    if pooling not in POOLINGS:
        raise UserError(f"pooling is {pooling!r}; it has to be one of {', '.join(POOLINGS)}")
    if output not in OUTPUTS:
        raise UserError(f"output is {output!r}; it has to be one of {', '.join(OUTPUTS)}")
    if pooling == "tokens" and output not in ("float32", "float16"):
        raise UserError(f"output {output!r} is for one vector a text, not for every token's")


def vector_size(model: "Model", pooling: str, truncate_dim: int | None) -> int:
    """Dimensions of a vector; raises a `UserError` where there are not as many as are to be kept."""
    modules = _modules(model, pooling)
    size = (
        modules.dense[-1].weight.shape[0] if modules and modules.dense else model.config.hidden_size
    )
    if truncate_dim is not None and not 1 <= truncate_dim <= size:
        raise UserError(f"truncate_dim is {truncate_dim}; it has to be between 1 and {size}")
    return truncate_dim or min(size, (modules and modules.truncate_dim) or size)


def _modules(model: "Model", pooling: str) -> SentenceModules | None:
    """The model's modules, where they go with a pooling."""
    return model.modules if model.modules and model.modules.pooling == pooling else None


def run(
    model: "Model",
    sequences: Sequence[Sequence[int]],
    pooling: str,
    *,
    truncate_dim: int | None = None,
    normalise: bool = False,
    batch_tokens: int | None = None,
) -> Iterator[tuple[Batch, jax.Array]]:
    """Starts one batch after the other on the device; `by_text` takes apart what comes out.

    Args:
      sequences: token ids of each text, with special ones.
      truncate_dim, normalise, batch_tokens: as in `encode`.

    Yields:
      A batch and its vectors, float32 [B, S, D], S at least the number of texts in any of its rows; for "tokens"
      [B, L, D].
    """
    size, modules = vector_size(model, pooling, truncate_dim), _modules(model, pooling)
    for batch in plan_for(model, sequences, batch_tokens):
        arrays = batch_arrays(batch, sequences, model.tokenizer.special.pad)
        arrays = spread(arrays, model.mesh)
        with computing(model):
            hidden = heads.encode(
                model.params, model.config, **arrays, dtype=jnp.dtype(model.dtype)
            )
            vectors = _pool(hidden, arrays["segment_ids"], pooling, slots_for(batch))
            if modules:
                vectors = apply_modules(modules, vectors)
            vectors = _finish(vectors, size, normalise)
        yield batch, vectors


def by_text(
    batch: Batch, out: jax.Array, sequences: Sequence[Sequence[int]], pooling: str
) -> Iterator[tuple[int, np.ndarray]]:
    """Each text of a batch of `run` and its vector [D], or its vectors [tokens, D]."""
    return parts_of(batch, out, sequences, by_token=pooling == "tokens")


@functools.partial(jax.jit, static_argnames=("pooling", "slots"))
def _pool(hidden, segment_ids, pooling: str, slots: int) -> jax.Array:
    """Hidden states [B, L, D] -> float32 [B, S, D], or [B, L, D] for tokens; what has no text gives zeros."""
    vectors = hidden.astype(jnp.float32)
    return vectors if pooling == "tokens" else heads.pool(vectors, segment_ids, slots, pooling)


@functools.partial(jax.jit, static_argnames=("size", "normalise"))
def _finish(vectors, size: int, normalise: bool) -> jax.Array:
    vectors = vectors[..., :size]
    if normalise:
        vectors /= jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return vectors
