"""Filling masks the way the announcement of mmBERT shows it: its calls, its three texts, five predictions for each."""

from pathlib import Path

import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer


def filled(folder: Path) -> str:
    """The five predictions of each text, a list a line."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForMaskedLM.from_pretrained(folder)
    lines = []
    for text in (
        "The capital of France is <mask>.",
        "La capital de España es <mask>.",
        "Die Hauptstadt von Deutschland ist <mask>.",
    ):
        inputs = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits
        at_masks = logits[torch.where(inputs["input_ids"] == tokenizer.mask_token_id)]
        _, best = torch.topk(at_masks, 5, dim=-1)
        lines.append(repr([tokenizer.decode(token) for token in best[0]]) + "\n")
    return "".join(lines)
