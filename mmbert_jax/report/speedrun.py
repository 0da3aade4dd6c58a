"""What the runs of a speedrun reached: held-out bits a byte, over seeds, and whether one entry beats another."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from scipy.stats import ttest_ind

from mmbert_jax.config import complete
from mmbert_jax.data.pipeline import find_corpora
from mmbert_jax.errors import UserError
from mmbert_jax.flops import segments, step_flops_per_token
from mmbert_jax.goodput import goodput, read_timeline
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.places import Place
from mmbert_jax.report.plots import save_figure
from mmbert_jax.report.runs import steps_and_evaluations
from mmbert_jax.run import read_config


@dataclass(frozen=True)
class Finished:
    """One run.

    Attributes:
      steps, tokens, flops: of all of it; FLOPs are the model's, forward and backward, not the optimiser's.
      seconds: of its steps, without start-up, compilation and evaluation.
      curve: (step, bits a byte) of each evaluation; the last is the result.
    """

    steps: int
    tokens: int
    flops: float
    seconds: float
    curve: tuple[tuple[int, float], ...]

    @property
    def bits(self) -> float:
        return self.curve[-1][1]


def read_run(run: Place) -> Finished | None:
    """What a run reached; None where it has not ended."""
    config = complete(ConfigDict(read_config(run)))
    steps, evaluations = steps_and_evaluations(run)
    if not evaluations or evaluations[-1]["tokens"] < config.train.tokens:
        return None
    _, manifests = find_corpora(config.data)
    (manifest,) = manifests
    languages = manifest["row_lengths"][str(config.data.row_length)]["held_out"]["languages"]
    enough = {k: v for k, v in languages.items() if v["rows"] >= config.eval.rows_per_language}
    train = manifest["row_lengths"][str(config.data.row_length)]["train"]["languages"].values()
    document = sum(of["tokens"] for of in train) / max(sum(of["documents"] for of in train), 1)
    document = min(max(round(document), 1), config.data.row_length)
    tokens = steps[-1]["tokens"]
    flops = step_flops_per_token(
        ModelConfig.from_config(config.model),
        config.mask.ratio,
        segments(config.data.row_length, document),
    )
    return Finished(
        steps[-1]["step"],
        tokens,
        flops * tokens,
        goodput(read_timeline(run)).seconds["step"],
        tuple((e["step"], bits_a_byte(e["held_out"], enough)) for e in evaluations),
    )


def bits_a_byte(results: Mapping[str, Mapping], languages: Mapping[str, Mapping]) -> float:
    """Mean over languages of the loss in bits, for each byte of text as if every token were a target.

    Args:
      results: language -> `loss`, nats a target.
      languages: those that count -> `tokens` and `bytes` of its held-out text, see the corpus's manifest.
    """
    found = [
        result["loss"] / np.log(2) * languages[name]["tokens"] / languages[name]["bytes"]
        for name, result in results.items()
        if name in languages
    ]
    if not found:
        raise UserError("no language has enough held-out rows: take more text")
    return float(np.mean(found))


def steps_to(curve: Sequence[tuple[int, float]], bits: float) -> float | None:
    """The step at which a curve first is at or below so many bits, by straight lines between evaluations."""
    before = None
    for step, value in curve:
        if value <= bits:
            if before is None:
                return float(step)
            (s, b) = before
            return s + (step - s) * (b - bits) / (b - value)
        before = step, value
    return None


def compare(entries: Mapping[str, Sequence[Finished]]) -> dict[str, dict[str, Any]]:
    """The figures of each entry, in the order given.

    Returns:
      name -> seeds; means of steps, tokens, FLOPs and seconds; mean, standard deviation and values of the bits a byte;
      `p`, of Welch's one-sided test that it has fewer bits than the entry before, where both have two seeds;
      `steps_to_first`, the mean number of steps to the mean of the first entry's results, None where a seed does not
      get there; and the curves.
    """
    table: dict[str, dict[str, Any]] = {}
    goal = before = None
    for name, runs in entries.items():
        bits = [run.bits for run in runs]
        goal = float(np.mean(bits)) if goal is None else goal
        needed = [steps_to(run.curve, goal) for run in runs]
        tested = before is not None and len(before) > 1 and len(bits) > 1
        table[name] = {
            "seeds": len(runs),
            **{
                field: float(np.mean([getattr(run, field) for run in runs]))
                for field in ("steps", "tokens", "flops", "seconds")
            },
            "bits": float(np.mean(bits)),
            "spread": float(np.std(bits, ddof=1)) if len(bits) > 1 else None,
            "values": bits,
            "p": float(ttest_ind(bits, before, equal_var=False, alternative="less").pvalue)
            if tested
            else None,
            "steps_to_first": None if None in needed else float(np.mean(needed)),
            "runs": [asdict(run) for run in runs],
        }
        before = bits
    return table


def speedrun_table(table: Mapping[str, Mapping[str, Any]]) -> str:
    """A Markdown table, a line an entry."""
    lines = [
        "| entry | seeds | held-out bits a byte | spread | p against the one before | steps"
        " | steps to the first's result | tokens | seconds | model PFLOP |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, of in table.items():
        spread = "-" if of["spread"] is None else f"{of['spread']:.4f}"
        p = "-" if of["p"] is None else f"{of['p']:.1g}"
        needed = "-" if of["steps_to_first"] is None else f"{of['steps_to_first']:.0f}"
        lines.append(
            f"| {name} | {of['seeds']} | {of['bits']:.4f} | {spread} | {p} | {of['steps']:.0f} | {needed} |"
            f" {of['tokens'] / 1e6:.2f}M | {of['seconds']:.0f} | {of['flops'] / 1e15:.3f} |"
        )
    return "\n".join(lines)


def plot_speedrun(table: Mapping[str, Mapping[str, Any]], path: Place) -> None:
    """Bits a byte over steps: of each entry the mean of its seeds, and the range of them."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name, of in table.items():
        shared = set.intersection(*({step for step, _ in run["curve"]} for run in of["runs"]))
        steps = sorted(shared)
        values = np.array([[dict(run["curve"])[step] for step in steps] for run in of["runs"]])
        (line,) = axes.plot(steps, values.mean(axis=0), label=f"{name}: {of['bits']:.3f}")
        axes.fill_between(
            steps, values.min(axis=0), values.max(axis=0), alpha=0.2, color=line.get_color()
        )
    axes.set(xlabel="step", ylabel="held-out bits a byte", title="Mean over languages")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)
