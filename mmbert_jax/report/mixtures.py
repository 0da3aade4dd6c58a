"""What a phase will sample, before it runs: tokens, share and passes of every source and language, and warnings.

From a config and the manifests of corpora, or from the sizes that corpora are going to have; not a token is read.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from mmbert_jax.data.corpus import MANIFEST
from mmbert_jax.data.mixture import Mixture, source_names
from mmbert_jax.errors import UserError
from mmbert_jax.metrics import si
from mmbert_jax.places import place
from mmbert_jax.report.runs import mixture_of

MOST_PASSES = 5  # over a language, in a published phase


def corpus_mixture(config: ConfigDict) -> tuple[Mixture, list[str]]:
    """The mixture of a phase over its corpora, and warnings about sources that have none: the others share their part.

    Raises:
      UserError: there is no corpus at all, or one is damaged.
    """
    folder = place(config.data.corpus)
    config, warnings = copy.deepcopy(config), []
    if folder.is_dir() and not (folder / MANIFEST).exists():
        names = source_names(config.data)
        missing = [name for name in names if not (folder / name / MANIFEST).exists()]
        if len(missing) < len(names):
            warnings = [f"data source {name}: no corpus in {folder / name}" for name in missing]
            with config.data.sources.unlocked():
                for name in missing:
                    del config.data.sources[name]
    return mixture_of(config), warnings


def sizes_mixture(config: ConfigDict, tokens: Mapping[str, float]) -> Mixture:
    """The mixture of a phase over one corpus with so many tokens of each language."""
    return mixture_of(config, [manifest_of_sizes(tokens, config.data.row_length)])


def manifest_of_sizes(tokens: Mapping[str, float], row_length: int) -> dict[str, Any]:
    """The manifest of a corpus with so many tokens of each language in full rows, as far as a mixture looks at it."""
    entries, first = {}, 0
    for language in sorted(tokens):
        rows = max(1, int(tokens[language] / row_length))
        entries[language] = {"first_row": first, "rows": rows, "tokens": int(tokens[language])}
        first += rows
    split = {"languages": {name: entry for name, entry in entries.items() if entry["tokens"]}}
    return {"source": "of these sizes", "row_lengths": {str(row_length): {"train": split}}}


def summary(config: ConfigDict, mixture: Mixture, warnings: Sequence[str] = ()) -> dict[str, Any]:
    """A phase's mixture in plain data.

    Returns:
      `phase`, `tokens`, `row_length`, `temperature`, `max_passes`, `sources` and `languages` (name -> `available`
      tokens, tokens `read`, `share`, `passes`; of a source also the number of its `languages`, of a language its
      `sources`), `warnings` and `remarks`.
    """
    tokens = mixture.phase_rows * config.data.row_length
    sources: dict[str, dict[str, Any]] = {}
    languages: dict[str, dict[str, Any]] = {}
    for entry in mixture.entries:
        for table, name in ((sources, entry.source), (languages, entry.language)):
            line = table.setdefault(name, {"available": 0, "rows": 0, "share": 0.0, "of": set()})
            line["available"] += entry.tokens
            line["rows"] += entry.rows
            line["share"] += entry.share
        sources[entry.source]["of"].add(entry.language)
        languages[entry.language]["of"].add(entry.source)
    for line in (*sources.values(), *languages.values()):
        line["passes"] = line["share"] * mixture.phase_rows / line.pop("rows")
        line["read"] = line["passes"] * line["available"]
    for line in sources.values():
        line["languages"] = len(line.pop("of"))
    for line in languages.values():
        line["sources"] = sorted(line.pop("of"))
    often = sorted((e for e in mixture.entries if e.passes > MOST_PASSES), key=lambda e: -e.passes)
    if often:
        shown = ", ".join(f"{e.language} {e.passes:.1f}" for e in often[:8])
        shown += ", ..." if len(often) > 8 else ""
        said = f"{len(often):,} languages are read more than {MOST_PASSES} times: {shown}"
        warnings = [*warnings, said]
    return {
        "phase": config.phase,
        "tokens": tokens,
        "row_length": config.data.row_length,
        "temperature": config.data.temperature,
        "max_passes": config.data.max_passes,
        "sources": sources,
        "languages": languages,
        "warnings": [*warnings, *mixture.notes],
        "remarks": list(mixture.remarks),
    }


def table(found: Mapping[str, Any], languages: int = 12) -> str:
    """A summary to read: every source, the `languages` largest languages and the smallest, remarks and warnings."""
    lines = [
        f"{si(found['tokens'])} tokens in {len(found['languages']):,} languages, temperature"
        f" {found['temperature']:g}, at most {found['max_passes']:g} passes",
        _line("source", "languages", "available", "read", "share", "passes"),
    ]
    for name, of in _by_share(found["sources"]):
        lines.append(_numbers(name, f"{of['languages']:,}", of))
    lines.append(_line("language", "", "available", "read", "share", "passes"))
    ordered = _by_share(found["languages"])
    left_out = len(ordered) - languages - 1
    shown = ordered if left_out <= 0 else [*ordered[:languages], None, ordered[-1]]
    for pair in shown:
        if pair is None:
            lines.append(f"... {left_out:,} more")
        else:
            name, of = pair
            lines.append(_numbers(f"{name} ({', '.join(of['sources'])})", "", of))
    lines.extend(f"note: {remark}" for remark in found["remarks"])
    lines.extend(f"warning: {warning}" for warning in found["warnings"])
    return "\n".join(lines)


def _by_share(table: Mapping[str, Mapping]) -> list[tuple[str, Mapping]]:
    return sorted(table.items(), key=lambda item: (-item[1]["share"], item[0]))


def _numbers(name: str, languages: str, of: Mapping) -> str:
    read, share = si(of["read"]), f"{of['share']:.3%}"
    return _line(name, languages, si(of["available"]), read, share, f"{of['passes']:.3f}")


def _line(name: str, languages: str, *cells: str) -> str:
    return f"{name[:36]:<36} {languages:>9} " + " ".join(f"{cell:>10}" for cell in cells)


def parse_sizes(argument: str) -> tuple[str, float]:
    """(FILE.csv:COLUMN, tokens of each of its units) of `FILE.csv:COLUMN` or `FILE.csv:COLUMN*FACTOR`.

    Raises:
      UserError: what stands behind the * is no number above 0.
    """
    file, star, factor = argument.rpartition("*")
    if not star:
        return argument, 1.0
    try:
        value = float(factor)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise UserError(f"--sizes {argument}: {factor!r} is no number above 0")
    return file, value
