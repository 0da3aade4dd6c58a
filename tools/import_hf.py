"""Makes a checkpoint of a local ModernBERT folder in safetensors, to start training, merging or filling masks from."""

import argparse
import dataclasses
from pathlib import Path

from mmbert_jax.checkpoint import save_params
from mmbert_jax.data.tokenizer import load_tokenizer
from mmbert_jax.errors import run_main
from mmbert_jax.hf.load import load_hf
from mmbert_jax.model.config import ModelConfig


def import_meta(folder: Path, config: ModelConfig, max_positions: int) -> dict:
    """What a checkpoint records about an imported model: its shape, its origin, and its tokeniser if it has one."""
    meta = {
        "config": {"model": dataclasses.asdict(config), "data": {"row_length": max_positions}},
        "phase": "imported",
        "step": 0,
        "row": 0,
        "tokens": 0,
        "import": {"model": str(folder.resolve())},
    }
    if (folder / "tokenizer.json").exists():
        tokenizer = load_tokenizer(folder)
        meta["tokenizer"] = {
            "sha256": tokenizer.sha256,
            "vocab_size": tokenizer.vocab_size,
            "path": str(folder.resolve()),
        }
    return meta


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python tools/import_hf.py --model downloads/mmBERT-small --output runs/imported",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model", required=True, type=Path, help="folder with config.json and *.safetensors"
    )
    parser.add_argument("--output", required=True, type=Path, help="the checkpoint's folder, new")
    args = parser.parse_args()

    params, config, max_positions = load_hf(args.model)
    save_params(args.output, params, import_meta(args.model, config, max_positions))
    print(f"wrote {args.output}: {config}")


if __name__ == "__main__":
    run_main(main)
