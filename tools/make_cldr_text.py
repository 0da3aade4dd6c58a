"""Writes the demo's text as JSONL (`language`, `text`): short documents in some 240 languages, from locale data."""

import argparse

from mmbert_jax.data.sources import one_file
from mmbert_jax.errors import UserError, run_main
from mmbert_jax.files import atomic_file, to_json
from mmbert_jax.places import place

EXAMPLE = """example:
  python tools/make_cldr_text.py --output cldr.jsonl --documents 160
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", required=True, help="JSONL file to write")
    parser.add_argument(
        "--documents", type=int, default=160, metavar="N", help="for each language (default: 160)"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    output = place(args.output)
    try:
        from mmbert_jax.data import cldr_text
    except ModuleNotFoundError as error:
        raise UserError(
            f"package {error.name!r} is missing: pip install 'mmbert_jax[demo]'"
        ) from None
    if args.documents < 1:
        raise UserError(f"--documents is {args.documents}; it has to be at least 1")
    if output.exists():
        raise UserError(f"{output}: exists already; remove it or name another file")
    output.parent.mkdir(parents=True, exist_ok=True)
    languages = cldr_text.languages()
    with atomic_file(output) as file:
        for language in languages:
            for text in cldr_text.documents(language, args.documents):
                file.write(to_json({"language": language, "text": text}) + "\n")
    size = one_file(output).size
    print(
        f"{output}: {len(languages)} languages, {args.documents} documents each, {size / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    run_main(main)
