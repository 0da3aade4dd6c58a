"""What each language has gained and lost between evaluations on held-out text: a table, a plot, numbers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mmbert_jax.places import Place
from mmbert_jax.report.plots import save_figure

Results = Mapping[str, Mapping[str, float]]


def compare_languages(models: Mapping[str, Results], costs: Mapping[str, Mapping]) -> dict:
    """Losses of every language that all models have results for, and means over the new and the old ones.

    Args:
      models: "before", "after" and perhaps "merged" -> language -> `loss`, in nats a target.
      costs: what `surgery.extend` reports of languages; empty: nothing is known of characters, all are old.

    Returns:
      `languages`: language -> `new`, `loss` by model, `change` by model but the first, of the loss as a share; with
      `costs` also `tokens_per_character` (the tokeniser's that all models have, and the one before that) and
      `loss_per_character` by model. `means`: "new" and "old" -> loss by model.
    """
    first, *_ = models
    shared = sorted(set.intersection(*(set(results) for results in models.values())))
    languages = {}
    for language in shared:
        losses = {name: results[language]["loss"] for name, results in models.items()}
        entry: dict[str, Any] = {
            "new": False,
            "loss": losses,
            "change": {n: loss / losses[first] - 1 for n, loss in losses.items() if n != first},
        }
        if cost := costs.get(language):
            tokens = {
                when: cost[f"tokens_{when}"] / cost["characters"] for when in ("before", "after")
            }
            entry |= {
                "new": cost["new"],
                "tokens_per_character": tokens,
                "loss_per_character": {n: loss * tokens["after"] for n, loss in losses.items()},
            }
        languages[language] = entry
    means = {}
    for group, new in (("new", True), ("old", False)):
        found = [entry["loss"] for entry in languages.values() if entry["new"] == new]
        if found:
            means[group] = {name: float(np.mean([x[name] for x in found])) for name in models}
    return {"languages": languages, "means": means}


def language_table(comparison: Mapping) -> str:
    """A line for each language, the new ones first, and one for the mean of the new and of the old."""
    languages = comparison["languages"]
    names = list(next(iter(languages.values()))["loss"])
    first, *others = names
    heads = [first, *(head for name in others for head in (name, "change"))]
    lines = [
        f"{'held-out loss':<22}" + "".join(f"{head:>10}" for head in heads) + f"{'tok/char':>10}"
    ]

    def line(title: str, losses: Mapping[str, float], tokens: str = "") -> str:
        cells = [f"{losses[first]:>10.4f}"]
        for name in others:
            cells.append(f"{losses[name]:>10.4f}{losses[name] / losses[first] - 1:>+10.2%}")
        return f"{title:<22}" + "".join(cells) + f"{tokens:>10}"

    for language in sorted(languages, key=lambda x: (not languages[x]["new"], x)):
        entry = languages[language]
        tokens = entry.get("tokens_per_character")
        title = language + (" (new)" if entry["new"] else "")
        lines.append(line(title, entry["loss"], f"{tokens['after']:.3f}" if tokens else "-"))
    for group, losses in comparison["means"].items():
        lines.append(line(f"mean of the {group}", losses))
    return "\n".join(lines)


def plot_languages(comparison: Mapping, path: Place) -> None:
    """The change of every language's loss, in percent, the new ones first; writes a PNG."""
    languages = comparison["languages"]
    order = sorted(languages, key=lambda x: (not languages[x]["new"], x))
    figure = Figure(figsize=(max(6, 0.35 * len(order)), 4.5), layout="constrained")
    axes = figure.subplots()
    for name in languages[order[0]]["change"]:
        axes.plot([100 * languages[x]["change"][name] for x in order], "o", label=name)
    axes.axhline(0, color="0.5", linewidth=1)
    axes.set_xticks(range(len(order)), order, rotation=90)
    axes.set(title="Held-out loss against before", ylabel="change, %")
    axes.legend()
    axes.grid(alpha=0.3)
    save_figure(figure, path)
