"""Prints what phases sample from a corpus, and plots it. Reads configs and manifests, not a single token."""

import argparse
import csv
import runpy
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from mmbert_jax.data.mixture import describe
from mmbert_jax.errors import UserError, run_main
from mmbert_jax.files import check_file
from mmbert_jax.report.plots import plot_shares
from mmbert_jax.report.runs import mixture_of, shares_by_language


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python tools/plot_mixture.py --corpus CORPUS --output shares.png \\\n"
        "      --config configs/demo.py:phase1,published configs/demo.py:decay_all,published",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config", required=True, nargs="+", help="config files, FILE.py or FILE.py:ARGUMENT"
    )
    parser.add_argument(
        "--corpus", required=True, help="a corpus, or a folder of one for each source"
    )
    parser.add_argument("--output", type=Path, help="PNG to write")
    parser.add_argument(
        "--languages", type=int, default=12, help="largest languages to print (default 12)"
    )
    parser.add_argument(
        "--counts",
        metavar="FILE.csv:COLUMN",
        help="compare each phase's shares with counts of tokens; languages are in column `language`",
    )
    arguments = parser.parse_args()
    if arguments.output:
        check_file(arguments.output)

    by_phase = {}
    for name in arguments.config:
        config = load_config(name)
        config.data.corpus = arguments.corpus
        mixture = mixture_of(config)
        print(f"{name}: {config.train.tokens:,} tokens, temperature {config.data.temperature:g}")
        print(describe(mixture, arguments.languages))
        by_phase[name] = shares_by_language(mixture)
        if arguments.counts:
            print(compare(by_phase[name], arguments.counts))
        print()
    if arguments.output:
        first_share = {}
        for shares in by_phase.values():
            first_share = shares | first_share
        order = [
            language
            for shares in by_phase.values()
            for language in sorted(shares, key=lambda k: -first_share[k])
        ]
        plot_shares(by_phase, list(dict.fromkeys(order)), arguments.output)
        print(f"wrote {arguments.output}")


def load_config(name: str) -> ConfigDict:
    """The config of `FILE.py` or `FILE.py:ARGUMENT`."""
    path, _, argument = name.partition(":")
    if not Path(path).is_file():
        raise UserError(f"--config {name}: there is no file {path}")
    get_config = runpy.run_path(path)["get_config"]
    return get_config(argument) if argument else get_config()


def compare(shares: dict[str, float], counts: str) -> str:
    """How far shares are from counts, over the languages that have both.

    Args:
      counts: `FILE.csv:COLUMN`.
    """
    path, _, column = counts.rpartition(":")
    try:
        with open(path, encoding="utf-8", newline="") as file:
            given = {row["language"]: float(row[column]) for row in csv.DictReader(file)}
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


if __name__ == "__main__":
    run_main(main)
