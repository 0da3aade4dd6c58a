"""What a model puts in place of `<mask>`: `python -m mmbert_jax.inference.fill_mask --checkpoint RUN --text "..."`.

The mask token goes by the name that the model's tokeniser has for it, [MASK] with ModernBERT's.

Letters: B rows of a batch, L row length, M masks, D hidden size.
"""

import argparse
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from contextlib import closing

import jax
import jax.numpy as jnp
import numpy as np

from mmbert_jax.errors import UserError, run_main
from mmbert_jax.files import to_json
from mmbert_jax.inference import stream
from mmbert_jax.inference.load import Model, load, tokenise, use_compile_cache
from mmbert_jax.inference.rows import Batch, batch_arrays, plan
from mmbert_jax.model import heads
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.places import place

# Masks that go through the head at once: all their logits are held, 64 MB for a vocabulary of 256,000.
MASKS_AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What may stand at one mask: token id, its text (with the leading space, if any), its probability."""

    token_id: int
    token: str
    probability: float


def fill_mask(
    model: Model, texts: Sequence[str], top_k: int = 5, *, batch_tokens: int | None = None
) -> list[list[list[Prediction]]]:
    """The `top_k` likeliest tokens for every mask of every text, likeliest first: result[text][mask][rank].

    Texts are packed into rows; what stands in one text does not influence another. A mask stands for a token with the
    white space before it, as pieces are masked in training.

    Args:
      batch_tokens: how many tokens go through the model at once; None: `rows.default_batch_tokens()`.

    Raises:
      UserError: a text has no mask token, or one beyond `model.max_length`, or there are not `top_k` tokens.
    """
    places = [f"text {number} ({text[:60]!r})" for number, text in enumerate(texts, start=1)]
    sequences, _ = masked_sequences(model, texts, places)
    predictions: list = [None] * len(texts)
    for batch, out in stream.ahead(run(model, sequences, top_k, batch_tokens=batch_tokens)):
        for text, masks in by_text(batch, out, sequences, model):
            predictions[text] = masks
    return predictions


def masked_sequences(
    model: Model, texts: Sequence[str], places: Sequence[str]
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
    model: Model,
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
    for batch in plan([len(ids) for ids in sequences], model.config, batch_tokens):
        arrays = batch_arrays(batch, sequences, special.pad)
        hidden = heads.encode(model.params, model.config, **arrays, dtype=dtype)
        masked = np.flatnonzero(arrays["tokens"] == special.mask)
        parts = []
        for start in range(0, len(masked), MASKS_AT_ONCE):
            part = masked[start : start + MASKS_AT_ONCE]
            # A power of two, so that few numbers of masks need a program of their own.
            slots = 1 << (len(part) - 1).bit_length()
            vectors = _gather(hidden, np.resize(part, slots))
            parts.append(_top(model.params, model.config, vectors, top_k))
        yield batch, parts


def by_text(
    batch: Batch, out: list[tuple[jax.Array, jax.Array]], sequences, model: Model
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


def jsonl_bytes(
    record: stream.Record, ids: list[int], masks: list[list[Prediction]]
) -> list[bytes]:
    """`{"id": ..., "masks": [[{"token_id": ..., "token": ..., "probability": ...}, ...], ...]}`."""
    del ids
    value = {"id": record.id, "masks": [[dataclasses.asdict(p) for p in mask] for mask in masks]}
    return [(to_json(value) + "\n").encode()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Prints what a model puts in place of <mask>, or writes it for every text of a JSONL file. A run"
        " that was killed goes on where it was when the same command is given again.",
        epilog="examples:\n  python -m mmbert_jax.inference.fill_mask --checkpoint runs/demo/merged \\\n"
        '      --text "January, February,<mask>" --top_k 3\n'
        "  python -m mmbert_jax.inference.fill_mask --checkpoint my-model --input texts.jsonl --output filled.jsonl",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    texts = parser.add_mutually_exclusive_group(required=True)
    texts.add_argument(
        "--text",
        nargs="+",
        help="texts, each with at least one <mask> (the tokeniser's: [MASK] of ModernBERT's)",
    )
    texts.add_argument("--input", help="*.jsonl, *.jsonl.gz or *.jsonl.zst; - reads standard input")
    parser.add_argument(
        "--output",
        type=place,
        help="with --input: JSONL, a line for every record, in their order; - writes to standard output",
    )
    parser.add_argument(
        "--top_k", type=int, default=5, help="how many tokens to give for each mask (default 5)"
    )
    stream.add_arguments(parser)
    args = parser.parse_args()
    if (args.input is None) != (args.output is None):
        raise UserError("--input and --output go together")
    if args.input:
        stream.check_arguments(args)

    use_compile_cache(args.compile_cache)
    model = load(
        args.checkpoint, tokenizer=args.tokenizer, max_length=args.max_length, dtype=args.dtype
    )
    if args.input:
        fill_file(args, model)
        return
    filled = fill_mask(model, args.text, args.top_k, batch_tokens=args.batch_tokens)
    for text, masks in zip(args.text, filled, strict=True):
        print(text)
        for number, candidates in enumerate(masks, start=1):
            shown = "  ".join(f"{p.token!r} {100 * p.probability:.1f}%" for p in candidates)
            print(f"  mask {number}: {shown}")


def fill_file(args: argparse.Namespace, model: Model) -> None:
    """From `args.input` to `args.output`."""

    def sequences(records):
        return masked_sequences(model, [r.text for r in records], [r.place for r in records])

    settings = {"top_k": args.top_k}
    with closing(stream.open_output(args, model, [args.output], settings)) as output:
        if output.complete:
            return
        stream.process(
            args,
            output,
            tokenise=sequences,
            start=functools.partial(run, model, top_k=args.top_k, batch_tokens=args.batch_tokens),
            by_text=functools.partial(by_text, model=model),
            to_bytes=jsonl_bytes,
        )
        output.finish()
        stream.report(output, model)


if __name__ == "__main__":
    run_main(main)
