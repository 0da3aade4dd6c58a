"""Writes a checkpoint as a Hugging Face folder: safetensors, config.json, tokeniser files and a model card.

Verifies what it wrote: the weights bit for bit and, where torch and transformers are installed, by their logits.
"""

import argparse
import sys

from mmbert_jax.checkpoint import restore_params
from mmbert_jax.errors import UserError, run_main
from mmbert_jax.files import nan_for_null, read_json
from mmbert_jax.hf.export import DTYPES, check_output, export_hf
from mmbert_jax.hf.model_card import auto_class
from mmbert_jax.hf.tokenizer import copied_tokenizer
from mmbert_jax.inference.checkpoint_tokenizer import checkpoint_tokenizer
from mmbert_jax.places import Place, place
from mmbert_jax.report.runs import checkpoint_groups


def read_held_out(path: Place) -> dict:
    """The groups' figures from a file that `python -m mmbert_jax.evaluate.heldout --output` wrote."""
    try:
        return nan_for_null(read_json(path)["held_out_groups"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--held_out {path} is not what `python -m mmbert_jax.evaluate.heldout --output` writes ({error!r})"
        ) from error


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python tools/export_hf.py --checkpoint runs/demo/merged --output runs/demo/hf",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        help="a run folder (its newest checkpoint) or one checkpoint in it",
    )
    parser.add_argument(
        "--output", required=True, type=place, help="a new folder, or an earlier export to replace"
    )
    parser.add_argument(
        "--dtype",
        choices=sorted(DTYPES),
        help="stored dtype (default: float32; of weights that were imported and not trained since, as they were)",
    )
    parser.add_argument(
        "--tokenizer", help="folder or file; by default the one the checkpoint was trained with"
    )
    parser.add_argument(
        "--max_shard_size",
        type=float,
        default=5.0,
        metavar="GB",
        help="size of a weights file at most (default 5)",
    )
    parser.add_argument(
        "--held_out",
        type=place,
        metavar="JSON",
        help="figures for the model card, from `python -m mmbert_jax.evaluate.heldout --output JSON` (default: those"
        " of the evaluation after its step; a merged one has none)",
    )
    parser.add_argument(
        "--no_verify",
        action="store_true",
        help="do not have transformers compute with what was written",
    )
    args = parser.parse_args()

    if args.max_shard_size <= 0:
        raise UserError(f"--max_shard_size {args.max_shard_size}: it has to be above 0")
    check_output(args.output)
    held_out = read_held_out(args.held_out) if args.held_out else None
    params, meta = restore_params(args.checkpoint)
    own_ids = "special_ids" in meta["config"]
    verified = export_hf(
        args.output,
        params,
        meta,
        (copied_tokenizer if own_ids else checkpoint_tokenizer)(meta, args.tokenizer),
        dtype=args.dtype,
        max_shard_bytes=int(args.max_shard_size * 1e9),
        held_out_groups=held_out or checkpoint_groups(args.checkpoint, meta),
        verify=not args.no_verify,
    )
    for line in verified.splitlines():
        print(line, file=sys.stderr if line.startswith("warning:") else sys.stdout)
    print(
        f"wrote {args.output}: on a disk, {auto_class(meta)}.from_pretrained({args.output.name!r}) loads it"
    )


if __name__ == "__main__":
    run_main(main)
