"""Under Sentence Transformers: models with its modules, and the vectors that it computes with such folders.

    python sentence_models.py make WORK           WORK/models/NAME on the encoder in WORK/encoder, and their vectors
    python sentence_models.py read WORK MODELS    the vectors of the folders in MODELS

Vectors of the texts in WORK/texts.json go to NAME.npz beside the folders: `plain`, and `prompted` with each model's
prompt "query".
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Normalize,
    Pooling,
    Transformer,
)

PROMPTS = {"query": "the cat: ", "document": ""}


def make(work: Path) -> None:
    torch.manual_seed(0)
    encoder = str(work / "encoder")

    def build(pooling, *behind, **settings):
        first = Transformer(encoder)
        width = first.get_embedding_dimension()
        return SentenceTransformer(modules=[first, Pooling(width, pooling), *behind], **settings)

    models = {pooling: build(pooling) for pooling in ("cls", "mean", "weightedmean", "lasttoken")}
    models["max"] = build("max")
    models["prompts"] = build("mean", prompts=PROMPTS, default_prompt_name="query")
    models["normalised"] = build("cls", Normalize(), similarity_fn_name="dot")
    models["dense"] = build(
        "mean",
        Dense(64, 48),
        Dense(48, 24, bias=False, activation_function=torch.nn.GELU()),
        Dense(24, 32, activation_function=torch.nn.Identity()),
        Normalize(),
        prompts=PROMPTS,
        similarity_fn_name="euclidean",
        truncate_dim=20,
    )
    models["short"] = build("mean")
    models["short"].max_seq_length = 12
    for name, model in models.items():
        model.save_pretrained(str(work / "models" / name), create_model_card=False)
    # As versions before 5 wrote it.
    pooling = work / "models" / "cls" / "1_Pooling" / "config.json"
    flags = {f"pooling_mode_{mode}": mode == "cls_token" for mode in ("cls_token", "mean_tokens")}
    pooling.write_text(json.dumps({"word_embedding_dimension": 64} | flags))
    (work / "models" / "short" / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": 12, "do_lower_case": False})
    )


def read(work: Path, models: Path) -> None:
    texts = json.loads((work / "texts.json").read_text())
    for folder in sorted(path for path in models.iterdir() if path.is_dir()):
        model = SentenceTransformer(str(folder), device="cpu")
        vectors = {"plain": model.encode(texts)}
        if model.prompts.get("query"):
            vectors["prompted"] = model.encode(texts, prompt_name="query")
        np.savez(folder.with_suffix(".npz"), **vectors)


if __name__ == "__main__":
    what, work, *rest = sys.argv[1:]
    if what == "make":
        make(Path(work))
        rest = [Path(work) / "models"]
    read(Path(work), Path(rest[0]))
