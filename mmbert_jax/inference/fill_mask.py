"""What a model puts in place of `<mask>`: `python -m mmbert_jax.inference.fill_mask --checkpoint RUN --text "..."`."""

import argparse
import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mmbert_jax.checkpoint import restore_params
from mmbert_jax.data.corpus import row_to_arrays
from mmbert_jax.data.packing import best_fit
from mmbert_jax.data.special_ids import BOS, EOS, MASK, PIECES
from mmbert_jax.data.tokenizer import Tokenizer
from mmbert_jax.errors import UserError, run_main
from mmbert_jax.inference.checkpoint_tokenizer import checkpoint_tokenizer
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.model.heads import bind

MASK_TEXT = PIECES[MASK]
# Rows are a multiple of this, so that texts of similar lengths share a compiled program.
ROW_MULTIPLE = 128


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What may stand at one mask: token id, its text (with the leading space, if any), its probability."""

    token_id: int
    token: str
    probability: float


def fill_mask(
    params: Mapping,
    config: ModelConfig,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    top_k: int = 5,
) -> list[list[list[Prediction]]]:
    """The `top_k` likeliest tokens for every mask of every text, likeliest first: result[text][mask][rank].

    Texts are packed into rows; what stands in one text does not influence another. A mask stands for a token with the
    white space before it, as pieces are masked in training.

    Raises:
      UserError: a text has no `<mask>`, or there are not `top_k` tokens.
    """
    if not 1 <= top_k <= config.vocab_size:
        raise UserError(
            f"top_k is {top_k}; it has to be between 1 and the vocabulary's {config.vocab_size}"
        )
    sequences = [_encode(tokenizer, text, number) for number, text in enumerate(texts, start=1)]
    longest = max((len(ids) for ids in sequences), default=0)
    row_length = -(-longest // ROW_MULTIPLE) * ROW_MULTIPLE
    rows = best_fit([len(ids) for ids in sequences], row_length)
    # One number of slots for all rows, again to share a program; slot 0 of a row fills up what is not needed.
    slots = max((sum(sequences[text].count(MASK) for text in row) for row in rows), default=0)

    predictions: list[list[list[Prediction]]] = [[] for _ in texts]
    for row in rows:
        tokens = np.concatenate([np.asarray(sequences[text], np.int32) for text in row])
        ends = np.cumsum([len(sequences[text]) for text in row])
        arrays = {name: x[None] for name, x in row_to_arrays(tokens, ends, row_length).items()}
        masked = np.flatnonzero(tokens == MASK)
        probabilities, ids = _top(params, config, arrays, np.resize(masked, slots), top_k)
        owner = np.searchsorted(ends, masked, side="right")
        for text, values, candidates in zip(
            owner, np.asarray(probabilities), np.asarray(ids), strict=False
        ):
            predictions[row[text]].append(
                [
                    Prediction(int(i), tokenizer.decode([int(i)]), float(p))
                    for p, i in zip(values, candidates, strict=True)
                ]
            )
    return predictions


def _encode(tokenizer: Tokenizer, text: str, number: int) -> list[int]:
    ids = tokenizer.encode(text)
    if MASK not in ids:
        raise UserError(
            f"text {number} ({text[:60]!r}) has no {MASK_TEXT}; write {MASK_TEXT} where a token is to be guessed"
        )
    return [BOS, *ids, EOS]


@functools.partial(jax.jit, static_argnames=("config", "top_k"))
def _top(params, config: ModelConfig, arrays, masked, top_k: int) -> tuple[jax.Array, jax.Array]:
    """Probabilities float32 [M, top_k] and ids int32 [M, top_k] at positions `masked` int32 [M] of one row."""
    model = bind(config, params)
    hidden = model(arrays["tokens"], arrays["segment_ids"], arrays["positions"], jnp.float32)
    return jax.lax.top_k(jax.nn.softmax(model.logits(hidden[0, masked])), top_k)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Prints what a model puts in place of <mask>.",
        epilog="example:\n  python -m mmbert_jax.inference.fill_mask --checkpoint runs/demo/merged \\\n"
        '      --text "January, February,<mask>" --top_k 3',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        help="a run folder (its newest checkpoint) or one checkpoint in it",
    )
    parser.add_argument(
        "--text", required=True, nargs="+", help="texts, each with at least one <mask>"
    )
    parser.add_argument(
        "--top_k", type=int, default=5, help="how many tokens to print for each mask (default 5)"
    )
    parser.add_argument(
        "--tokenizer", help="folder or file; by default the one the checkpoint was trained with"
    )
    args = parser.parse_args()

    params, meta = restore_params(args.checkpoint)
    tokenizer = checkpoint_tokenizer(meta, args.tokenizer)
    config = ModelConfig.from_config(meta["config"]["model"])
    for text, masks in zip(
        args.text, fill_mask(params, config, tokenizer, args.text, args.top_k), strict=True
    ):
        print(text)
        for number, candidates in enumerate(masks, start=1):
            shown = "  ".join(f"{p.token!r} {100 * p.probability:.1f}%" for p in candidates)
            print(f"  mask {number}: {shown}")


if __name__ == "__main__":
    run_main(main)
