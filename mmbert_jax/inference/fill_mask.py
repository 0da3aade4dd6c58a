"""What a model puts in place of `<mask>`: `python -m mmbert_jax.inference.fill_mask --checkpoint RUN --text "..."`.

The mask token goes by the name that the model's tokeniser has for it, [MASK] with ModernBERT's.
"""

import argparse
import dataclasses
import functools

from mmbert_jax.errors import UserError, run_main
from mmbert_jax.files import to_json
from mmbert_jax.inference import stream
from mmbert_jax.inference.compile_cache import use_compile_cache
from mmbert_jax.inference.load import load
from mmbert_jax.inference.masks import Prediction, by_text, fill_mask, masked_sequences, run
from mmbert_jax.inference.model import Model
from mmbert_jax.places import place


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

    stream.write_results(
        args,
        model,
        {"top_k": args.top_k},
        tokenise=sequences,
        start=functools.partial(run, model, top_k=args.top_k, batch_tokens=args.batch_tokens),
        by_text=functools.partial(by_text, model=model),
        to_bytes=jsonl_bytes,
    )


if __name__ == "__main__":
    run_main(main)
