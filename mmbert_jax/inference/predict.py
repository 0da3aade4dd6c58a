"""What a model with a classifying head says of texts.

python -m mmbert_jax.inference.predict --checkpoint MODEL --text "..."
"""

import argparse
import dataclasses
import functools

from mmbert_jax.errors import UserError, run_main
from mmbert_jax.files import to_json
from mmbert_jax.inference import stream
from mmbert_jax.inference.classes import (
    Answer,
    Prediction,
    TokenClass,
    by_text,
    check_head,
    check_texts,
    predict,
    prediction,
    run,
)
from mmbert_jax.inference.compile_cache import use_compile_cache
from mmbert_jax.inference.load import load
from mmbert_jax.inference.model import Model
from mmbert_jax.inference.tokenise import tokenise
from mmbert_jax.places import place


def jsonl_bytes(record: stream.Record, found: Prediction) -> bytes:
    """`{"id": ..., "classes": [...]}`, `tokens` with the class of each instead, or the fields of an `Answer`."""
    if isinstance(found, Answer):
        fields = dataclasses.asdict(found)
    else:
        name = "tokens" if all(isinstance(x, TokenClass) for x in found) else "classes"
        fields = {name: [dataclasses.asdict(x) for x in found]}
    return (to_json({"id": record.id} | fields) + "\n").encode()


def show(found: Prediction) -> str:
    """One line for people."""
    if isinstance(found, Answer):
        return f"{found.answer!r} {found.score:.3f}, tokens {found.start} to {found.stop}"
    names = (f"{x.token!r} " if isinstance(x, TokenClass) else "" for x in found)
    return "  ".join(f"{name}{x.label} {x.score:.3f}" for name, x in zip(names, found, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Prints the classes of texts, those of their tokens, or where an answer stands, or writes them"
        " for every record of a JSONL file. A run that was killed goes on where it was when the same command is given"
        " again.",
        epilog="examples:\n"
        '  python -m mmbert_jax.inference.predict --checkpoint my-classifier --text "a good day"\n'
        "  python -m mmbert_jax.inference.predict --checkpoint my-reader --input asked.jsonl \\\n"
        "      --output answers.jsonl --text_field question --pair_field context",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    texts = parser.add_mutually_exclusive_group(required=True)
    texts.add_argument("--text", nargs="+", help="texts, or the first ones of pairs")
    texts.add_argument("--input", help="*.jsonl, *.jsonl.gz or *.jsonl.zst; - reads standard input")
    parser.add_argument("--pair", nargs="+", help="with --text: as many second texts of pairs")
    parser.add_argument(
        "--output",
        type=place,
        help="with --input: JSONL, a line for every record, in their order; - writes to standard output",
    )
    stream.add_arguments(parser)
    parser.add_argument(
        "--pair_field", help="with --input: field of a record with the second text of a pair"
    )
    args = parser.parse_args()
    if (args.input is None) != (args.output is None):
        raise UserError("--input and --output go together")
    if args.pair and len(args.pair) != len(args.text or ()):
        raise UserError(
            f"--pair: {len(args.pair)} texts beside {len(args.text or ())} of --text; give as many"
        )
    if args.input:
        stream.check_arguments(args)

    use_compile_cache(args.compile_cache)
    model = load(
        args.checkpoint, tokenizer=args.tokenizer, max_length=args.max_length, dtype=args.dtype
    )
    check_head(model)
    if args.input:
        predict_file(args, model)
        return
    given = list(zip(args.text, args.pair, strict=True)) if args.pair else args.text
    for text, found in zip(
        given, predict(model, given, batch_tokens=args.batch_tokens), strict=True
    ):
        print(" / ".join(text) if isinstance(text, tuple) else text)
        print(f"  {show(found)}")


def predict_file(args: argparse.Namespace, model: Model) -> None:
    """From `args.input` to `args.output`."""

    def sequences(records):
        texts = [record.text for record in records]
        check_texts(model, texts)
        return tokenise(model, texts)

    def to_bytes(record, ids, logits):
        return [jsonl_bytes(record, prediction(model, ids, logits))]

    stream.write_results(
        args,
        model,
        {},
        tokenise=sequences,
        start=functools.partial(run, model, batch_tokens=args.batch_tokens),
        by_text=functools.partial(by_text, model=model),
        to_bytes=to_bytes,
    )


if __name__ == "__main__":
    run_main(main)
