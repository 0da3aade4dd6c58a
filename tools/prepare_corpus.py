"""Turns text into a corpus: tokenised, packed into rows, in shards, language after language, with a manifest."""

import argparse
import os
import signal
import sys
import time

from mmbert_jax.data.prepare import Rules, Settings, check_output, prepare_corpus
from mmbert_jax.data.sources import FORMATS, Fields, find_inputs
from mmbert_jax.errors import UserError, run_main
from mmbert_jax.places import place

EXAMPLE = """example:
  python tools/prepare_corpus.py --input text/*.jsonl.zst --text_field text --language_field language \\
      --tokenizer tokenizer --row_length 1024 8192 --held_out 0.005 --output corpus
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
        help="JSONL or Parquet files, .txt files (one document each; these and JSONL also compressed by gzip, zstd, "
        "bzip2 or xz, which the first bytes tell, not the name), folders of MDS shards or of "
        "TFDS (array_record), or folders of any of these, on a disk, in a bucket (gs://, s3://), on the Hugging Face "
        "hub (hf://datasets/ORG/NAME[@REVISION]/...), or behind another URL that fsspec reads; single files of web "
        "servers (https://); a text file's "
        "language is the first folder below the one given here; folders named *_removed are left out",
    )
    parser.add_argument(
        "--format", choices=FORMATS, help="read nothing else, and a file named here as this"
    )
    parser.add_argument(
        "--text_field",
        default="text",
        help="of a record; dots reach into objects and structs (default: text). MDS without it, but with input_ids, is "
        "taken to be tokenised by --tokenizer; its documents are joined where they were cut into rows",
    )
    languages = parser.add_mutually_exclusive_group()
    languages.add_argument(
        "--language_field",
        default="language",
        help="of a record (default: language); language,language_script joins two: deu_Latn",
    )
    languages.add_argument(
        "--language_from_path",
        metavar="PATTERN",
        help="where in a path the language stands, in whole names: data/{language}/train; * is any part of a name",
    )
    languages.add_argument("--language", metavar="CODE", help="the language of all documents")
    parser.add_argument(
        "--on_error",
        choices=("stop", "skip"),
        default="stop",
        help="skip: pass over records that cannot be read, and count them by reason (default: stop at the first); "
        "files that are damaged stop it in any case",
    )
    parser.add_argument(
        "--normalise",
        action="store_true",
        help="bring texts into Unicode's form NFC, make every line ending \\n, and take control characters out",
    )
    parser.add_argument(
        "--min_characters",
        type=int,
        metavar="N",
        help="drop shorter texts, by Unicode's characters",
    )
    parser.add_argument("--max_characters", type=int, metavar="N", help="drop longer texts")
    parser.add_argument(
        "--drop_repetitive",
        action="store_true",
        help="drop texts of which lines, paragraphs or sequences of words repeat themselves beyond the limits of "
        "Gopher (Rae et al. 2021, table A1); of scripts without spaces sequences of characters",
    )
    parser.add_argument(
        "--deduplicate",
        choices=("exact",),
        help="exact: of documents with the same text, as it is after --normalise, keep the first in order of the "
        "inputs, whatever the language of the others",
    )
    parser.add_argument(
        "--tokenizer", required=True, help="a *.model or tokenizer.json, or its folder"
    )
    parser.add_argument(
        "--tokens_of",
        metavar="TOKENIZER",
        help="the tokenizer.json (or its folder) that made the input_ids of MDS where that is another one, as "
        "ProLong's is Llama 3's: they are made text again, document by document, and tokenised by --tokenizer; "
        "documents are what the column indices says, and end at that tokeniser's BOS and EOS",
    )
    parser.add_argument(
        "--row_length",
        nargs="+",
        type=int,
        default=[1024],
        metavar="N",
        help="tokens in a row; several are written in one pass (default: 1024)",
    )
    parser.add_argument(
        "--held_out",
        type=float,
        default=0.005,
        metavar="SHARE",
        help="share of documents kept for evaluation, chosen by their text's hash (default: 0.005)",
    )
    parser.add_argument(
        "--held_out_documents",
        type=int,
        default=Settings.held_out_documents,
        metavar="N",
        help="documents of each language that are kept at least, up to a quarter of what it has, "
        f"unless --held_out is 0 (default: {Settings.held_out_documents})",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="processes; the result does not depend on their number (default: one for each core)",
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="a Ray cluster that does the work instead (auto: the one of this machine); text, tokeniser and corpus "
        "have to lie on a disk that all of its machines see, or in a bucket",
    )
    parser.add_argument(
        "--keep_parts",
        action="store_true",
        help="keep OUTPUT.parts, from which the same text with more files is prepared without doing again what is done",
    )
    parser.add_argument(
        "--shard_tokens",
        type=int,
        default=Settings.shard_tokens,
        metavar="N",
        help="largest shard; a token takes 4 bytes, so that 3T tokens are 6,000 shards of some 2.2 GB "
        f"(default: {Settings.shard_tokens})",
    )
    parser.add_argument(
        "--source", help="name of the corpus in its manifest (default: the folder's)"
    )
    parser.add_argument(
        "--output",
        required=True,
        help="folder for the corpus; until it is complete, OUTPUT.parts has what is done, and the same command goes on",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a corpus that is there")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    for name, valid, what in (
        ("row_length", min(args.row_length) >= 8, "at least 8"),
        ("held_out", 0 <= args.held_out < 1, "at least 0 and below 1"),
        ("held_out_documents", args.held_out_documents >= 0, "at least 0"),
        ("workers", args.workers >= 1, "at least 1"),
        ("min_characters", args.min_characters is None or args.min_characters >= 1, "at least 1"),
        (
            "max_characters",
            args.max_characters is None or args.max_characters >= (args.min_characters or 1),
            "at least 1, and --min_characters",
        ),
        ("shard_tokens", args.shard_tokens >= max(args.row_length), "at least a row"),
    ):
        if not valid:
            raise UserError(f"--{name} is {getattr(args, name)}; it has to be {what}")
    # So that what is half-written goes when a scheduler ends the job, as it does after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("error: terminated"))
    output = place(args.output)
    check_output(output, args.overwrite)
    inputs, notes = find_inputs(
        args.input,
        args.language,
        format=args.format,
        language_from_path=args.language_from_path,
    )
    for note in notes:
        print(note, file=sys.stderr)
    settings = Settings(
        tokenizer=place(args.tokenizer),
        fields=Fields(
            *(args.text_field, args.language_field, args.language),
            skip_faults=args.on_error == "skip",
        ),
        row_lengths=tuple(sorted(set(args.row_length))),
        held_out=args.held_out,
        held_out_documents=args.held_out_documents,
        shard_tokens=args.shard_tokens,
        rules=Rules(args.normalise, args.min_characters, args.max_characters, args.drop_repetitive),
        deduplicate=args.deduplicate == "exact",
        tokens_of=None if args.tokens_of is None else place(args.tokens_of),
    )
    start = time.monotonic()
    manifest = prepare_corpus(
        inputs,
        settings,
        output,
        args.ray or args.workers,
        args.source or output.name or output.absolute().name,
        args.overwrite,
        args.keep_parts,
    )
    seconds = time.monotonic() - start
    print(
        f"{output}: {manifest['documents']:,} documents, {manifest['tokens']:,} tokens in {seconds:.1f} s "
        f"({manifest['tokens'] / seconds:,.0f} tokens/s); {manifest['empty_documents']:,} empty documents left out"
    )
    for reason, count in manifest.get("dropped_documents", {}).items():
        print(f"  {count:>12,} documents dropped: {reason}")
    for length, splits in manifest["row_lengths"].items():
        for split, entry in splits.items():
            rows = sum(shard["rows"] for shard in entry["shards"])
            print(
                f"  {split:>8} rows of {length}: {rows:,} in {len(entry['shards'])} shards, "
                f"{len(entry['languages'])} languages, {entry['fill']:.2%} full"
            )


if __name__ == "__main__":
    run_main(main)
