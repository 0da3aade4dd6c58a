"""Plots of a curriculum: what each phase samples, how its loss went, and how merges of its ends compare."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rcParams
from matplotlib.figure import Figure  # drawn straight to files: no display, no global state
from matplotlib.lines import Line2D

from mmbert_jax.files import atomic_file
from mmbert_jax.places import Place
from mmbert_jax.report.counts import Comparison
from mmbert_jax.report.runs import steps_and_evaluations


def plot_shares(
    shares: Mapping[str, Mapping[str, float]], order: Sequence[str], path: Place
) -> None:
    """Sampling share of every language, a curve for each phase.

    Args:
      shares: phase -> language -> share of the phase's rows; languages that a phase leaves out are absent.
      order: all languages, from left to right.
      path: the PNG to write.
    """
    figure = Figure(figsize=(10, 5), layout="constrained")
    _draw_shares(figure.subplots(), shares, order)
    save_figure(figure, path)


def plot_mixtures(
    phases: Mapping[str, Mapping[str, Any]], comparisons: Mapping[str, Comparison], path: Place
) -> None:
    """What phases sample, as figure 1 of mmBERT's announcement has it, and each beside published counts.

    Args:
      phases: config of a phase, as on a command line, -> what `report.mixtures.summary` returns.
      comparisons: config of a phase -> its shares beside counts; may lack phases.
      path: the PNG to write.
    """
    titles = {name: _short(name.rpartition("/")[2], 24) for name in phases}
    shares = {
        name: {language: of["share"] for language, of in phase["languages"].items()}
        for name, phase in phases.items()
    }
    first_share: dict[str, float] = {}
    for of_language in shares.values():
        first_share = of_language | first_share
    order = dict.fromkeys(
        language
        for of_language in shares.values()
        for language in sorted(of_language, key=lambda k: (-first_share[k], k))
    )
    columns = max(2, len(comparisons))
    figure = Figure(figsize=(5 * columns, 9 if comparisons else 4.5), layout="constrained")
    rows = figure.subfigures(2, 1) if comparisons else [figure]
    left, right = rows[0].subplots(1, 2, width_ratios=(2, 1))
    _draw_shares(left, {titles[name]: of for name, of in shares.items()}, list(order))
    places = np.arange(len(phases))
    bottom = np.zeros(len(phases))
    for source in dict.fromkeys(x for phase in phases.values() for x in phase["sources"]):
        read = [phase["sources"].get(source, {"read": 0})["read"] for phase in phases.values()]
        right.bar(places, np.array(read) / 1e9, bottom=bottom, label=_short(source))
        bottom += np.array(read) / 1e9
    for index, phase in enumerate(phases.values()):
        right.annotate(f"{len(phase['languages'])} languages", (index, bottom[index]), ha="center")
    right.set(ylabel="tokens, B", title="Tokens and languages")
    right.set_xticks(places, titles.values(), rotation=15)
    right.set_ylim(top=1.1 * max(bottom))
    right.legend(fontsize="x-small")
    if comparisons:
        panels = rows[1].subplots(1, len(comparisons), squeeze=False)[0]
        for axes, (name, found) in zip(panels, comparisons.items(), strict=True):
            axes.plot(100 * found.theirs, 100 * found.ours, ".", markersize=4)
            axes.axline((1, 1), slope=1, color="0.6", linewidth=1)
            axes.set(
                xscale="log",
                yscale="log",
                xlabel=f"{found.column}, %",
                ylabel="share, %",
                title=f"{titles[name]}\ntotal variation {found.total_variation:.3f}",
            )
            axes.grid(alpha=0.3)
    save_figure(figure, path)


def _short(name: str, length: int = 40) -> str:
    """A name for a legend: that of many sources which one corpus serves is long."""
    return name if len(name) <= length else name[: length - 1] + "…"


def _draw_shares(axes, shares: Mapping[str, Mapping[str, float]], order: Sequence[str]) -> None:
    for phase, of_language in shares.items():
        values = np.array([of_language.get(language, np.nan) for language in order])
        count = np.count_nonzero(~np.isnan(values))
        axes.plot(100 * values, ".", markersize=4, label=f"{phase}: {count} languages")
    axes.set(
        yscale="log",
        xlabel="language, in the order in which the phases add them",
        ylabel="share of the phase, %",
        title="Sampling shares",
    )
    axes.legend()
    axes.grid(alpha=0.3)


def plot_losses(
    runs: Mapping[str, Place],
    starts: Mapping[str, str | None],
    titles: Mapping[str, str],
    path: Place,
) -> None:
    """Training loss of every phase, and held-out loss of every group of languages, over the tokens of the curriculum.

    The training losses of different phases cannot be compared, since each masks its own share of tokens; the held-out
    ones can.

    Args:
      runs: phase -> its run folder; a phase comes after the one that it starts from.
      starts: phase -> the phase that it starts from.
      titles: group of languages -> its title.
      path: the PNG to write.
    """
    figure = Figure(figsize=(14, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = rcParams["axes.prop_cycle"].by_key()["color"]
    markers = "os^vD*"
    ends: dict[str | None, float] = {
        None: 0.0
    }  # phase -> millions of tokens that the model had seen at its end
    for index, (phase, run) in enumerate(runs.items()):
        steps, evaluations = steps_and_evaluations(run)
        start = ends[starts[phase]]
        ends[phase] = start + steps[-1]["tokens"] / 1e6
        left.plot(
            [start + s["tokens"] / 1e6 for s in steps], [s["loss"] for s in steps], label=phase
        )
        for colour, group in zip(colours, titles, strict=False):
            found = [e for e in evaluations if group in e["held_out_groups"]]
            tokens = [start + e["tokens"] / 1e6 for e in found]
            losses = [e["held_out_groups"][group]["loss"] for e in found]
            right.plot(
                tokens,
                losses,
                color=colour,
                marker=markers[index % len(markers)],
                markersize=5,
                linewidth=1,
            )

    left.set(
        title="Training loss (each phase at its own mask ratio)",
        xlabel="tokens, M",
        ylabel="nats a target",
    )
    left.legend()
    right.set(title="Held-out loss", xlabel="tokens, M", ylabel="nats a target")
    grouped = [
        Line2D([], [], color=c, label=title)
        for c, title in zip(colours, titles.values(), strict=False)
    ]
    phases = [
        Line2D([], [], color="0.4", linestyle="", marker=markers[i % len(markers)], label=phase)
        for i, phase in enumerate(runs)
    ]
    right.legend(handles=grouped + phases, fontsize="small")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    save_figure(figure, path)


def plot_sweep(points: Mapping[str, Mapping[str, Any]], path: Place) -> None:
    """Held-out loss of merges, a plot for each group: over the first setting, a curve for each choice of the others.

    Args:
      points: what `merge.sweep.sweep` returns; what was merged is drawn as horizontal lines.
      path: the PNG to write.
    """
    merged = [point for point in points.values() if "weights" in point]
    parents = {name: point for name, point in points.items() if "weights" not in point}
    groups = list(merged[0]["held_out_groups"])
    axis = next(iter(merged[0]["settings"]), None)
    curves: dict[str, list[tuple[float, Mapping]]] = {}
    for point in merged:
        label = "weights " + ":".join(f"{weight:g}" for weight in point["weights"])
        rest = {name: value for name, value in point["settings"].items() if name != axis}
        label += "".join(f", {name} {value:g}" for name, value in rest.items())
        x = point["settings"].get(axis, len(curves))
        curves.setdefault(label, []).append((x, point["held_out_groups"]))

    figure = Figure(figsize=(4 * len(groups) + 3, 4.5), layout="constrained")
    colours = rcParams["axes.prop_cycle"].by_key()["color"]
    for axes, group in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups, strict=True):
        for label, curve in curves.items():
            ordered = sorted(curve, key=lambda place: place[0])
            losses = [of_group[group]["loss"] for _, of_group in ordered]
            axes.plot([x for x, _ in ordered], losses, "o-", markersize=4, label=label)
        for i, (name, point) in enumerate(parents.items()):
            axes.axhline(
                point["held_out_groups"][group]["loss"],
                color=colours[-1 - i % len(colours)],
                linestyle=":",
                label=name,
            )
        axes.set(title=group, xlabel=axis or "choice of weights")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("held-out loss, nats a target")
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize="small"
    )
    save_figure(figure, path)


def save_figure(figure: Figure, path: Place) -> None:
    with atomic_file(path, "wb") as file:
        figure.savefig(file, format="png", dpi=120)
