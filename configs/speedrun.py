"""The speedrun: least held-out bits a byte after a fixed number of tokens, on two CPU cores, in at most three minutes.

Reproduces: nothing published; the rules and the results are in docs/speedrun.md.
Command, five seeds:  python tools/speedrun.py run --data runs/speedrun/cldr --entries stable_adamw muon
Command, one run:    python -m mmbert_jax.train --config configs/speedrun.py:muon --config.data.corpus=CORPUS
Planned for:         2 CPU cores, 2 to 3 minutes.

What stands after the colon is an entry. An entry is what it sets otherwise than TRACK; it may set anything but what
FIXED names, and whatever it does that no field can say comes as a change to the code.
"""

from typing import Any

from ml_collections import ConfigDict

from mmbert_jax.errors import UserError

TRACK: dict[str, Any] = {
    "dtype": "float32",  # CPUs have no fast bfloat16
    "model.vocab_size": 8192,
    "model.hidden_size": 192,
    "model.num_layers": 6,
    "model.num_heads": 3,
    "model.intermediate_size": 288,
    "model.attention_window": 128,
    "model.global_every": 3,
    "model.global_rope_theta": 10_000.0,
    "model.local_rope_theta": 10_000.0,
    "data.row_length": 256,
    "data.temperature": 0.5,
    "data.max_passes": 5.0,
    "data.loader_workers": 0,
    "data.sources": {"text": {"share": 1.0, "languages": ()}},
    "mask.ratio": 0.3,
    "train.tokens": 1_228_800,  # 150 steps of 8,192
    "train.batch_rows": 32,
    "train.microbatch_rows": 16,
    "train.loss_chunk": 8192,
    "optimizer.warmup_tokens": 122_880,
    "optimizer.schedule": "linear",
    "optimizer.final_lr_fraction": 0.1,
    "checkpoint.every_steps": 1000,
    "eval.every_steps": 15,
    "eval.rows_per_language": 8,
    "eval.mask_ratio": 0.15,
}
FIXED = ("data.", "eval.", "train.tokens", "model.vocab_size")

ENTRIES: dict[str, dict[str, Any]] = {
    # The optimiser of the published runs with the values of their first phase, whose rate was for 110M to 307M
    # parameters, and with its flat schedule.
    "published": {
        "optimizer.peak_lr": 8e-4,
        "optimizer.weight_decay": 8e-5,
        "optimizer.schedule": "stable",
        "optimizer.final_lr_fraction": 1.0,
    },
    "stable_adamw": {"optimizer.peak_lr": 2e-3, "optimizer.weight_decay": 2e-4},
    "muon": {
        "optimizer.name": "muon",
        "optimizer.peak_lr": 4e-3,
        "optimizer.weight_decay": 2e-4,
    },
    "normuon": {
        "optimizer.name": "normuon",
        "optimizer.peak_lr": 4e-3,
        "optimizer.weight_decay": 2e-4,
    },
}


def get_config(entry: str = "published") -> ConfigDict:
    if entry not in ENTRIES:
        raise UserError(
            f"there is no entry {entry!r}: write configs/speedrun.py:ENTRY, one of {', '.join(ENTRIES)}"
        )
    for name in ENTRIES[entry]:
        if name.startswith(FIXED):
            raise UserError(f"entry {entry!r} of configs/speedrun.py sets {name}, which is fixed")
    config: dict[str, Any] = {"phase": "speedrun", "workdir": f"runs/speedrun/{entry}"}
    for name, value in (TRACK | ENTRIES[entry]).items():
        section, _, field = name.rpartition(".")
        (config.setdefault(section, {}) if section else config)[field] = value
    return ConfigDict(config)
