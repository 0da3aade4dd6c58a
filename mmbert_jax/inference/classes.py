"""What a model with a classifying head says of texts: their classes, those of their tokens, or where an answer stands.

Letters: B rows of a batch, L row length, S texts in a row, C classes.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from mmbert_jax.errors import UserError
from mmbert_jax.inference.devices import computing, spread
from mmbert_jax.inference.in_flight import gather
from mmbert_jax.inference.rows import Batch, batch_arrays, parts_of, plan_for, slots_for
from mmbert_jax.inference.tokenise import Text, tokenise
from mmbert_jax.model import heads
from mmbert_jax.model.heads import SEQUENCES, SPANS, TOKENS

if TYPE_CHECKING:
    from mmbert_jax.inference.model import Model

# The longest answer, in tokens, as in `transformers`' pipeline.
MAX_ANSWER_TOKENS = 15


@dataclasses.dataclass(frozen=True)
class Class:
    """A class and its score: a probability, or of a regression the number itself."""

    label: str
    score: float


@dataclasses.dataclass(frozen=True)
class TokenClass:
    """The likeliest class of a token."""

    token_id: int
    token: str
    label: str
    score: float


@dataclasses.dataclass(frozen=True)
class Answer:
    """Where in the second text of a pair an answer stands: its tokens [start, stop) of that text, and their text."""

    answer: str
    score: float
    start: int
    stop: int


Prediction = list[Class] | list[TokenClass] | Answer


def predict(
    model: "Model",
    texts: Text | Sequence[Text],
    *,
    batch_tokens: int | None = None,
    progress: bool = False,
) -> Prediction | list[Prediction]:
    """What the model's head says of texts, in their order.

    Args:
      texts: texts, or pairs of texts, or one of them alone; to find answers, pairs of a question and a text.
      batch_tokens: how many tokens go through each device at once; None: `rows.default_batch_tokens()`.
      progress: say on stderr how far it is.

    Returns:
      Of each text: all classes, the likeliest first (`Class`); or the class of every token but the special ones
      (`TokenClass`); or the likeliest answer (`Answer`). Of one text alone the same without a list around it.

    Raises:
      UserError: the model has no head for that, or a question has no text to be answered from.
    """
    check_head(model)
    if alone := _is_one(texts):
        texts = [texts]
    check_texts(model, texts)
    sequences, _ = tokenise(model, texts)
    batches = run(model, sequences, batch_tokens=batch_tokens)
    results = gather(batches, sequences, functools.partial(by_text, model=model), progress)
    found = [prediction(model, ids, logits) for ids, logits in zip(sequences, results, strict=True)]
    return found[0] if alone else found


def check_head(model: "Model") -> None:
    """Raises a `UserError` for a model whose head predicts no classes."""
    if model.head.kind not in _PREDICTIONS:
        raise UserError(
            f"the model's head is {model.head.kind!r}; classes are predicted by {', '.join(_PREDICTIONS)}"
        )


def check_texts(model: "Model", texts: Sequence[Text]) -> None:
    """Raises a `UserError` where a question has no text to be answered from."""
    if model.head.kind == SPANS and not all(_is_pair(text) for text in texts):
        raise UserError(
            "answers are found in texts: give pairs of a question and a text (--pair, --pair_field)"
        )


def prediction(model: "Model", ids: Sequence[int], logits: np.ndarray) -> Prediction:
    """What the logits of a text, [C] or [tokens, C], say of it."""
    return _PREDICTIONS[model.head.kind](model, ids, logits)


def run(
    model: "Model", sequences: Sequence[Sequence[int]], *, batch_tokens: int | None = None
) -> Iterator[tuple[Batch, jax.Array]]:
    """Starts one batch after the other on the device; `by_text` takes apart what comes out.

    Yields:
      A batch and its logits, float32 [B, S, C], S at least the number of texts in any of its rows; of tokens and spans
      [B, L, C].
    """
    for batch in plan_for(model, sequences, batch_tokens):
        arrays = batch_arrays(batch, sequences, model.tokenizer.special.pad)
        arrays = spread(arrays, model.mesh)
        with computing(model):
            logits = heads.outputs(
                model.params,
                model.config,
                **arrays,
                head=model.head,
                num_segments=slots_for(batch) if model.head.kind == SEQUENCES else 1,
                dtype=jnp.dtype(model.dtype),
            )
        yield batch, logits


def by_text(
    batch: Batch, logits: jax.Array, sequences: Sequence[Sequence[int]], model: "Model"
) -> Iterator[tuple[int, np.ndarray]]:
    """Each text of a batch of `run` and its logits [C], or those of its tokens [tokens, C]."""
    return parts_of(batch, logits, sequences, by_token=model.head.kind != SEQUENCES)


def _classes(model: "Model", ids: Sequence[int], logits: np.ndarray) -> list[Class]:
    del ids
    scores = _activation(model)(logits.astype(np.float64))
    found = [
        Class(label, float(score)) for label, score in zip(model.head.labels, scores, strict=True)
    ]
    return sorted(found, key=lambda x: -x.score)


def _token_classes(model: "Model", ids: Sequence[int], logits: np.ndarray) -> list[TokenClass]:
    special = {model.tokenizer.special.bos, model.tokenizer.special.eos}
    found = []
    for i, scores in zip(ids, _softmax(logits.astype(np.float64)), strict=True):
        if i not in special:
            best = int(scores.argmax())
            label, score = model.head.labels[best], float(scores[best])
            found.append(TokenClass(i, model.tokenizer.token_text(i), label, score))
    return found


def _answer(model: "Model", ids: Sequence[int], logits: np.ndarray) -> Answer:
    first = ids.index(model.tokenizer.special.eos) + 1  # of the second text
    start, stop = _softmax(logits[first:-1].astype(np.float64).T)
    if not len(start):
        return Answer("", 0.0, 0, 0)
    scores = np.triu(np.outer(start, stop))
    scores = np.tril(scores, MAX_ANSWER_TOKENS - 1)
    begin, end = np.unravel_index(scores.argmax(), scores.shape)
    text = model.tokenizer.decode(ids[first + begin : first + end + 1]).strip()
    return Answer(text, float(scores[begin, end]), int(begin), int(end) + 1)


def _activation(model: "Model") -> Callable[[np.ndarray], np.ndarray]:
    """As `transformers`' pipelines choose it."""
    problem, one = model.head.problem_type, len(model.head.labels) == 1
    if problem == "regression":
        return lambda x: x
    if problem == "multi_label_classification" or (not problem and one):
        return lambda x: 1 / (1 + np.exp(-x))
    return _softmax


def _softmax(x: np.ndarray) -> np.ndarray:
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


_PREDICTIONS = {SEQUENCES: _classes, TOKENS: _token_classes, SPANS: _answer}


def _is_pair(text: Any) -> bool:
    return isinstance(text, tuple | list) and len(text) == 2


def _is_one(texts: Any) -> bool:
    """Whether it is a text, or a pair as a tuple, and not a list of them."""
    return isinstance(texts, str) or (
        isinstance(texts, tuple) and len(texts) == 2 and all(isinstance(x, str) for x in texts)
    )
