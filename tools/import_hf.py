"""Makes a checkpoint of a local ModernBERT folder in safetensors, to start training, merging or filling masks from.

Masked LMs, sequence and token classifiers, question answering models and bare encoders; mmBERT, ModernBERT, Ettin.
"""

import argparse

from mmbert_jax.checkpoint import save_params
from mmbert_jax.errors import run_main
from mmbert_jax.hf.imported import import_meta
from mmbert_jax.hf.load import load_model
from mmbert_jax.places import place


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python tools/import_hf.py --model downloads/mmBERT-small --output runs/imported",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model", required=True, type=place, help="folder with config.json and *.safetensors"
    )
    parser.add_argument("--output", required=True, type=place, help="the checkpoint's folder, new")
    args = parser.parse_args()

    model = load_model(args.model)
    save_params(args.output, model.params, import_meta(args.model, model.config))
    print(f"wrote {args.output}: {model.config.head.kind}, {model.config.model}")


if __name__ == "__main__":
    run_main(main)
