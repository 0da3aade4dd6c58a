"""Merges checkpoints that were trained from one base into one, by TIES, and prints what the merge did to each group."""

import argparse
from pathlib import Path

from mmbert_jax.checkpoint import restore_params, save_params
from mmbert_jax.errors import UserError, run_main
from mmbert_jax.merge.checkpoints import check_same, describe, merge, merged_meta


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python tools/merge.py --method ties --base runs/phase2 --density 0.5 \\\n"
        "      --models runs/decay_english runs/decay_110 runs/decay_all --output runs/merged",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--method", choices=["ties"], default="ties")
    parser.add_argument(
        "--base", required=True, help="checkpoint that all models were trained from"
    )
    parser.add_argument(
        "--models",
        required=True,
        nargs="+",
        help="checkpoints to merge: run folders or single ones",
    )
    parser.add_argument(
        "--density", type=float, default=0.5, help="share of each task vector to keep (default 0.5)"
    )
    parser.add_argument(
        "--weights",
        type=float,
        nargs="+",
        help="one for each model (default all 1); ratios matter only",
    )
    parser.add_argument(
        "--lambda",
        dest="scale",
        type=float,
        default=1.0,
        help="factor on the merged task vector (default 1)",
    )
    parser.add_argument(
        "--output", required=True, type=Path, help="the merged checkpoint's folder, new"
    )
    args = parser.parse_args()

    weights = args.weights or [1.0] * len(args.models)
    if len(weights) != len(args.models):
        raise UserError(
            f"--weights has {len(weights)} numbers for {len(args.models)} models; give one for each"
        )
    if not all(weight > 0 for weight in weights):
        raise UserError(f"--weights {weights}: every weight has to be above 0")
    if not 0 <= args.density <= 1:
        raise UserError(f"--density {args.density} is outside 0 to 1")
    if args.output.exists() and any(args.output.iterdir()):
        raise UserError(f"{args.output} is not empty: choose another --output, or remove it first")

    base_params, base_meta = restore_params(args.base)
    models = []
    for path in args.models:
        models.append(restore_params(path))
        check_same((base_params, base_meta), models[-1], path)
    merged, counts = merge(
        base_params, [params for params, _ in models], weights, args.density, args.scale
    )
    print(describe(counts, len(models)))

    recipe = {
        "method": args.method,
        "density": args.density,
        "lambda": args.scale,
        "weights": weights,
    }
    parents = [(path, meta) for path, (_, meta) in zip(args.models, models, strict=True)]
    save_params(args.output, merged, merged_meta(recipe, (args.base, base_meta), parents))
    print(f"wrote {args.output}")


if __name__ == "__main__":
    run_main(main)
