"""The tables of docs/data.md, made from the recipe: `python -m mmbert_jax.recipe.tables` prints them."""

from collections.abc import Iterable, Sequence

from mmbert_jax.recipe import sources
from mmbert_jax.recipe.corpora import CORPORA, TOKENISED
from mmbert_jax.recipe.languages import ALL, CODE

PHASES = {
    "phase 1": sources.phase1,
    "phase 2": sources.phase2,
    "decay, English": sources.decay_english,
    "decay, 110": sources.decay_110,
    "decay, all": sources.decay_all,
}


def shares_table() -> str:
    """Source -> its share of each phase, and how many languages it has there."""
    phases = {title: make() for title, make in PHASES.items()}
    rows = []
    for name in CORPORA:
        cells = [f"`{name}`"]
        for of_phase in phases.values():
            total = sum(entry.share for entry in of_phase.values())
            cells.append(_share(of_phase[name], of_phase, total) if name in of_phase else "")
        rows.append(cells)
    return _markdown(["source", *phases], rows)


def corpora_table() -> str:
    """Source -> where it is to be had."""
    rows = (
        (
            f"`{name}`: {corpus.title}",
            f"[{corpus.hub}](https://huggingface.co/datasets/{corpus.hub})",
            f"`{corpus.files}`",
            f"`{corpus.text}`",
            corpus.language,
            corpus.licence,
            corpus.remark,
        )
        for name, corpus in CORPORA.items()
    )
    heads = ["source", "on the hub", "files", "text", "language", "licence", "remark"]
    return _markdown(heads, rows)


def tokenised_table() -> str:
    """Phase -> the data sets that hold it tokenised."""
    return _markdown(["phase", "on the hub"], ((p, ", ".join(of)) for p, of in TOKENISED.items()))


def _share(entry, of_phase, total: float) -> str:
    named = {x for other in of_phase.values() for x in other.languages}
    count = len(entry.languages) or len(set(ALL) - named)
    languages = "code" if entry.languages == (CODE,) else f"{count:,}"
    return f"{entry.share / total:.1%} ({languages})"


def _markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    print(shares_table(), corpora_table(), tokenised_table(), sep="\n\n")
