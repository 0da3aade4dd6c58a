"""Under a peer library: runs recipes for a few steps and, with Sentence Transformers, embeds texts.

    python train_a_step.py WORK RECIPE...

WORK has the exported folder `model`, data as RECIPE.jsonl, and texts.json; it gets OUTPUT/RECIPE and embeddings.npy.
"""

import importlib
import json
import sys
from pathlib import Path

import numpy as np

RECIPES = Path(__file__).resolve().parents[3] / "tools" / "recipes"


def main() -> None:
    work, names = Path(sys.argv[1]), sys.argv[2:]
    sys.path.insert(0, str(RECIPES))
    for name in names:
        # Three steps: the warm-up's first has a learning rate of 0.
        arguments = (
            f"--model {work}/model --data {work}/{name}.jsonl --output {work}/trained/{name}"
        )
        arguments += " --max_steps 3 --batch_size 4 --lr 0.01"
        importlib.import_module(name).main(arguments.split())
    if "dense" in names:
        from sentence_transformers import SentenceTransformer

        texts = json.loads((work / "texts.json").read_text())
        for name, folder in (("before", work / "model"), ("after", work / "trained" / "dense")):
            np.save(work / f"{name}.npy", SentenceTransformer(str(folder)).encode(texts))


if __name__ == "__main__":
    main()
