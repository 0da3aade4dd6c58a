"""What a run folder says about itself."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from mmbert_jax.config import complete
from mmbert_jax.data.mixture import Mixture, build_mixture
from mmbert_jax.data.pipeline import find_corpora
from mmbert_jax.errors import UserError
from mmbert_jax.metrics import read_metrics
from mmbert_jax.optim.schedules import mixture_rows, phase_rows
from mmbert_jax.places import Place
from mmbert_jax.run import METRICS, read_config, run_folder


def steps_and_evaluations(run: Place) -> tuple[list[dict], list[dict]]:
    """The lines of metrics.jsonl: those of training steps, and those of evaluations on held-out rows."""
    records = read_metrics(run)
    return [r for r in records if "loss" in r], [r for r in records if "held_out" in r]


def final_groups(run: Place) -> dict[str, Mapping[str, float]]:
    """Group of languages -> `loss`, `accuracy`, `languages` in the last evaluation of a run.

    Raises:
      UserError: the run was never evaluated.
    """
    _, evaluations = steps_and_evaluations(run)
    if not evaluations:
        raise UserError(f"{run}/metrics.jsonl holds no evaluation: has the run come to its end?")
    return evaluations[-1]["held_out_groups"]


def checkpoint_groups(path: str | Place, meta: Mapping) -> Mapping[str, Mapping[str, float]]:
    """The figures of `final_groups` for one checkpoint; {} where it was never evaluated.

    A checkpoint is saved before it is evaluated: the figures of its step stand in the run's metrics.jsonl. What the
    checkpoint itself says, of the evaluation before, is taken where that file has none.

    Args:
      path: a run folder (its newest checkpoint) or one checkpoint in it.
      meta: of that checkpoint.
    """
    return step_groups(run_folder(path), meta["step"]) or meta.get("held_out_groups", {})


def step_groups(run: Place, step: int) -> Mapping[str, Mapping[str, float]] | None:
    """The figures of the evaluation after a step; None where there was none."""
    if not (run / METRICS).is_file():
        return None
    of_step = [r for r in steps_and_evaluations(run)[1] if r["step"] == step]
    return of_step[-1]["held_out_groups"] if of_step else None


def language_shares(run: Place) -> dict[str, float]:
    """Language -> share of the rows of a run's phase, by its config and the manifests of its corpora."""
    return shares_by_language(mixture_of(complete(ConfigDict(read_config(run)))))


def mixture_of(config: ConfigDict, manifests: Sequence[Mapping] | None = None) -> Mixture:
    """The mixture of a phase, from the config and the manifests alone; None: those of its corpora."""
    if manifests is None:
        _, manifests = find_corpora(config.data)
    rows = phase_rows(config.train, config.data.row_length)
    return build_mixture(config.data, rows, manifests, mixture_rows(config))


def shares_by_language(mixture: Mixture) -> dict[str, float]:
    """Language -> share of the phase, all its sources together."""
    shares: dict[str, float] = defaultdict(float)
    for entry in mixture.entries:
        shares[entry.language] += entry.share
    return dict(shares)
