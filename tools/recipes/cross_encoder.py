"""Reranking: a score for a query and a document that are read together.

Reproduces: the announcement's reranker example. GooAQ questions (100k) with 5 hard negatives each, 1 epoch, batch 64,
learning rate 2e-5, 10% warm-up, bf16, binary cross-entropy with the positives weighted by the number of negatives. The
announcement mines the negatives with an embedding model; here they stand in the data.

    bash tools/setup_peers.sh sentence-transformers
    PYTHONPATH=.peers/sentence-transformers .venv/bin/python tools/recipes/cross_encoder.py \
        --model exported --data labelled.jsonl --output cross_encoder

Data: a JSON object a line, {"query": ..., "document": ..., "label": 1 or 0}.
Needs: torch, transformers, sentence-transformers 6, datasets, accelerate. Reads nothing but local files.
"""

import torch
from common import parse_arguments, read_jsonl, trainer_settings
from sentence_transformers import (
    CrossEncoder,
    CrossEncoderTrainer,
    CrossEncoderTrainingArguments,
)
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(__doc__, argv, batch_size=64, lr=2e-5, warmup=0.1)
    data = read_jsonl(args.data, ("query", "document", "label"))
    positives = sum(data["label"])
    if not 0 < positives < len(data):
        raise SystemExit("error: the data needs records with label 1 and records with label 0")
    model = CrossEncoder(str(args.model), num_labels=1)
    loss = BinaryCrossEntropyLoss(
        model, pos_weight=torch.tensor((len(data) - positives) / positives)
    )
    settings = CrossEncoderTrainingArguments(**trainer_settings(args))
    CrossEncoderTrainer(model=model, args=settings, train_dataset=data, loss=loss).train()
    model.save_pretrained(str(args.output))


if __name__ == "__main__":
    main()
