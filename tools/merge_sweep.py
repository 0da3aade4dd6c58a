"""Merges checkpoints in many ways and scores each by held-out loss, group by group: a table, a JSON file and a plot.

Every combination of the values given for weights and settings is tried; nothing is written but the scores. Run again
with more values, it goes on from those that are there.
"""

import argparse

from ml_collections import ConfigDict

from mmbert_jax.config import complete
from mmbert_jax.errors import UserError, run_main
from mmbert_jax.files import check_folder, visible
from mmbert_jax.fingerprint import held_out_digests
from mmbert_jax.merge.checks import check_alike
from mmbert_jax.merge.models import CHECKPOINT, open_model
from mmbert_jax.merge.output import merged_meta
from mmbert_jax.merge.recipe import METHODS, WHOLE, check_base
from mmbert_jax.merge.sweep import RESULTS, best_by_group, grid, make_score, sweep
from mmbert_jax.places import place
from mmbert_jax.report.plots import plot_sweep
from mmbert_jax.report.table import held_out_table

EXAMPLE = """example:
  python tools/merge_sweep.py --method ties --base runs/phase2 \\
      --models runs/decay_english runs/decay_110 runs/decay_all \\
      --density 0.2 0.5 0.8 --weights 1,1,1 0.5,0.5,2 --output runs/sweep
"""
PLOT = "sweep.png"
OWN = {RESULTS, PLOT}
# `ema` averages a run's own checkpoints: nothing is gained from scoring what it starts from.
SWEPT = [method for method in METHODS if method != "ema"]
SETTINGS = sorted({name for method in SWEPT for name in METHODS[method]})


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--method", choices=SWEPT, default="ties", help="see tools/merge.py")
    parser.add_argument("--base", help="checkpoint that all models were trained from")
    parser.add_argument("--models", required=True, nargs="+", help="run folders or checkpoints")
    parser.add_argument(
        "--weights",
        nargs="+",
        metavar="W1,W2,...",
        help="one number for each model, joined by commas (default all 1)",
    )
    for name in SETTINGS:
        parser.add_argument(
            f"--{name}",
            nargs="+",
            type=int if name in WHOLE else float,
            default=argparse.SUPPRESS,
            help="values to try; see tools/merge.py",
        )
    parser.add_argument(
        "--corpus", help="corpus with held-out rows; default: the one that the base trained on"
    )
    parser.add_argument(
        "--row_length", type=int, help="default: the longest that any model trained on"
    )
    parser.add_argument("--rows_per_language", type=int, help="default: that of the base's config")
    parser.add_argument("--output", required=True, type=place, help="folder for the results")
    return parser.parse_args()


def parse_weights(given: list[str] | None) -> list[list[float] | None]:
    if not given:
        return [None]
    try:
        return [[float(weight) for weight in text.split(",")] for text in given]
    except ValueError as error:
        raise UserError(
            f"--weights {' '.join(given)}: write one number for each model, joined by commas: 1,1,2"
        ) from error


def main() -> None:
    args = parse_arguments()
    check_folder(args.output, replace=True)
    found = {path.name for path in visible(args.output)} if args.output.is_dir() else set()
    if found - OWN:
        raise UserError(f"--output {args.output} holds something that is no sweep; choose another")
    base = open_model(args.base) if args.base else None
    models = [open_model(path) for path in args.models]
    everyone = [base, *models] if base else models
    check_alike(everyone[0], everyone[1:])
    if everyone[0].kind != CHECKPOINT:
        raise UserError(
            f"{everyone[0].path} has no corpus to be scored on: make checkpoints with tools/import_hf.py"
        )
    settings = {name: values for name, values in vars(args).items() if name in SETTINGS}
    recipes = grid(args.method, len(models), parse_weights(args.weights), settings)
    check_base(f"--method {args.method}", args.method, base is not None, "--base")

    config = complete(ConfigDict(merged_meta({}, everyone)["config"]))
    if "eval" not in config:
        raise UserError(f"{everyone[0].path} holds no training config (it was imported)")
    if args.corpus:
        config.data.corpus = args.corpus
    if args.row_length:
        config.data.row_length = args.row_length
    if args.rows_per_language:
        config.eval.rows_per_language = args.rows_per_language
    score = make_score(config, everyone[0])
    evaluated_on = {
        "corpus": config.data.corpus,
        "text": held_out_digests(config.data),
        "row_length": config.data.row_length,
        "rows_per_language": config.eval.rows_per_language,
        "mask_ratio": config.eval.mask_ratio,
    }
    groups = config.eval.groups

    args.output.mkdir(parents=True, exist_ok=True)
    points = sweep(args.output, recipes, base, models, score, groups, evaluated_on, print)
    titles = {group: group for group in [*groups, "all"]}
    rows = [(name, point["held_out_groups"]) for name, point in points.items()]
    print("\n" + held_out_table(rows, titles))
    print("\nlowest loss")
    for group, (name, loss) in best_by_group(points).items():
        print(f"  {group:<20} {loss:.4f}  {name}")
    plot_sweep(points, args.output / PLOT)
    print(f"wrote {args.output / RESULTS} and {PLOT}")


if __name__ == "__main__":
    run_main(main)
