"""Sizes and counts of tokens by language from CSV files, and a phase's shares beside published counts."""

import csv
import io
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from mmbert_jax.data.language_codes import read_as
from mmbert_jax.errors import UserError
from mmbert_jax.places import place


class Comparison(NamedTuple):
    """Shares of a phase beside counts, over the languages that have both.

    Attributes:
      column: the counts' column.
      languages: n of them, by the counts' names.
      ours, theirs: float64 [n], each together 1.
    """

    column: str
    languages: tuple[str, ...]
    ours: np.ndarray
    theirs: np.ndarray

    @property
    def total_variation(self) -> float:
        return float(np.abs(self.ours - self.theirs).sum() / 2)

    @property
    def correlation(self) -> float:
        return float(np.corrcoef(np.log(self.ours), np.log(self.theirs))[0, 1])

    def summary(self) -> dict[str, str | int | float]:
        """What a report keeps of it."""
        return {
            "column": self.column,
            "languages": len(self.languages),
            "total_variation": self.total_variation,
            "correlation": self.correlation,
        }

    def __str__(self) -> str:
        return (
            f"against {self.column}, {len(self.languages)} languages in common: total variation distance "
            f"{self.total_variation:.3f}, correlation of log shares {self.correlation:.3f}"
        )


def read_counts(argument: str, option: str = "--counts") -> dict[str, float]:
    """Language -> its number in a column, the rows of one language together; what has none, or no code, is left out.

    Args:
      argument: `FILE.csv:COLUMN`; languages stand in the column `language`.
      option: what it was given as, for the messages.

    Raises:
      UserError: there is no such file or column, or what stands there is no number.
    """
    path, _, column = argument.rpartition(":")
    counts: dict[str, float] = {}
    try:
        file = io.StringIO(place(path).read_bytes().decode("utf-8-sig"), newline="")
        for row in csv.DictReader(file):
            language, value = row["language"], row[column]
            if value not in ("", "-"):
                counts[language] = counts.get(language, 0.0) + float(value)
    except FileNotFoundError as error:
        raise UserError(f"{option} {argument}: there is no file {path}") from error
    except OSError as error:
        raise UserError(f"{option} {argument}: {error}") from error
    except KeyError as error:
        raise UserError(f"{option} {argument}: {path} has no column {error}") from error
    except ValueError as error:
        raise UserError(f"{option} {argument}: {error}") from error
    return {language: count for language, count in counts.items() if count > 0}


def compare(shares: Mapping[str, float], counts: str) -> Comparison:
    """How far shares are from counts.

    Args:
      shares: language, spelled in any way, -> share.
      counts: as of `read_counts`.
    """
    given = read_counts(counts)
    ours: dict[str, float] = {}
    for language, name in read_as(shares, given.keys()).items():
        ours[name] = ours.get(name, 0.0) + shares[language]
    both = sorted(name for name, share in ours.items() if share > 0)
    if len(both) < 2:
        raise UserError(f"--counts {counts}: no languages in common with the phase")
    mine = np.array([ours[name] for name in both])
    theirs = np.array([given[name] for name in both])
    column = counts.rpartition(":")[2]
    return Comparison(column, tuple(both), mine / mine.sum(), theirs / theirs.sum())
