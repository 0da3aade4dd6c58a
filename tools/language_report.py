"""What each language has gained and lost: held-out losses before and after a phase, and of the merge of the two.

Reads what `python -m mmbert_jax.evaluate.heldout --output` writes, of one corpus and one tokeniser.
"""

import argparse

from mmbert_jax.errors import UserError, run_main
from mmbert_jax.files import atomic_folder, check_folder, nan_for_null, read_json, write_json
from mmbert_jax.places import Place, place
from mmbert_jax.report.languages import compare_languages, language_table, plot_languages

MODELS = ("before", "after", "merged")


def read_part(path: Place, part: str, writer: str) -> dict:
    try:
        return nan_for_null(dict(read_json(path)[part]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not what {writer} writes ({error!r})") from error


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python tools/language_report.py --before before.json --after after.json --output report",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, required in (("before", True), ("after", True), ("merged", False)):
        parser.add_argument(
            f"--{name}", type=place, required=required, metavar="JSON", help="its held-out results"
        )
    parser.add_argument(
        "--vocabulary",
        type=place,
        metavar="JSON",
        help="extend.json of the extended checkpoint: says which languages are new, and their tokens per character",
    )
    parser.add_argument(
        "--output",
        required=True,
        type=place,
        help="new folder for languages.json and languages.png",
    )
    args = parser.parse_args()
    check_folder(args.output)
    writer = "`python -m mmbert_jax.evaluate.heldout --output`"
    models = {
        name: read_part(getattr(args, name), "held_out", writer)
        for name in MODELS
        if getattr(args, name)
    }
    costs = (
        read_part(args.vocabulary, "languages", "tools/extend_vocabulary.py")
        if args.vocabulary
        else {}
    )
    if not set.intersection(*map(set, models.values())):
        raise UserError(f"{args.before} and {args.after} have no language in common")
    comparison = compare_languages(models, costs)
    print(language_table(comparison))
    with atomic_folder(args.output, last="languages.json") as folder:
        plot_languages(comparison, folder / "languages.png")
        write_json(folder / "languages.json", comparison)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    run_main(main)
