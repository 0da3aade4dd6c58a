"""Writes a checkpoint as a Hugging Face folder: safetensors, config.json, tokeniser files and a model card."""

import argparse
from pathlib import Path

from mmbert_jax.checkpoint import restore_params, run_folder
from mmbert_jax.errors import run_main
from mmbert_jax.hf.export import DTYPES, check_output, export_hf
from mmbert_jax.hf.model_card import last_evaluation
from mmbert_jax.inference.checkpoint_tokenizer import checkpoint_tokenizer


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
        "--output", required=True, type=Path, help="a new folder, or an earlier export to replace"
    )
    parser.add_argument(
        "--dtype", choices=sorted(DTYPES), default="float32", help="stored dtype (default float32)"
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
    args = parser.parse_args()

    check_output(args.output)
    params, meta = restore_params(args.checkpoint)
    export_hf(
        args.output,
        params,
        meta,
        checkpoint_tokenizer(meta, args.tokenizer),
        dtype=args.dtype,
        max_shard_bytes=int(args.max_shard_size * 1e9),
        held_out=last_evaluation(run_folder(args.checkpoint), meta["step"]),
    )
    print(
        f"wrote {args.output}: load it with AutoModelForMaskedLM.from_pretrained({str(args.output)!r})"
    )


if __name__ == "__main__":
    run_main(main)
