"""Checks of a run against what it is to be made from, before anything is written."""

from ml_collections import ConfigDict

from mmbert_jax import checkpoint
from mmbert_jax.data.pipeline import PhaseData
from mmbert_jax.errors import UserError
from mmbert_jax.recipe.settings import command
from mmbert_jax.run import complete_steps, run_folder
from mmbert_jax.step import State


def check_start(config: ConfigDict, data: PhaseData, abstract: State) -> None:
    """The checkpoint of `config.init_from` must hold this model, trained with the corpus's tokeniser."""
    if not complete_steps(run_folder(config.init_from)) and (before := command(config.init_from)):
        raise UserError(
            f"config.init_from={config.init_from}: no checkpoint at {config.init_from}. Train the phase before first"
            f" ({before}), or name another with --config.init_from=RUN"
        )
    meta = checkpoint.check_fits(config.init_from, abstract["params"])
    theirs, ours = (meta.get("tokenizer") or {}).get("sha256"), data.tokenizer["sha256"]
    if theirs not in (None, ours):
        raise UserError(
            f"config.init_from={config.init_from} was trained with another tokeniser ({theirs[:12]}) than the corpus"
            f" {config.data.corpus} was prepared with ({ours[:12]}): prepare the corpus with the run's tokeniser"
        )


def check_tokenizer(config: ConfigDict, data: PhaseData) -> None:
    """The corpus's token ids must have rows in the embedding."""
    vocab_size = data.tokenizer["vocab_size"]
    if vocab_size > config.model.vocab_size:
        raise UserError(
            f"config.model.vocab_size={config.model.vocab_size} is too small for {config.data.corpus}, whose tokeniser"
            f" has {vocab_size} entries: set config.model.vocab_size={vocab_size} or more"
        )
