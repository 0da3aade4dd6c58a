"""Checks of a run against what it is made from, and of a model against a corpus, before anything is written."""

from pathlib import Path

from ml_collections import ConfigDict

from mmbert_jax import checkpoint
from mmbert_jax.data.pipeline import PhaseData, find_corpora
from mmbert_jax.data.tokenizer_identity import same_tokenizer, short
from mmbert_jax.errors import UserError
from mmbert_jax.fingerprint import Account, difference, fingerprint
from mmbert_jax.recipe.settings import command
from mmbert_jax.run import checkpoint as checkpoint_folder
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
    theirs, ours = meta.get("tokenizer"), data.tokenizer
    if not same_tokenizer(theirs, ours):
        raise UserError(
            f"config.init_from={config.init_from} was trained with another tokeniser ({short(theirs)}) than the corpus"
            f" {config.data.corpus} was prepared with ({short(ours)}): prepare the corpus with the run's tokeniser"
        )


def check_resume(config: ConfigDict, data: PhaseData, run: Path) -> tuple[int, str]:
    """The data must be those that the run's newest checkpoint was trained on.

    Returns:
      The global row at which the checkpoint stands, 0 where there is none, and a sentence on the data to print.

    Raises:
      UserError: naming what was changed: a language's rows, a shard, the tokeniser, the order of rows.
    """
    newest = _newest(run)
    if newest is None:
        return 0, f"data fingerprint {fingerprint(config, data, 0)['digest']}"
    folder, meta = newest
    row = meta.get("row", 0)
    now = fingerprint(config, data, row)
    if found := changed_data(meta, now):
        raise UserError(
            f"config.data.corpus={config.data.corpus} is not what {run} was trained on until step {meta['step']}:"
            f" {found}. Point --config.data.corpus at the former corpus, or start a new phase from the run in another"
            f" --workdir: --config.init_from={run}"
        )
    if "fingerprint" not in meta:
        return row, (
            f"data fingerprint {now['digest']} at row {row}; {folder} is from before checkpoints kept one, so whether"
            " the corpus is still the same could not be checked, but for its tokeniser"
        )
    return row, f"data fingerprint {now['digest']} at row {row}, the same data as in {folder}"


def check_documents(run: Path, config: ConfigDict, data: PhaseData) -> None:
    """The data that a run's steps are to be looked up in must be those that it was trained on, as far as it says so.

    Raises:
      UserError: naming what is another one.
    """
    newest = _newest(run)
    if newest is None:
        return
    folder, meta = newest
    if found := changed_data(meta, fingerprint(config, data, meta.get("row", 0))):
        raise UserError(
            f"{config.data.corpus} is not what {run} was trained on (by {folder}): {found}. Name a copy of that corpus"
            " with --corpus"
        )


def changed_data(meta: checkpoint.Meta, now: Account) -> str | None:
    """What a checkpoint says otherwise of its data than the account `now`, in words; None where nothing is known to."""
    if "fingerprint" in meta:
        return difference(meta["fingerprint"], now)
    theirs, ours = meta.get("tokenizer"), now["tokenizer"]
    if not same_tokenizer(theirs, ours):
        return f"the corpus was prepared with another tokeniser ({short(theirs)} before, {short(ours)} now)"
    return None


def check_corpus(meta: checkpoint.Meta, data_config: ConfigDict) -> None:
    """A corpus that a model is evaluated on must have been prepared with the model's tokeniser."""
    _, manifests = find_corpora(data_config)
    theirs, ours = meta.get("tokenizer"), manifests[0]["tokenizer"]
    if not same_tokenizer(theirs, ours):
        raise UserError(
            f"the corpus {data_config.corpus} was prepared with another tokeniser ({short(ours)}) than the checkpoint"
            f" was trained with ({short(theirs)}): prepare it with the checkpoint's tokeniser"
        )
    size = meta["config"]["model"]["vocab_size"]
    if ours["vocab_size"] > size:
        raise UserError(
            f"the corpus {data_config.corpus} has token ids up to {ours['vocab_size'] - 1}, but the model has {size}"
            " classes: prepare it with the checkpoint's tokeniser"
        )


def check_tokenizer(config: ConfigDict, data: PhaseData) -> None:
    """The corpus's token ids must have rows in the embedding."""
    vocab_size = data.tokenizer["vocab_size"]
    if vocab_size > config.model.vocab_size:
        raise UserError(
            f"config.model.vocab_size={config.model.vocab_size} is too small for {config.data.corpus}, whose tokeniser"
            f" has {vocab_size} entries: set config.model.vocab_size={vocab_size} or more"
        )


def _newest(run: Path) -> tuple[Path, checkpoint.Meta] | None:
    """The newest complete checkpoint whose meta can be read; one that is damaged is reported where it is restored."""
    for step in complete_steps(run):
        folder = checkpoint_folder(run, step)
        try:
            return folder, checkpoint.read_meta(folder)
        except (OSError, ValueError):
            continue
    return None
