"""What a run folder says about itself."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from mmbert_jax.data.mixture import Mixture, build_mixture
from mmbert_jax.data.pipeline import find_corpora
from mmbert_jax.errors import UserError
from mmbert_jax.metrics import read_metrics
from mmbert_jax.optim.schedules import phase_rows
from mmbert_jax.run import read_config


def steps_and_evaluations(run: Path) -> tuple[list[dict], list[dict]]:
    """The lines of metrics.jsonl: those of training steps, and those of evaluations on held-out rows."""
    records = read_metrics(run)
    return [r for r in records if "loss" in r], [r for r in records if "held_out" in r]


def final_groups(run: Path) -> dict[str, Mapping[str, float]]:
    """Group of languages -> `loss`, `accuracy`, `languages` in the last evaluation of a run.

    Raises:
      UserError: the run was never evaluated.
    """
    _, evaluations = steps_and_evaluations(run)
    if not evaluations:
        raise UserError(f"{run}/metrics.jsonl holds no evaluation: has the run come to its end?")
    return evaluations[-1]["held_out_groups"]


def language_shares(run: Path) -> dict[str, float]:
    """Language -> share of the rows of a run's phase, by its config and the manifests of its corpora."""
    return shares_by_language(mixture_of(ConfigDict(read_config(run))))


def mixture_of(config: ConfigDict) -> Mixture:
    """The mixture of a phase, from the config and the manifests of its corpora alone."""
    _, manifests = find_corpora(config.data)
    return build_mixture(config.data, phase_rows(config.train, config.data.row_length), manifests)


def shares_by_language(mixture: Mixture) -> dict[str, float]:
    """Language -> share of the phase, all its sources together."""
    shares: dict[str, float] = defaultdict(float)
    for entry in mixture.entries:
        shares[entry.language] += entry.share
    return dict(shares)
