"""From texts to the token ids that a model was trained on."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmbert_jax.inference.model import Model

Text = str | tuple[str, str]  # or a pair, as of a question and its answer


def tokenise(model: "Model", texts: Sequence[Text]) -> tuple[list[list[int]], list[bool]]:
    """`<bos> text <eos>` of each text, and whether it was cut: at `model.max_length` tokens, <eos> still at the end.

    Of a pair it is `<bos> one <eos> other <eos>`, and the longer one is cut. <bos> and <eos> are what the tokeniser has
    for them: [CLS] and [SEP] of ModernBERT's.
    """
    parts = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
    flat = [part for of_text in parts for part in of_text]
    ids = iter(model.tokenizer.encode_batch(flat) if flat else [])
    bos, eos = model.tokenizer.special.bos, model.tokenizer.special.eos
    sequences, cut = [], []
    for of_text in parts:
        found = [next(ids) for _ in of_text]
        kept = _cut(found, model.max_length - 1 - len(found))
        sequences.append([bos, *(i for part in kept for i in (*part, eos))])
        cut.append(any(len(a) != len(b) for a, b in zip(found, kept, strict=True)))
    return sequences, cut


def _cut(parts: list[list[int]], room: int) -> list[list[int]]:
    """One text, or two of which the longer one gives way to the other, in `room` tokens."""
    if sum(map(len, parts)) <= room:
        return parts
    if len(parts) == 1:
        return [parts[0][: max(room, 0)]]
    first, second = map(len, parts)
    kept = min(first, max(room - second, -(-room // 2)))
    return [parts[0][:kept], parts[1][: max(room - kept, 0)]]
