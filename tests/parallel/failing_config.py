"""A config for `python -m mmbert_jax.train` of which process 1 fails at the stage FAIL, all others being sound.

CONFIG_JSON holds the config. What is harmed is as deep in the program as can be: a file's manifest, the disk.
"""

import json
import os
import resource

from ml_collections import ConfigDict

import mmbert_jax.checkpoint
import mmbert_jax.data.pipeline
import mmbert_jax.evaluate.heldout
import mmbert_jax.run_lock
import mmbert_jax.step
from mmbert_jax.errors import UserError


def harmed(message="the injected fault"):
    def fails(*arguments, **named):
        raise UserError(message)

    return fails


def crashes(*arguments, **named):
    raise RuntimeError("the injected fault")


def get_config():
    with open(os.environ["CONFIG_JSON"], encoding="utf-8") as file:
        config = ConfigDict(json.load(file))
    stage = os.environ.get("FAIL") if os.environ["JAX_PROCESS_ID"] == "1" else None
    if stage == "config":
        config.mask.ratio = -1.0
    elif stage == "corpus":
        mmbert_jax.data.pipeline.find_corpora = harmed()
    elif stage == "init_from":
        mmbert_jax.checkpoint.damage = lambda folder: "the injected fault"
    elif stage == "restore":
        mmbert_jax.checkpoint._restore = crashes
    elif stage == "compile":
        mmbert_jax.step.make_train_step = crashes
    elif stage == "data":
        read = mmbert_jax.data.pipeline._Microbatches.__getitem__

        def fail_later(self, index):
            return read(self, index) if index < 4 else crashes()

        mmbert_jax.data.pipeline._Microbatches.__getitem__ = fail_later
    elif stage == "save":
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))
    elif stage == "evaluation":
        mmbert_jax.evaluate.heldout.held_out_losses = harmed()
    elif stage == "folders":
        mmbert_jax.run_lock.SIGHT_SECONDS = 2.0
    return config
