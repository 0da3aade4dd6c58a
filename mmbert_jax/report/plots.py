"""Plots of a curriculum: what each phase samples, how its loss went, and how merges of its ends compare."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rcParams
from matplotlib.figure import Figure  # drawn straight to files: no display, no global state
from matplotlib.lines import Line2D

from mmbert_jax.files import atomic_file
from mmbert_jax.places import Place
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
    axes = figure.subplots()
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
    _save(figure, path)


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
    _save(figure, path)


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
    _save(figure, path)


def _save(figure: Figure, path: Place) -> None:
    with atomic_file(path, "wb") as file:
        figure.savefig(file, format="png", dpi=120)
