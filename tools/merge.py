"""Merges models of one shape into one, tensor by tensor, and prints what the merge did to each group of tensors.

The models are checkpoints, or Hugging Face folders with safetensors; what comes out is of the same kind.

ties             task vectors (model minus base), trimmed to their largest entries; the mean of those with the sign
                 that wins, added to the base
dare_ties        the same, with entries dropped at random instead of trimmed
della            the same, with smaller entries of a row the likelier to be dropped
breadcrumbs_ties the same as ties, but without the very largest entries
dare_linear, della_linear, breadcrumbs
                 as these, but the mean of all, whatever their sign
task_arithmetic  the weighted sum of task vectors, added to the base
model_stock      between the base and the mean of the models, as the angles between task vectors say
linear           weighted mean
ema              mean over all checkpoints of run folders, oldest first, each counting --decay times the next
slerp            from the first model to the second, along the arc
multislerp       weighted mean of any number of models on the sphere; with --base, of their task vectors
karcher          the direction with the least sum of squared angles to all models, of their mean length

--recipe takes method, models and parameters from a YAML file in mergekit's form instead, with mergekit's defaults;
there parameters may differ between tensors and models (see mmbert_jax/merge/recipe_file.py).
"""

import argparse
from collections.abc import Sequence

from mmbert_jax.errors import UserError, run_main
from mmbert_jax.hf.load import EXACT_IN_FLOAT32
from mmbert_jax.merge.checks import check_alike
from mmbert_jax.merge.merge import merge
from mmbert_jax.merge.models import CHECKPOINT, StoredModel, open_model
from mmbert_jax.merge.output import check_target, write_merged
from mmbert_jax.merge.recipe import METHODS, Recipe, check_base, make_recipe
from mmbert_jax.merge.recipe_file import read_recipe_file, to_recipe
from mmbert_jax.merge.report import table
from mmbert_jax.places import place
from mmbert_jax.run import list_checkpoints

EXAMPLES = """examples:
  python tools/merge.py --method ties --base runs/phase2 --density 0.5 \\
      --models runs/decay_english runs/decay_110 runs/decay_all --output runs/merged
  python tools/merge.py --method ema --models runs/decay_all --decay 0.8 --output runs/averaged
  python tools/merge.py --method slerp --models hf/one hf/two --t 0.3 --output hf/between
  python tools/merge.py --recipe merge.yaml --output runs/merged
"""
SETTINGS = {setting for settings in METHODS.values() for setting in settings}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--recipe", type=place, help="YAML file, in the place of all options but --output"
    )
    parser.add_argument("--method", choices=METHODS, help="default ties")
    parser.add_argument("--base", help="what all models were trained from")
    parser.add_argument(
        "--models",
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
        ("density", float, "share of each task vector to keep (default 0.5)"),
        ("lambda", float, "factor on what is added to the base (default 1)"),
        (
            "epsilon",
            float,
            "della: how much likelier the largest are kept, the smallest less (default 0.15)",
        ),
        ("gamma", float, "breadcrumbs: share of the very largest to leave out (default 0.01)"),
        ("seed", int, "dare, della: of the dropping (default 0)"),
        ("decay", float, "ema: what a checkpoint counts, relative to the next (default 0.8)"),
        ("t", float, "slerp: 0 is the first model, 1 the second (default 0.5)"),
        ("max_iter", int, "karcher: steps at most (default 10)"),
        ("tol", float, "karcher: a shorter step is the last (default 1e-5)"),
    ):
        parser.add_argument(f"--{name}", type=kind, default=argparse.SUPPRESS, help=what)
    parser.add_argument(
        "--dtype",
        choices=EXACT_IN_FLOAT32,
        help="of a merged Hugging Face folder's tensors (default: that of the base, or the first model)",
    )
    parser.add_argument(
        "--output", required=True, type=place, help="the merged model's folder, new"
    )
    return parser.parse_args()


def open_models(method: str, paths: Sequence[str]) -> tuple[list[StoredModel], list[int]]:
    """The models of some paths, `ema`'s run folders spread out into their checkpoints, and how many each path is."""
    models, spread = [], []
    for path in paths:
        model = open_model(path)
        found = [model]
        if method == "ema" and model.kind == CHECKPOINT:
            found = [open_model(checkpoint) for checkpoint in list_checkpoints(model.path)]
        models += found
        spread.append(len(found))
    return models, spread


def from_arguments(
    args: argparse.Namespace,
) -> tuple[Recipe, StoredModel | None, list[StoredModel]]:
    if not args.models:
        raise UserError("give --models, or --recipe")
    method = args.method or "ties"
    base = open_model(args.base) if args.base else None
    models, _ = open_models(method, args.models)
    given = {name: value for name, value in vars(args).items() if name in SETTINGS}
    recipe = make_recipe(method, len(models), args.weights, given, args.dtype)
    check_base(f"--method {method}", method, base is not None, "--base")
    return recipe, base, models


def from_recipe(
    args: argparse.Namespace,
) -> tuple[Recipe, StoredModel | None, list[StoredModel]]:
    others = {"recipe", "output"}
    given = [name for name, value in vars(args).items() if value is not None and name not in others]
    if given:
        raise UserError(f"--{given[0]} and --recipe: write it into {args.recipe}")
    file = read_recipe_file(args.recipe)
    base = open_model(file.base) if file.base else None
    models, spread = open_models(file.method, file.models)
    return to_recipe(file, spread), base, models


def main() -> None:
    args = parse_arguments()
    recipe, base, models = from_recipe(args) if args.recipe else from_arguments(args)
    everyone = [base, *models] if base else models
    check_alike(everyone[0], everyone[1:])
    if recipe.dtype not in (None, "float32") and everyone[0].kind == CHECKPOINT:
        raise UserError(
            f"dtype {recipe.dtype}: checkpoints are float32; export the merged one in it"
        )
    check_target(args.output, everyone)

    outcomes = write_merged(args.output, recipe, base, models, merge(recipe, base, models))
    print(table(outcomes, len(models)))
    if recipe.method == "ema":
        for model, weight in zip(models, recipe.weights, strict=True):
            print(f"{weight:.4f}  {model.path}")
    print(f"wrote {args.output}")


if __name__ == "__main__":
    run_main(main)
