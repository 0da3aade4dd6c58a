"""Gives a checkpoint pieces for a script that its tokeniser spells in bytes or single characters.

They are learnt on text in the new language, and start from the mean of what spelled them before. Texts of --keep_text,
and all others without a character of the new script, keep their tokens: this is checked, and what would change one is
dropped. Text in a script that --keep_text has, such as another Latin one, gets no pieces.
BPE with byte fallback (Gemma 2's, mmBERT's, this project's) and byte-level BPE (ModernBERT's).
"""

import argparse
import sys

from mmbert_jax.data.sources import Fields, find_inputs
from mmbert_jax.errors import UserError, run_main
from mmbert_jax.files import check_folder
from mmbert_jax.hf.load import is_model_folder
from mmbert_jax.inference.checkpoint_tokenizer import checkpoint_tokenizer
from mmbert_jax.places import place
from mmbert_jax.surgery.derived import read_model
from mmbert_jax.surgery.extend import REPORT, TOKENIZER, extend_vocabulary, table

EXAMPLE = """example:
  python tools/extend_vocabulary.py --checkpoint runs/phase2 --input text/khm.jsonl --keep_text text/old.jsonl \\
      --pieces 2000 --output runs/extended
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=place,
        help="a run folder, a checkpoint in it, or a Hugging Face folder",
    )
    parser.add_argument(
        "--tokenizer", help="folder or file; by default the one that it was trained with"
    )
    for name, what in (
        ("input", "text in the new language or languages"),
        ("keep_text", "text in those that the model was trained on, whose tokens stay"),
    ):
        parser.add_argument(
            f"--{name}",
            nargs="+",
            required=True,
            metavar="PATH",
            help=f"{what}: JSONL files (plain, .gz, .zst), .txt files, or folders of such",
        )
    parser.add_argument("--text_field", default="text", help="of a JSONL record (default: text)")
    parser.add_argument(
        "--language_field", default="language", help="of a JSONL record (default: language)"
    )
    parser.add_argument(
        "--pieces", type=int, default=2000, metavar="N", help="new ones, at most (default: 2000)"
    )
    parser.add_argument("--output", required=True, type=place, help="the checkpoint's folder, new")
    args = parser.parse_args()
    if args.pieces < 0:
        raise UserError(f"--pieces {args.pieces}: it has to be 0 or more")
    check_folder(args.output)
    sides = []
    for paths in (args.input, args.keep_text):
        inputs, notes = find_inputs(paths, language=None, default_language="")
        sides.append(inputs)
        for note in notes:
            print(note, file=sys.stderr)
    fields = Fields(args.text_field, args.language_field)
    params, meta = read_model(args.checkpoint)
    beside = args.checkpoint if is_model_folder(args.checkpoint) else None
    tokenizer = checkpoint_tokenizer(meta, args.tokenizer or beside)
    report = extend_vocabulary(
        args.output,
        params,
        meta,
        tokenizer,
        *sides,
        fields,
        pieces=args.pieces,
        path=str(args.checkpoint),
    )
    print(table(report))
    print(
        f"wrote {args.output} (its tokeniser: {args.output / TOKENIZER}; {REPORT} has every language)"
    )


if __name__ == "__main__":
    run_main(main)
