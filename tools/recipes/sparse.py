"""Learned sparse retrieval (SPLADE): a weight for each entry of the vocabulary, from the masked-LM head.

Reproduces: the announcement's sparse example. Natural Questions pairs (100k), 1 epoch, batch 16, learning rate 2e-5,
10% warm-up, FLOPS regulariser 5e-5 on queries and 3e-5 on documents. The announcement trains in fp16; this in bf16.

    bash tools/setup_peers.sh sentence-transformers
    PYTHONPATH=.peers/sentence-transformers .venv/bin/python tools/recipes/sparse.py \
        --model exported --data pairs.jsonl --output sparse

Data: a JSON object a line, {"query": ..., "answer": ...}.
Needs: torch, transformers, sentence-transformers 6, datasets, accelerate; an export with its masked-LM head. Reads
nothing but local files.
"""

from common import parse_arguments, read_jsonl, trainer_settings
from sentence_transformers import (
    SparseEncoder,
    SparseEncoderTrainer,
    SparseEncoderTrainingArguments,
)
from sentence_transformers.base.sampler import BatchSamplers
from sentence_transformers.sparse_encoder.losses import (
    SparseMultipleNegativesRankingLoss,
    SpladeLoss,
)


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(__doc__, argv, batch_size=16, lr=2e-5, warmup=0.1)
    data = read_jsonl(args.data, ("query", "answer"))
    model = SparseEncoder(str(args.model))
    loss = SpladeLoss(
        model,
        loss=SparseMultipleNegativesRankingLoss(model),
        query_regularizer_weight=5e-5,
        document_regularizer_weight=3e-5,
    )
    settings = SparseEncoderTrainingArguments(
        # A text that stands twice in a batch would be its own negative.
        batch_sampler=BatchSamplers.NO_DUPLICATES,
        **trainer_settings(args),
    )
    SparseEncoderTrainer(model=model, args=settings, train_dataset=data, loss=loss).train()
    model.save_pretrained(str(args.output))


if __name__ == "__main__":
    main()
