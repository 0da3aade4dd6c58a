"""Prints what phases sample from a corpus, and plots it. Reads configs and manifests, not a single token."""

import argparse

from mmbert_jax.config_file import load
from mmbert_jax.data.mixture import describe
from mmbert_jax.errors import run_main
from mmbert_jax.files import check_file
from mmbert_jax.places import place
from mmbert_jax.report.counts import compare
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
    parser.add_argument("--output", type=place, help="PNG to write")
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
        config = load(name)
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


if __name__ == "__main__":
    run_main(main)
