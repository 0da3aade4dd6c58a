"""A phase's shares beside published counts of tokens."""

import csv
import io

import numpy as np

from mmbert_jax.errors import UserError
from mmbert_jax.places import place


def compare(shares: dict[str, float], counts: str) -> str:
    """How far shares are from counts, over the languages that have both.

    Args:
      counts: `FILE.csv:COLUMN`.
    """
    path, _, column = counts.rpartition(":")
    try:
        file = io.StringIO(place(path).read_bytes().decode("utf-8-sig"), newline="")
        given = {row["language"]: float(row[column]) for row in csv.DictReader(file)}
    except FileNotFoundError as error:
        raise UserError(f"--counts {counts}: there is no file {path}") from error
    except OSError as error:
        raise UserError(f"--counts {counts}: {error}") from error
    except KeyError as error:
        raise UserError(f"--counts {counts}: {path} has no column {error}") from error
    both = [language for language in shares if given.get(language)]
    if len(both) < 2:
        raise UserError(f"--counts {counts}: no languages in common with the phase")
    ours = np.array([shares[language] for language in both])
    theirs = np.array([given[language] for language in both])
    ours, theirs = ours / ours.sum(), theirs / theirs.sum()
    return (
        f"against {column}, {len(both)} languages in common: total variation distance "
        f"{np.abs(ours - theirs).sum() / 2:.3f}, correlation of log shares "
        f"{np.corrcoef(np.log(ours), np.log(theirs))[0, 1]:.3f}"
    )
