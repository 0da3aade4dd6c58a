"""Text without its near-duplicates, by datatrove's MinHash, as JSONL for tools/prepare_corpus.py."""

import argparse
import os
import signal
import sys
import time

from mmbert_jax.data.prepare import Rules
from mmbert_jax.data.sources import FORMATS, Fields, find_inputs
from mmbert_jax.errors import UserError, run_main
from mmbert_jax.files import check_folder
from mmbert_jax.places import is_remote, place

EXAMPLE = """example:
  python tools/deduplicate.py --input text/*.parquet --language_field language,language_script --output text/unlike
  python tools/prepare_corpus.py --input text/unlike --tokenizer tokenizer --output corpus
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
        help="texts, and the options for them, as tools/prepare_corpus.py takes them, where --help explains them",
    )
    parser.add_argument("--format", choices=FORMATS)
    parser.add_argument("--text_field", default="text")
    languages = parser.add_mutually_exclusive_group()
    languages.add_argument("--language_field", default="language")
    languages.add_argument("--language_from_path", metavar="PATTERN")
    languages.add_argument("--language", metavar="CODE")
    parser.add_argument("--on_error", choices=("stop", "skip"), default="stop")
    parser.add_argument("--normalise", action="store_true")
    parser.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)), metavar="N", help="processes"
    )
    parser.add_argument(
        "--output",
        required=True,
        help="folder for JSONL (.zst) with text, language and minhash_cluster_size, on a disk; until it is complete, "
        "OUTPUT.minhash has what is done, and the same command goes on",
    )
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.workers < 1:
        raise UserError(f"--workers is {args.workers}; it has to be at least 1")
    try:
        from mmbert_jax.data.prepare.near_duplicates import drop_near_duplicates
    except ImportError as error:
        raise UserError(
            f"near-duplicates need datatrove ({error}); install it with `bash tools/setup_env.sh dedup`"
        ) from None
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("error: terminated"))
    output = place(args.output)
    if is_remote(output):
        raise UserError(f"{output}: datatrove's stages work on a disk here; name a folder on one")
    check_folder(output)
    inputs, notes = find_inputs(
        args.input,
        args.language,
        format=args.format,
        language_from_path=args.language_from_path,
    )
    for note in notes:
        print(note, file=sys.stderr)
    fields = Fields(
        *(args.text_field, args.language_field, args.language), skip_faults=args.on_error == "skip"
    )
    start = time.monotonic()
    read, kept, faults = drop_near_duplicates(
        inputs, fields, Rules(normalise=args.normalise), output, args.workers
    )
    if faults.counts:
        print(f"records that were passed over:\n{faults.table()}", file=sys.stderr)
    print(
        f"{output}: {kept:,} of {read:,} documents in {time.monotonic() - start:.1f} s; "
        f"{read - kept:,} near-duplicates dropped"
    )


if __name__ == "__main__":
    run_main(main)
