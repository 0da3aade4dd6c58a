"""Dense retrieval: one vector a text, trained with cached multiple negatives.

Reproduces: mmBERT's retrieval training. MS MARCO triplets with hard negatives (1.25M), 1 epoch, batch 512, learning
rate 8e-5, 5% warm-up, bf16, temperature 1/20 ("scale" 20), mean pooling.

    bash tools/setup_peers.sh sentence-transformers
    PYTHONPATH=.peers/sentence-transformers .venv/bin/python tools/recipes/dense.py \
        --model exported --data triplets.jsonl --output dense

Data: a JSON object a line, {"query": ..., "positive": ..., "negative": ...}.
Needs: torch, transformers, sentence-transformers 6, datasets, accelerate. Reads nothing but local files.
"""

from common import parse_arguments, read_jsonl, trainer_settings
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.sampler import BatchSamplers
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(__doc__, argv, batch_size=512, lr=8e-5, warmup=0.05, mini_batch=16)
    data = read_jsonl(args.data, ("query", "positive", "negative"))
    model = SentenceTransformer(str(args.model))
    loss = CachedMultipleNegativesRankingLoss(
        model, scale=20.0, mini_batch_size=args.mini_batch_size
    )
    settings = SentenceTransformerTrainingArguments(
        # A text that stands twice in a batch would be its own negative.
        batch_sampler=BatchSamplers.NO_DUPLICATES,
        **trainer_settings(args),
    )
    SentenceTransformerTrainer(model=model, args=settings, train_dataset=data, loss=loss).train()
    model.save_pretrained(str(args.output))


if __name__ == "__main__":
    main()
