"""What a merge did, tensor by tensor (JSON) and group by group (a table)."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from mmbert_jax.merge.task_vectors import Conflicts


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a merge did to one tensor.

    Attributes:
      size: entries of the tensor.
      length: L2 norm of the base's tensor; without a base, of the first model's.
      moved: L2 norm of the merged tensor minus that one.
      conflicts: of the task vectors; None where the method has no base.
    """

    size: int
    length: float
    moved: float
    conflicts: Conflicts | None

    @classmethod
    def of(
        cls, merged: np.ndarray, reference: np.ndarray, conflicts: Conflicts | None
    ) -> "Outcome":
        return cls(merged.size, _norm(reference), _norm(merged - reference), conflicts)


def to_json(outcomes: Mapping[str, Outcome], num_models: int) -> dict[str, dict[str, float]]:
    """By tensor: entries, relative distance from the base (or first model), and for task vectors the shares kept,
    changed and in conflict (see `table`)."""
    return {name: _shares([outcome], num_models) for name, outcome in outcomes.items()}


def table(outcomes: Mapping[str, Outcome], num_models: int) -> str:
    """A line for each group of tensors (the same tensor of all layers is a group)."""
    groups: dict[str, list[Outcome]] = defaultdict(list)
    for name, outcome in outcomes.items():
        # "layers/3/mlp/wi" and "model.layers.3.mlp.Wi.weight" alike
        separator = "/" if "/" in name else "."
        parts = ["*" if part.isdigit() else part for part in name.split(separator)]
        groups[separator.join(parts)].append(outcome)
    groups["all"] = list(outcomes.values())
    rows = {name: _shares(members, num_models) for name, members in groups.items()}
    columns = [column for column in rows["all"] if column != "entries"]
    width = max(len("tensors"), *map(len, rows))
    lines = [f"{'tensors':<{width}} {'entries':>13}" + "".join(f"{c:>11}" for c in columns)]
    for name, row in rows.items():
        cells = "".join(f"{row[column]:>11.2%}" for column in columns)
        lines.append(f"{name:<{width}} {row['entries']:>13,}{cells}")
    legend = [
        "moved: distance from the base (without one: the first model), relative to its length"
    ]
    if "kept" in columns:
        legend += [
            "kept: entries of all task vectors that are left; changed: entries that any of these changes",
            "conflicts: of the changed entries, those where task vectors have different signs",
        ]
    return "\n".join(lines + legend)


def _shares(outcomes: Sequence[Outcome], num_models: int) -> dict[str, float]:
    size = sum(outcome.size for outcome in outcomes)
    length = math.hypot(*(outcome.length for outcome in outcomes))
    shares = {
        "entries": size,
        "moved": math.hypot(*(outcome.moved for outcome in outcomes)) / (length or 1.0),
    }
    found = [outcome.conflicts for outcome in outcomes if outcome.conflicts is not None]
    if found:
        changed = sum(c.changed for c in found)
        shares["kept"] = sum(c.kept for c in found) / (size * num_models)
        shares["changed"] = changed / size
        shares["conflicts"] = sum(c.conflicts for c in found) / max(1, changed)
    return shares


def _norm(x: np.ndarray) -> float:
    flat = x.reshape(-1)
    return math.sqrt(np.einsum("i,i->", flat, flat, dtype=np.float64))
