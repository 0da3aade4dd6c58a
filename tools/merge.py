"""Merges models of one shape into one, tensor by tensor, and prints what the merge did to each group of tensors.

The models are checkpoints, or Hugging Face folders with safetensors; what comes out is of the same kind.

ties             task vectors (model minus base), trimmed to their largest entries; the mean of those with the sign
                 that wins, added to the base
dare_ties        the same, with entries dropped at random instead of trimmed
task_arithmetic  the weighted sum of task vectors, added to the base
linear           weighted mean
ema              mean over all checkpoints of run folders, oldest first, each counting --decay times the next
slerp            from the first model to the second, along the arc
"""

import argparse

from mmbert_jax.errors import UserError, run_main
from mmbert_jax.merge.models import CHECKPOINT, StoredModel, check_alike, open_model
from mmbert_jax.merge.output import check_target, write_merged
from mmbert_jax.merge.recipe import METHODS, make_recipe, merge
from mmbert_jax.merge.report import table
from mmbert_jax.places import place
from mmbert_jax.run import list_checkpoints

EXAMPLES = """examples:
  python tools/merge.py --method ties --base runs/phase2 --density 0.5 \\
      --models runs/decay_english runs/decay_110 runs/decay_all --output runs/merged
  python tools/merge.py --method ema --models runs/decay_all --decay 0.8 --output runs/averaged
  python tools/merge.py --method slerp --models hf/one hf/two --t 0.3 --output hf/between
"""
SETTINGS = {setting for settings in METHODS.values() for setting in settings}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--method", choices=METHODS, default="ties", help="default ties")
    parser.add_argument("--base", help="what all models were trained from")
    parser.add_argument(
        "--models",
        required=True,
        nargs="+",
        help="run folders (their newest checkpoint; with ema, all of them), checkpoints, or Hugging Face folders",
    )
    parser.add_argument(
        "--weights",
        type=float,
        nargs="+",
        help="one for each model (default all 1); only ratios matter, except with task_arithmetic",
    )
    # Not given means the method's own, and tells apart what was given to a method that has no such setting.
    for name, kind, what in (
        ("density", float, "ties, dare_ties: share of each task vector to keep (default 0.5)"),
        ("lambda", float, "methods with a base: factor on what is added to it (default 1)"),
        ("seed", int, "dare_ties: of the dropping (default 0)"),
        ("decay", float, "ema: what a checkpoint counts, relative to the next (default 0.8)"),
        ("t", float, "slerp: 0 is the first model, 1 the second (default 0.5)"),
    ):
        parser.add_argument(f"--{name}", type=kind, default=argparse.SUPPRESS, help=what)
    parser.add_argument(
        "--output", required=True, type=place, help="the merged model's folder, new"
    )
    return parser.parse_args()


def open_models(method: str, paths: list[str]) -> list[StoredModel]:
    """The models of a command line, `ema`'s run folders spread out into their checkpoints."""
    models = [open_model(path) for path in paths]
    if method != "ema":
        return models
    spread = []
    for model in models:
        if model.kind == CHECKPOINT:
            spread += [open_model(checkpoint) for checkpoint in list_checkpoints(model.path)]
        else:
            spread.append(model)
    return spread


def main() -> None:
    args = parse_arguments()
    base = open_model(args.base) if args.base else None
    models = open_models(args.method, args.models)
    given = {name: value for name, value in vars(args).items() if name in SETTINGS}
    recipe = make_recipe(args.method, len(models), args.weights, given)
    if recipe.has_base and base is None:
        raise UserError(f"--method {args.method} needs --base, what the models were trained from")
    if base and not recipe.has_base:
        raise UserError(f"--base says nothing to --method {args.method}: leave it out")
    everyone = [base, *models] if base else models
    check_alike(everyone[0], everyone[1:])
    check_target(args.output, everyone)

    outcomes = write_merged(args.output, recipe, base, models, merge(recipe, base, models))
    print(table(outcomes, len(models)))
    if recipe.method == "ema":
        for model, weight in zip(models, recipe.weights, strict=True):
            print(f"{weight:.4f}  {model.path}")
    print(f"wrote {args.output}")


if __name__ == "__main__":
    run_main(main)
