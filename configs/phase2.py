"""Phase 2 of mmBERT, mid-training: 600B tokens in 109 languages and code, rows of 8192, 15% masked, RoPE base 160,000.

Reproduces:  the published phase 2 of base and small, from the end of phase 1.
Command:     python -m mmbert_jax.train --config configs/phase2.py
             (small: `configs/phase2.py:small`, and -small after each run folder)
             Run folder: runs/phase2. Starts from runs/phase1.
             Text: corpora/, one corpus or one for each source (mmbert_jax/recipe/sources.py).
Planned for: 8 x H100 80 GB. At the rates of the published runs (108.5k tokens/s a GPU for base, 434k for small) that is
             8 days for base and 2 for small. Nobody has run it with this code yet.
Expected:    no figure is published for the end of this phase; the three decay variants start from it.
"""

from ml_collections import ConfigDict

from mmbert_jax.recipe import settings, sources


def get_config(size: str = "base") -> ConfigDict:
    config = settings.later_phase(size, "phase2", after="phase1")
    config.data.temperature = 0.5
    config.data.sources = sources.phase2()
    config.mask.ratio = 0.15
    config.train.tokens = 600_000_000_000
    return config
