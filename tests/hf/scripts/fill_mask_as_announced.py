"""Filling masks the way the announcement of mmBERT shows it: its calls, its three texts, five predictions for each."""

import sys

import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

folder = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForMaskedLM.from_pretrained(folder)

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
    print(repr([tokenizer.decode(token) for token in best[0]]))
