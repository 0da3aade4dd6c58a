"""Figures of one run over its steps, as SVG for a page of HTML."""

import io
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

Records = Sequence[Mapping[str, Any]]

COLOURS = ("#2563a8", "#d1722b", "#3c8d53", "#a33b6b", "#7058b0", "#8a7322", "#3a8f9b", "#777777")
# Points of a curve; where the log has more, each shows the mean of several, and a band their range.
MAX_POINTS = 600
# Languages that have a bar of their own.
SHOWN_LANGUAGES = 24

_STYLE = {
    "svg.hashsalt": "mmbert_jax",  # ids that are the same each time
    "svg.fonttype": "none",  # text stays text, in the page's font
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa3ad",
    "axes.labelcolor": "#4a5560",
    "xtick.color": "#4a5560",
    "ytick.color": "#4a5560",
    "axes.grid": True,
    "grid.color": "#e8ebee",
    "axes.axisbelow": True,
    "legend.frameon": False,
}
_numbers = itertools.count()


def curve_figure(
    records: Records,
    field: str,
    unit: str,
    *,
    scale: float = 1.0,
    log=False,
    set_aside: Sequence[Records] = (),
) -> str:
    """One field of the log over the steps.

    Args:
      unit: what stands beside the axis.
      scale: the field is multiplied by it.
      set_aside: stretches that the run went back behind, drawn faintly.
    """
    steps, mean, low, high = thin([r["step"] for r in records], [scale * r[field] for r in records])
    with rc_context(_STYLE):
        figure = Figure(figsize=(5.6, 2.7), layout="constrained")
        axes = figure.subplots()
        if len(steps) < len(records):
            axes.fill_between(steps, low, high, color=COLOURS[0], alpha=0.2, linewidth=0)
        for stretch in set_aside:
            gone = thin([r["step"] for r in stretch], [scale * r[field] for r in stretch])
            axes.plot(*gone[:2], color=COLOURS[-1], alpha=0.4, linewidth=1, gid="set-aside")
        marker = "o" if len(steps) == 1 else ""
        axes.plot(steps, mean, color=COLOURS[0], linewidth=1.4, marker=marker)
        axes.set(xlabel="step", ylabel=unit)
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
            for kind in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
                kind("{x:g}")
        return _svg(figure)


def held_out_figure(evaluations: Records) -> str:
    """Held-out loss of every group of languages over the steps."""
    groups = dict.fromkeys(group for e in evaluations for group in e["held_out_groups"])
    with rc_context(_STYLE):
        figure = Figure(figsize=(5.6, 2.7), layout="constrained")
        axes = figure.subplots()
        for colour, group in zip(itertools.cycle(COLOURS), groups):
            found = [e for e in evaluations if group in e["held_out_groups"]]
            losses = [e["held_out_groups"][group]["loss"] for e in found]
            steps = [e["step"] for e in found]
            axes.plot(steps, losses, "o-", color=colour, markersize=3, linewidth=1.4, label=group)
        axes.set(xlabel="step", ylabel="nats a target")
        figure.legend(loc="outside right upper", fontsize="small")
        return _svg(figure)


def shares_figure(shares: Mapping[str, float]) -> str:
    """Sampling shares: a bar for each of the largest languages, and one for all others."""
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    shown, rest = ordered[:SHOWN_LANGUAGES], ordered[SHOWN_LANGUAGES:]
    names = [language for language, _ in shown]
    values = [100 * share for _, share in shown]
    colours = [COLOURS[0]] * len(shown)
    if rest:
        names.append(f"{len(rest)} others")
        values.append(100 * sum(share for _, share in rest))
        colours.append("#b9c2cb")
    with rc_context(_STYLE):
        figure = Figure(figsize=(11.4, 2.5), layout="constrained")
        axes = figure.subplots()
        axes.bar(names, values, color=colours)
        axes.set(ylabel="share of the rows, %")
        axes.margins(x=0.01)
        axes.tick_params(axis="x", rotation=45 if len(names) > 12 else 0)
        axes.grid(visible=False, axis="x")
        return _svg(figure)


def thin(
    steps: Sequence[float], values: Sequence[float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(steps, mean, lowest, highest) of at most `MAX_POINTS` parts of a curve, each by its last step.

    Values that are not finite do not count; a part that has no others is nan.
    """
    values = np.asarray(values, np.float64)
    values = np.where(np.isfinite(values), values, np.nan)
    parts = np.array_split(np.arange(len(values)), min(len(values), MAX_POINTS))
    x = np.array([steps[part[-1]] for part in parts])
    finite = [values[part][np.isfinite(values[part])] for part in parts]
    mean, low, high = (
        np.array([f(part) if len(part) else np.nan for part in finite])
        for f in (np.mean, np.min, np.max)
    )
    return x, mean, low, high


def _svg(figure: Figure) -> str:
    """The figure's <svg> element; its ids are like no other figure's, so that many can stand in one page."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    prefix = f"figure{next(_numbers)}-"
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}", text)
    # As wide as the page leaves room for.
    return re.sub(r'(<svg[^>]*?) height="[^"]*"( [^>]*?)? width="[^"]*"', r"\1\2", text, count=1)
