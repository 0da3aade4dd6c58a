"""Phase 1 of mmBERT, pre-training: 2.3T tokens in 60 languages and code, rows of 1024, 30% masked.

Reproduces:  the published phase 1 of base and small. (The published configuration of base masked 25%, the paper says
             30%: `--config.mask.ratio=0.25` for the former.)
Command:     python -m mmbert_jax.train --config configs/phase1.py
             (small: `configs/phase1.py:small`, and -small after each run folder)
             Run folder: runs/phase1.
             Text: corpora/, one corpus or one for each source (mmbert_jax/recipe/sources.py).
Planned for: 8 x H100 80 GB. At the rates of the published runs (108.5k tokens/s a GPU for base, 434k for small) that is
             31 days for base and 8 for small. Nobody has run it with this code yet.
Expected:    no figure is published for the end of this phase. The whole curriculum: GLUE 86.3 (base), 84.7 (small);
             XTREME 72.8, 68.6.
"""

from ml_collections import ConfigDict

from mmbert_jax.recipe import settings, sources


def get_config(size: str = "base") -> ConfigDict:
    config = settings.published(size, "phase1")
    settings.set_row_length(config, 1024)
    settings.set_rope_theta(config, 10_000.0)
    config.data.temperature = 0.7
    config.data.sources = sources.phase1()
    config.mask.ratio = 0.30

    base = size == "base"
    config.train.tokens = 2_300_000_000_000
    config.train.batch_warmup_from_rows = 384
    config.train.batch_warmup_tokens = 60_000_000_000 if base else 100_000_000_000
    config.optimizer.warmup_tokens = 3_000_000_000 if base else 4_000_000_000
    return config
