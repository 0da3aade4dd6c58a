"""Further training on your own text of a model that there is: an imported ModernBERT, or a run of ours.

Reproduces: nothing published; the last phase of mmBERT's kind (little masking, a falling rate), for any model.
Command:     python tools/import_hf.py --model downloads/model --output runs/imported
             python tools/prepare_corpus.py --input my.jsonl.gz --tokenizer downloads/model --output corpora/mine
             python -m mmbert_jax.train --config configs/continue.py:runs/imported --config.data.corpus=corpora/mine
Planned for: one accelerator; base trains on some 300k tokens/s of an H200, so in 6 minutes.

What stands after the colon is the run or checkpoint to start from: its shape, RoPE bases and dropout are taken. Its
tokeniser has to be the corpus's. All languages of the corpus are read, by their size to the power of 0.5.
"""

from ml_collections import ConfigDict

from mmbert_jax.checkpoint import read_meta
from mmbert_jax.errors import UserError
from mmbert_jax.places import place


def get_config(start: str = "") -> ConfigDict:
    if not start:
        raise UserError(
            "say what to start from: write configs/continue.py:RUN, a run or a checkpoint"
        )
    model = read_meta(place(start))["config"]["model"]
    return ConfigDict(
        {
            "phase": "continue",
            "workdir": "runs/continued",
            "init_from": start,
            # Published models come without moments, and a run's are those of another phase.
            "init_moments": False,
            "model": dict(model),
            "data": {
                "row_length": 1024,
                "temperature": 0.5,
                "sources": {"all": {"share": 1.0, "languages": ()}},
            },
            # Between mmBERT's 15% of phase 2 and 5% of the decay, for texts that the model has not seen.
            "mask": {"ratio": 0.15},
            "train": {"tokens": 100_000_000, "batch_rows": 256, "microbatch_rows": 32},
            # An eighth of the rate of pre-training: the model is to keep what it knows.
            "optimizer": {
                "peak_lr": 1e-4,
                "weight_decay": 1e-5,
                "b2": 0.95,
                "warmup_tokens": 5_000_000,
                "schedule": "one_minus_sqrt",
                "final_lr_fraction": 0.02,
            },
            "checkpoint": {"every_steps": 100},
            "eval": {"every_steps": 100},
        }
    )
