"""Held-out results of several models, group by group, as text."""

from collections.abc import Mapping, Sequence

Groups = Mapping[str, Mapping[str, float]]


def held_out_table(rows: Sequence[tuple[str, Groups]], titles: Mapping[str, str]) -> str:
    """A table with a line for each model and, for each group, held-out loss and masked accuracy.

    Args:
      rows: a model's name and its groups' `loss` (nats a target), `accuracy` (0 to 1) and `languages` (a count).
      titles: group -> its title, in the order of the columns. Groups that no model has results for are left out.
    """
    shown = [group for group in titles if any(group in groups for _, groups in rows)]
    count = {g: max(groups[g]["languages"] for _, groups in rows if g in groups) for g in shown}
    heads = [f"{titles[g]} ({count[g]})" for g in shown]
    widths = [max(len(head), len("0.000   00.0%")) for head in heads]
    first = max(len("loss, accuracy"), *(len(name) for name, _ in rows))

    lines = [
        "  ".join([" " * first, *(head.rjust(w) for head, w in zip(heads, widths, strict=True))]),
        "  ".join(["-" * first, *("-" * w for w in widths)]),
    ]
    for name, groups in rows:
        cells = [_cell(groups.get(g)).rjust(w) for g, w in zip(shown, widths, strict=True)]
        lines.append("  ".join([name.ljust(first), *cells]))
    return "\n".join(lines)


def _cell(result: Mapping[str, float] | None) -> str:
    return "-" if result is None else f"{result['loss']:.3f}  {result['accuracy']:6.1%}"
