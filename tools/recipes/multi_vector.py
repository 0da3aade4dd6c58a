"""Late interaction (ColBERT): a vector a token, distilled from a teacher's scores, with Sentence Transformers.

Reproduces: the announcement's multi-vector example, which uses PyLate (multi_vector_pylate.py). MS MARCO with a
teacher's scores for the candidates of each query, 1 epoch, batch 16, learning rate 8e-5, 5% warm-up, bf16; scores of a
query brought to 0..1 before the softmax, as PyLate does.

    bash tools/setup_peers.sh sentence-transformers
    PYTHONPATH=.peers/sentence-transformers .venv/bin/python tools/recipes/multi_vector.py \
        --model exported --data scored.jsonl --output multi_vector

Data: a JSON object a line, {"query": ..., "documents": [...], "scores": [...]}; equally many documents in all lines.
Needs: torch, transformers, sentence-transformers 6, datasets, accelerate. Reads nothing but local files.
"""

import torch
from common import parse_arguments, read_jsonl, trainer_settings
from datasets import Dataset
from sentence_transformers import (
    MultiVectorEncoder,
    MultiVectorEncoderTrainer,
    MultiVectorEncoderTrainingArguments,
)
from sentence_transformers.multi_vector_encoder.losses import MultiVectorDistillKLDivLoss
from sentence_transformers.multi_vector_encoder.scoring import colbert_kd_scores


def candidates_as_columns(data: Dataset) -> Dataset:
    """The loss wants the query, then a column for each candidate, then the teacher's scores as the label."""
    ways = {len(documents) for documents in data["documents"]}
    if len(ways) != 1 or ways != {len(scores) for scores in data["scores"]}:
        raise SystemExit("error: all records need equally many documents, and a score for each")
    columns = {f"document_{i}": [row[i] for row in data["documents"]] for i in range(ways.pop())}
    return Dataset.from_dict({"query": data["query"], **columns, "label": data["scores"]})


def scores_from_0_to_1(*embeddings: torch.Tensor, **masks: torch.Tensor) -> torch.Tensor:
    """MaxSim of each query with its candidates, [B, N], the worst at 0 and the best at 1."""
    scores = colbert_kd_scores(*embeddings, **masks)
    low, high = scores.aminmax(dim=1, keepdim=True)
    return (scores - low) / (high - low + 1e-8)


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(__doc__, argv, batch_size=16, lr=8e-5, warmup=0.05)
    data = candidates_as_columns(read_jsonl(args.data, ("query", "documents", "scores")))
    model = MultiVectorEncoder(str(args.model))
    settings = MultiVectorEncoderTrainingArguments(**trainer_settings(args))
    loss = MultiVectorDistillKLDivLoss(model, similarity_fct=scores_from_0_to_1)
    MultiVectorEncoderTrainer(model=model, args=settings, train_dataset=data, loss=loss).train()
    model.save_pretrained(str(args.output))


if __name__ == "__main__":
    main()
