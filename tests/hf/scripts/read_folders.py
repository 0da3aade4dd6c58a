"""Under some version of `transformers`: what exported folders give there.

    python read_folders.py WORK OUTPUT

WORK/models/NAME are folders; WORK/batches.npz holds `NAME` -> ids [B, L] and `NAME_mask`; WORK/texts.json texts for
the tokeniser in WORK/tokenizer. OUTPUT/NAME.npz gets logits by batch, OUTPUT/saved/NAME what `save_pretrained` makes of
the model, OUTPUT/tokens.json ids and offsets, OUTPUT/filled.txt what the announcement's example prints. A model that
this version has no class for is left out.
"""

import json
import sys
from pathlib import Path

import fill_mask_as_announced
import numpy as np
import torch
import transformers
from transformers import AutoTokenizer


def main() -> None:
    work, output = map(Path, sys.argv[1:])
    output.mkdir(parents=True)
    batches = np.load(work / "batches.npz")
    for folder in sorted((work / "models").iterdir()):
        (architecture,) = json.loads((folder / "config.json").read_text())["architectures"]
        if not hasattr(transformers, architecture):
            continue
        new = transformers.__version__.split(".")[0] != "4"
        model = getattr(transformers, architecture).from_pretrained(
            folder,
            **{"dtype": "auto"} if new else {"torch_dtype": "auto", "reference_compile": False},
        )
        results = {"stored_as": str(model.dtype)}
        model = model.eval().float()
        for name in (key for key in batches.files if not key.endswith("_mask")):
            if name == "longest" and architecture != "ModernBertForMaskedLM":
                continue
            mask = torch.from_numpy(batches[f"{name}_mask"])
            with torch.no_grad():
                out = model(input_ids=torch.from_numpy(batches[name]), attention_mask=mask)
            if "start_logits" in out:
                results[name] = torch.stack((out.start_logits, out.end_logits), dim=-1).numpy()
            else:
                results[name] = out[0].numpy()
        np.savez(output / f"{folder.name}.npz", **results)
        model.save_pretrained(output / "saved" / folder.name)

    if (work / "models" / "mlm").exists():
        (output / "filled.txt").write_text(fill_mask_as_announced.filled(work / "models" / "mlm"))

    if (work / "tokenizer").exists():
        tokenizer = AutoTokenizer.from_pretrained(work / "tokenizer")
        texts = json.loads((work / "texts.json").read_text())
        encoded = tokenizer(texts, return_offsets_mapping=True)
        pair = tokenizer(texts[0], texts[1])["input_ids"]
        tokens = {
            "class": type(tokenizer).__name__,
            "ids": encoded["input_ids"],
            "offsets": encoded["offset_mapping"],
            "pair": pair,
            "model_max_length": tokenizer.model_max_length,
        }
        (output / "tokens.json").write_text(json.dumps(tokens))
    print(transformers.__version__)


if __name__ == "__main__":
    main()
