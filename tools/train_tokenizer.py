"""Trains a tokeniser like Gemma's: sentencepiece BPE with byte fallback, single digits, special tokens 0 to 4."""

import argparse
import sys

from mmbert_jax.data.sampling import sample_sentences
from mmbert_jax.data.sources import Fields, find_inputs
from mmbert_jax.data.special_tokens import TOKENIZER_JSON
from mmbert_jax.data.tokenizer import load_tokenizer
from mmbert_jax.data.train_tokenizer import SMALLEST, read_all, train
from mmbert_jax.errors import UserError, run_main
from mmbert_jax.files import atomic_folder, check_folder
from mmbert_jax.hf.tokenizer import to_hf_files
from mmbert_jax.places import place

EXAMPLE = """example:
  python tools/train_tokenizer.py --input text/*.jsonl.gz --text_field text --vocab_size 32768 --output tokenizer

Languages are sampled evenly: all of the small ones, equally many sentences of the others.
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="PATH",
        help="JSONL files (plain, .gz, .zst), .txt files, or folders of such, on a disk or in a bucket",
    )
    parser.add_argument("--text_field", default="text", help="of a JSONL record (default: text)")
    parser.add_argument(
        "--language_field",
        default="language",
        help="of a JSONL record; records without it count as one language (default: language)",
    )
    parser.add_argument("--vocab_size", type=int, required=True, metavar="N")
    parser.add_argument(
        "--max_sentences",
        type=int,
        default=1_000_000,
        metavar="N",
        help="lines to train on, sampled from all; about 1 kB of memory each (default: 1000000)",
    )
    parser.add_argument(
        "--character_coverage",
        type=float,
        default=0.9995,
        metavar="SHARE",
        help="share of the text's characters that get a piece; the rest are spelled in bytes (default: 0.9995)",
    )
    parser.add_argument(
        "--max_length",
        type=int,
        default=8192,
        metavar="N",
        help="tokens a text may have, for transformers (default: 8192)",
    )
    parser.add_argument("--output", required=True, help="folder for the tokeniser")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    for name, valid, what in (
        ("vocab_size", args.vocab_size >= SMALLEST, f"at least {SMALLEST}"),
        ("max_sentences", args.max_sentences >= 1, "at least 1"),
        ("character_coverage", 0 < args.character_coverage <= 1, "above 0 and at most 1"),
        ("max_length", args.max_length >= 8, "at least 8"),
    ):
        if not valid:
            raise UserError(f"--{name} is {getattr(args, name)}; it has to be {what}")
    output = place(args.output)
    check_folder(output)
    inputs, notes = find_inputs(args.input, language=None, default_language="")
    for note in notes:
        print(note, file=sys.stderr)
    fields = Fields(args.text_field, args.language_field, default_language="")
    sample = sample_sentences(read_all(inputs, fields), args.max_sentences)
    used = sum(map(len, sample.values()))
    if not used:
        raise UserError(f"{args.input[0]}: no text; check --input and --text_field")
    model = train(sample, args.vocab_size, args.character_coverage)
    with atomic_folder(output, last=TOKENIZER_JSON) as folder:
        (folder / "tokenizer.model").write_bytes(model)
        to_hf_files(load_tokenizer(folder / "tokenizer.model"), folder, args.max_length)
    print(f"{output}: {args.vocab_size} pieces from {used:,} sentences, {len(sample)} languages")


if __name__ == "__main__":
    run_main(main)
