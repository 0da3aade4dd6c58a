"""The whole curriculum at toy size: minutes on two CPU cores, with every mechanism of the published runs.

Reproduces in small what mmBERT's announcement reports: languages that only the last phase adds gain from it within few
tokens, the others keep what they have, and a TIES merge of the three decay variants has most of both.

Command, all of it:      python tools/curriculum.py            (or `bash tools/demo.sh`, which also installs)
Command, one phase:      python -m mmbert_jax.train --config configs/demo.py:phase1,cldr
                         (on the corpus of the former; later phases take --config.init_from=runs/demo/phase1)
Planned for:             2 CPU cores, 11 to 20 minutes; any accelerator is used if jax finds one.
What to expect:          a table of held-out losses; README.md shows one.

What stands after the colon is PHASE[,LANGUAGES]. PHASE: phase1, phase2, decay_english, decay_110, decay_all. LANGUAGES:
`cldr` for the text that tools/make_cldr_text.py makes (the default), `published` for mmBERT's own lists of ISO 639-3
codes.

As published: mask ratios 30 / 15 / 5%, temperatures 0.7 / 0.5 / 0.3, English's share, RoPE base 10,000 then 160,000,
longer rows from phase 2 on, batch-size warm-up, learning-rate schedules, three decay variants from one checkpoint.
Smaller: model, rows, tokens, batch. Different: the learning rate, since a small model wants a larger one; float32,
since CPUs have no fast bfloat16; more passes over a language, since the text is small. Even so English runs out before
its share of phase 1 is reached, and the other languages get the rest.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from mmbert_jax.errors import UserError
from mmbert_jax.recipe import cldr, languages, settings


class Phase(NamedTuple):
    """Tokens of a phase, its mask ratio and temperature, and English's share of all that is not code, in %."""

    tokens: int
    mask_ratio: float
    temperature: float
    english: float


PHASES = {
    "phase1": Phase(1_200_000, 0.30, 0.7, 36.4),
    "phase2": Phase(600_000, 0.15, 0.5, 12.5),
    "decay_english": Phase(400_000, 0.05, 0.3, 18.5),
    "decay_110": Phase(400_000, 0.05, 0.3, 13.6),
    "decay_all": Phase(400_000, 0.05, 0.3, 10.7),
}
# Groups of languages by the phase that adds them.
LANGUAGES = {"cldr": cldr.GROUPS, "published": languages.GROUPS}


def get_config(argument: str = "phase1,cldr") -> ConfigDict:
    phase, _, chosen = argument.partition(",")
    if phase not in PHASES:
        raise UserError(
            f"there is no demo phase {phase!r}: write configs/demo.py:PHASE, PHASE one of {', '.join(PHASES)}"
        )
    if (chosen or "cldr") not in LANGUAGES:
        raise UserError(
            f"there are no language lists {chosen!r}: write {' or '.join(LANGUAGES)} after the comma"
        )
    groups = LANGUAGES[chosen or "cldr"]

    config = settings.published("base", phase)
    # Where tools/curriculum.py puts them.
    config.workdir, config.data.corpus = f"runs/demo/{phase}", "runs/demo/corpus"
    config.dtype = "float32"
    config.train.tokens, config.mask.ratio, config.data.temperature, english = PHASES[phase]
    config.model.vocab_size = 8192
    config.model.hidden_size = 192
    config.model.num_layers = 6
    config.model.num_heads = 3
    config.model.intermediate_size = 288
    config.train.loss_chunk = 8192

    first = phase == "phase1"
    config.data.row_length = 128 if first else 256
    settings.set_rope_theta(config, 10_000.0 if first else 160_000.0)
    # 8192 tokens a step at either row length.
    config.train.batch_rows = config.train.batch_warmup_from_rows = 64 if first else 32
    config.train.microbatch_rows = config.train.batch_warmup_stage_rows = 16
    config.optimizer.peak_lr = 2e-3
    config.optimizer.weight_decay = 2e-4
    if first:
        config.train.batch_warmup_from_rows, config.train.batch_warmup_tokens = 16, 200_000
        config.optimizer.warmup_tokens = 200_000
    if phase.startswith("decay"):
        config.optimizer.schedule, config.optimizer.final_lr_fraction = "one_minus_sqrt", 0.02

    others = groups["phase1"]
    if not first:
        others += groups["phase2"]
    if phase == "decay_all":
        others += groups["last"]
    config.data.sources = {
        "english": {"share": english, "languages": groups["english"]},
        "multilingual": {"share": 100.0 - english, "languages": others},
    }
    config.data.max_passes = 12.0
    config.data.loader_workers = 0

    config.eval.groups = groups
    config.eval.rows_per_language = 8 if first else 4
    config.eval.every_steps = 50
    config.checkpoint.every_steps = 25
    return config
