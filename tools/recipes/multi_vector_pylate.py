"""Late interaction (ColBERT): a vector a token, distilled from a teacher's scores, with PyLate.

Reproduces: the announcement's multi-vector example. MS MARCO with a teacher's scores for the candidates of each query,
1 epoch, batch 16, learning rate 8e-5, 5% warm-up, bf16, vectors of 128.

    bash tools/setup_peers.sh pylate
    PYTHONPATH=.peers/pylate .venv/bin/python tools/recipes/multi_vector_pylate.py \
        --model exported --data scored.jsonl --output multi_vector

Data: a JSON object a line, {"query": ..., "documents": [...], "scores": [...]}; equally many documents in all lines.
Needs: torch, pylate 1.6 with the transformers (5.3.0) and sentence-transformers (5.3.0) that it pins, datasets,
accelerate. Its index, fast-plaid, is not needed for training. Reads nothing but local files.
"""

from common import parse_arguments, read_jsonl, trainer_settings
from pylate import losses, models, utils
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(__doc__, argv, batch_size=16, lr=8e-5, warmup=0.05)
    data = read_jsonl(args.data, ("query", "documents", "scores"))
    model = models.ColBERT(model_name_or_path=str(args.model))
    SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(**trainer_settings(args)),
        train_dataset=data,
        loss=losses.Distillation(model=model),
        data_collator=utils.ColBERTCollator(tokenize_fn=model.tokenize),
    ).train()
    model.save_pretrained(str(args.output))


if __name__ == "__main__":
    main()
