"""Reports what phases will sample: tokens, share and passes of every source and language, and what to be warned of.

From the manifests of corpora (--corpus), or, before there are any, from the sizes of languages (--sizes); not a token
is read. Warns of sources without a corpus, of languages that are missing, and of more than five passes; lists languages
that no source reads, with their tokens. --output is a folder with the table, mixture.json and a figure.
"""

import argparse

from mmbert_jax.config_file import load
from mmbert_jax.errors import UserError, run_main
from mmbert_jax.files import atomic_folder, check_folder, write_json, write_text
from mmbert_jax.places import place
from mmbert_jax.report import mixtures
from mmbert_jax.report.counts import compare, read_counts
from mmbert_jax.report.plots import plot_mixtures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python tools/mixture_report.py --corpus CORPUS --output mixture \\\n"
        "      --config configs/demo.py:phase1,published configs/demo.py:decay_all,published\n"
        "  python tools/mixture_report.py --config configs/phase2.py --sizes fineweb2.csv:words*2.4 english.csv:tokens",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config", required=True, nargs="+", help="config files, FILE.py or FILE.py:ARGUMENT"
    )
    text = parser.add_mutually_exclusive_group(required=True)
    text.add_argument("--corpus", help="a corpus, or a folder of one for each source")
    text.add_argument(
        "--sizes",
        nargs="+",
        metavar="FILE.csv:COLUMN[*FACTOR]",
        help="sizes by `language` instead, together one corpus; FACTOR: tokens of a unit (default 1)",
    )
    parser.add_argument(
        "--languages", type=int, default=12, help="largest languages to print (default 12)"
    )
    parser.add_argument(
        "--counts",
        nargs="+",
        default=[],
        metavar="FILE.csv:COLUMN",
        help="counts of tokens by `language` to compare with: one for all phases, or one for each",
    )
    parser.add_argument("--output", type=place, help="folder to write")
    arguments = parser.parse_args()
    configs, counts = arguments.config, arguments.counts
    if len(counts) not in (0, 1, len(configs)):
        raise UserError(f"--counts names {len(counts)} columns for {len(configs)} configs")
    if arguments.output:
        check_folder(arguments.output)
    tokens: dict[str, float] = {}
    for argument in arguments.sizes or ():
        file, factor = mixtures.parse_sizes(argument)
        for language, size in read_counts(file, "--sizes").items():
            tokens[language] = tokens.get(language, 0.0) + size * factor

    phases, comparisons, tables = {}, {}, []
    for index, name in enumerate(configs):
        config = load(name)
        if arguments.corpus:
            config.data.corpus = arguments.corpus
            mixture, warnings = mixtures.corpus_mixture(config)
        else:
            mixture, warnings = mixtures.sizes_mixture(config, tokens), []
        phases[name] = found = mixtures.summary(config, mixture, warnings)
        tables.append(f"{name}: {mixtures.table(found, arguments.languages)}")
        if counts:
            shares = {language: of["share"] for language, of in found["languages"].items()}
            comparisons[name] = compare(shares, counts[index % len(counts)])
            found["published"] = comparisons[name].summary()
            tables[-1] += f"\n{comparisons[name]}"
        print(tables[-1], end="\n\n")
    if arguments.output:
        with atomic_folder(arguments.output) as folder:
            write_text(folder / "mixture.txt", "\n\n".join(tables) + "\n")
            write_json(folder / "mixture.json", phases)
            plot_mixtures(phases, comparisons, folder / "mixture.png")
        print(f"wrote {arguments.output}")


if __name__ == "__main__":
    run_main(main)
