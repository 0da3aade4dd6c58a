"""Makes a smaller model by keeping only the tokens that some languages need.

All bytes (of a Unigram: single characters) and special tokens stay, so that every text that could be read still can;
texts of other languages take more tokens. BPE with byte fallback (Gemma 2's, mmBERT's), byte-level BPE (ModernBERT's),
Unigram (XLM-R's).
Where all tokens of a text were kept, the tokens and the hidden states are the same as before.
"""

import argparse
import sys
from pathlib import Path

from mmbert_jax.checkpoint import restore_params
from mmbert_jax.data.sources import Fields, find_inputs
from mmbert_jax.errors import UserError, run_main
from mmbert_jax.files import hidden_folder
from mmbert_jax.hf.export import check_output, export_hf
from mmbert_jax.inference.checkpoint_tokenizer import checkpoint_tokenizer
from mmbert_jax.places import place
from mmbert_jax.run import is_run
from mmbert_jax.surgery.trim import REPORT, table, trim_vocabulary

EXAMPLE = """example:
  python tools/trim_vocabulary.py --model hf/mmBERT-base --input text/*.jsonl.gz --languages deu fra \\
      --output hf/mmBERT-base-deu-fra
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model",
        required=True,
        type=place,
        help="Hugging Face folder with safetensors and tokenizer.json; or a run folder or checkpoint",
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
        "--language_field", default="language", help="of a JSONL record (default: language)"
    )
    parser.add_argument(
        "--languages",
        nargs="+",
        metavar="CODE",
        help="whose tokens to keep (default: all); texts of other languages are only measured",
    )
    parser.add_argument(
        "--min_count",
        type=int,
        default=1,
        metavar="N",
        help="keep tokens that occur so often; rarer ones are spelled in shorter ones (default: 1)",
    )
    parser.add_argument(
        "--multiple_of",
        type=int,
        default=64,
        metavar="N",
        help="rows of the embedding, filled up with some that no token has (default: 64; 1: none)",
    )
    parser.add_argument(
        "--tokenizer", help="of a checkpoint; by default the one that it was trained with"
    )
    parser.add_argument(
        "--output", required=True, type=place, help="a new folder, or an earlier one to replace"
    )
    args = parser.parse_args()
    for name in ("min_count", "multiple_of"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: it has to be 1 or more")
    check_output(args.output)
    inputs, notes = find_inputs(args.input, language=None, default_language="")
    for note in notes:
        print(note, file=sys.stderr)
    fields = Fields(args.text_field, args.language_field, default_language="")

    def trim(folder: Path) -> dict:
        return trim_vocabulary(
            folder,
            args.output,
            inputs,
            fields,
            languages=args.languages,
            min_count=args.min_count,
            multiple_of=args.multiple_of,
            name=str(args.model),
        )

    if is_run(args.model):
        params, meta = restore_params(args.model)
        # Exported first, to a folder that goes again.
        with hidden_folder(args.output) as folder:
            tokenizer = checkpoint_tokenizer(meta, args.tokenizer)
            export_hf(folder / "whole", params, meta, tokenizer, verify=False)
            report = trim(folder / "whole")
    else:
        report = trim(args.model)
    print(table(report))
    print(f"wrote {args.output} ({REPORT} has every language)")


if __name__ == "__main__":
    run_main(main)
