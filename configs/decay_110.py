"""Decay phase of mmBERT, the variant with the languages of phase 2: 100B tokens in 109 languages and code, 5% masked.

Reproduces:  one of the three published decay variants of base and small, each from the end of phase 2; tools/merge.py
             merges them.
Command:     python -m mmbert_jax.train --config configs/decay_110.py
             (small: `configs/decay_110.py:small`, and -small after each run folder)
             Run folder: runs/decay_110. Starts from runs/phase2.
             Text: corpora/, one corpus or one for each source (mmbert_jax/recipe/sources.py).
Planned for: 8 x H100 80 GB. At the rates of the published runs (108.5k tokens/s a GPU for base, 434k for small) that is
             32 hours for base and 8 for small. Nobody has run it with this code yet.
Expected:    F1 on questions in Tigrinya and Faroese, which it has not seen: TiQuAD 17.8 base, 15.5 small; FoQA 60.4,
             53.7. Published for the merge: TiQuAD 26.8 base, 20.1 small; FoQA 73.5, 72.8.
"""

from ml_collections import ConfigDict

from mmbert_jax.recipe import settings, sources


def get_config(size: str = "base") -> ConfigDict:
    config = settings.decay(size, "decay_110")
    config.data.sources = sources.decay_110()
    return config
