"""Makes a smaller model from a larger one, whatever its head, by sampling layers, heads and dimensions regularly.

What comes out is a checkpoint to start a phase from, `--config.init_from=OUTPUT`: it is worth much less than the larger
model before it is trained, and learns faster than one that starts from nothing.
"""

import argparse

import numpy as np

from mmbert_jax.checkpoint import save_params
from mmbert_jax.errors import run_main
from mmbert_jax.files import check_folder
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.places import place
from mmbert_jax.surgery.derived import read_model
from mmbert_jax.surgery.shrink import shrink, shrunk_meta, smaller_config

EXAMPLE = """example (mmBERT small from base):
  python tools/shrink.py --checkpoint runs/base/phase1 --hidden_size 384 --output runs/small/start
  python -m mmbert_jax.train --config configs/phase1.py:small --workdir runs/small/phase1 \\
      --config.data.corpus=CORPORA --config.init_from=runs/small/start

half of the layers of a classifier that `transformers` wrote, the same width:
  python tools/shrink.py --checkpoint downloads/classifier --drop_every 2 --output runs/classifier-half
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=place,
        help="the larger model: a run folder, a checkpoint in it, or a Hugging Face folder",
    )
    parser.add_argument(
        "--hidden_size", type=int, help="default: as it is; heads keep their size and get fewer"
    )
    parser.add_argument(
        "--num_layers",
        type=int,
        help="default: as it is; global and local ones are picked apart, so that they take turns as before",
    )
    parser.add_argument(
        "--drop_every",
        type=int,
        metavar="N",
        help="drop the last of every N layers instead; for mmBERT 2 or 3, with others the kinds have no period",
    )
    parser.add_argument("--intermediate_size", type=int, help="of the GLU; default: as it is")
    parser.add_argument("--output", required=True, type=place, help="the checkpoint's folder, new")
    args = parser.parse_args()
    check_folder(args.output)

    params, meta = read_model(args.checkpoint)
    config = ModelConfig.from_config(meta["config"]["model"])
    smaller, layers = smaller_config(
        config,
        hidden_size=args.hidden_size,
        num_layers=args.num_layers,
        drop_every=args.drop_every,
        intermediate_size=args.intermediate_size,
    )
    sampled = shrink(params, config, smaller, layers)
    save_params(args.output, sampled, shrunk_meta(meta, str(args.checkpoint), smaller, layers))

    print(f"{'':<20}{'larger':>12}{'smaller':>12}")
    for name in (
        "num_layers",
        "global_every",
        "hidden_size",
        "num_heads",
        "intermediate_size",
        "vocab_size",
    ):
        print(f"{name:<20}{getattr(config, name):>12,}{getattr(smaller, name):>12,}")
    print(f"{'parameters':<20}{_count(params):>12,}{_count(sampled):>12,}")
    print("layers from " + " ".join(map(str, layers)))
    print(f"wrote {args.output}")


def _count(tree) -> int:
    return sum(_count(x) if isinstance(x, dict) else int(np.size(x)) for x in tree.values())


if __name__ == "__main__":
    run_main(main)
