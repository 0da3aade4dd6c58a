"""A language of your own for a model that there is: the last phase, on your text and on that of the old languages.

Reproduces: nothing published; what mmBERT's decay does for the languages that it adds last, with one source for them.
Command:     python -m mmbert_jax.train --config configs/own_language.py:runs/extended --config.data.corpus=corpora/own
             (docs/guides/own_language.md has the commands before and after it)
Planned for: one accelerator; base trains on some 300k tokens/s of an H200, so in 6 minutes.

What stands after the colon is the run or checkpoint to start from: its shape, RoPE bases and dropout are taken.
The corpus is a folder of two, of one tokeniser: `new`, your text, and `replay`, text of the languages that the model
knows. Half of the rows are of each, unless the new text would be read more than five times: the rest is replay then.
"""

from ml_collections import ConfigDict

from mmbert_jax.checkpoint import read_meta
from mmbert_jax.errors import UserError
from mmbert_jax.places import place


def get_config(start: str = "") -> ConfigDict:
    if not start:
        raise UserError(
            "say what to start from: write configs/own_language.py:RUN, a run or a checkpoint"
        )
    before = read_meta(place(start))["config"]
    optimizer = before.get("optimizer", {})
    return ConfigDict(
        {
            "phase": "own_language",
            "workdir": "runs/own_language",
            "init_from": start,
            # Those of an extended vocabulary would have other shapes, and imported models have none.
            "init_moments": False,
            "model": dict(before["model"]),
            "data": {
                "corpus": "corpora/own",
                # Published models take longer rows than most text in a small language fills.
                "row_length": min(before.get("data", {}).get("row_length", 1024), 1024),
                # As in mmBERT's decay.
                "temperature": 0.3,
                "sources": {
                    "new": {"share": 0.5, "languages": ()},
                    "replay": {"share": 0.5, "languages": ()},
                },
            },
            # As in mmBERT's decay.
            "mask": {"ratio": 0.05},
            "train": {"tokens": 100_000_000, "batch_rows": 256, "microbatch_rows": 32},
            "optimizer": {
                # At a stable rate itself the old languages forgot 3%, at a quarter of it 0.2% (docs/log.md); a model
                # that was decayed before is to keep what it knows, too.
                "peak_lr": optimizer["peak_lr"] / 4
                if optimizer.get("schedule") == "stable"
                else 1e-4,
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
