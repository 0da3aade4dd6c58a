"""Trains a tokeniser like Gemma's: sentencepiece BPE with byte fallback, single digits, special tokens 0 to 4."""

import argparse
import io
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import sentencepiece

from mmbert_jax.data.progress import Progress
from mmbert_jax.data.sampling import SENTENCE_CHARACTERS, sample_sentences
from mmbert_jax.data.sources import (
    Document,
    Fields,
    Input,
    find_inputs,
    parse_chunk,
    read_chunks,
)
from mmbert_jax.data.special_ids import BOS, EOS, MASK, PAD, PIECES, UNK
from mmbert_jax.data.tokenizer import load_tokenizer
from mmbert_jax.errors import UserError, run_main
from mmbert_jax.files import atomic_folder, check_folder
from mmbert_jax.hf.tokenizer import to_hf_files

EXAMPLE = """example:
  python tools/train_tokenizer.py --input text/*.jsonl.gz --text_field text --vocab_size 32768 --output tokenizer

Languages are sampled evenly: all of the small ones, equally many sentences of the others.
"""

SMALLEST = 5 + 256 + 1  # special tokens, bytes, one piece


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="PATH",
        help="JSONL files (plain, .gz, .zst), .txt files, or folders of such",
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
    parser.add_argument("--output", required=True, type=Path, help="folder for the tokeniser")
    return parser.parse_args()


def read_documents(inputs: Sequence[Input], fields: Fields) -> Iterator[Document]:
    progress = Progress("read", sum(item.path.stat().st_size for item in inputs))
    documents = 0
    for chunk in read_chunks(inputs):
        parsed = parse_chunk(chunk, fields)
        yield from parsed
        documents += len(parsed)
        progress.advance(chunk.bytes_read, {"documents": documents})
    progress.finish({"documents": documents})


def train(sample: dict[str, list[str]], vocab_size: int, character_coverage: float) -> bytes:
    """A serialised sentencepiece model; the text is taken as it is, white space included."""
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(line for lines in sample.values() for line in lines),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=character_coverage,
            byte_fallback=True,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            pad_id=PAD,
            eos_id=EOS,
            bos_id=BOS,
            unk_id=UNK,
            pad_piece=PIECES[PAD],
            eos_piece=PIECES[EOS],
            bos_piece=PIECES[BOS],
            unk_piece=PIECES[UNK],
            user_defined_symbols=[PIECES[MASK]],
            max_sentence_length=4 * SENTENCE_CHARACTERS,
            num_threads=len(os.sched_getaffinity(0)),
            minloglevel=2,
        )
    except RuntimeError as error:  # sentencepiece's message says which size or coverage would do
        message = str(error).split("] ")[-1]
        raise UserError(f"--vocab_size {vocab_size} does not suit this text: {message}") from None
    return model.getvalue()


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
    check_folder(args.output)
    inputs, passed_over = find_inputs(args.input, language=None, default_language="")
    if passed_over:
        print(f"passed over {passed_over} files with other endings", file=sys.stderr)
    fields = Fields(args.text_field, args.language_field, default_language="")
    sample = sample_sentences(read_documents(inputs, fields), args.max_sentences)
    used = sum(map(len, sample.values()))
    if not used:
        raise UserError(f"{args.input[0]}: no text; check --input and --text_field")
    model = train(sample, args.vocab_size, args.character_coverage)
    with atomic_folder(args.output) as folder:
        (folder / "tokenizer.model").write_bytes(model)
        to_hf_files(load_tokenizer(folder / "tokenizer.model"), folder, args.max_length)
    print(
        f"{args.output}: {args.vocab_size} pieces from {used:,} sentences, {len(sample)} languages"
    )


if __name__ == "__main__":
    run_main(main)
