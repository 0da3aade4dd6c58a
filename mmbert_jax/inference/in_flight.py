"""Work that is under way while its forerunner is waited for."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from mmbert_jax.data.progress import Progress
from mmbert_jax.inference.rows import Batch


def ahead(items: Iterable, depth: int = 2) -> Iterator:
    """The same items; up to `depth` more are asked for before one is given out, so that a device has work waiting."""
    waiting: deque = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > depth:
            yield waiting.popleft()
    yield from waiting


def gather(
    batches: Iterator[tuple[Batch, Any]],
    sequences: Sequence[Sequence[int]],
    by_text: Callable[..., Iterator[tuple[int, Any]]],
    progress: bool,
) -> list[Any]:
    """What comes out of the model for each text, in their order.

    Args:
      batches: starts one batch after the other, and gives it with what will come out.
      sequences: token ids of each text.
      by_text: batch, what came out, sequences -> text and its part of that.
      progress: say on stderr how far it is.
    """
    results: list = [None] * len(sequences)
    shown = Progress("texts:", len(sequences)) if progress else None
    amounts = {"texts": 0, "tokens": 0}
    for batch, out in ahead(batches):
        before = amounts["texts"]
        for text, result in by_text(batch, out, sequences):
            results[text] = result
            amounts["texts"] += 1
            amounts["tokens"] += len(sequences[text])
        if shown:
            shown.advance(amounts["texts"] - before, amounts)
    if shown:
        shown.finish(amounts)
    return results
