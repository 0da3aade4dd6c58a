"""Which share of a phase's rows each language has: a pure function of the config and the corpora's manifests.

A phase names its sources, each with a share. Inside a source a language's share is proportional to
(its tokens)^temperature. Nothing is read more than `max_passes` times during the phase: what that cuts off goes to the
other languages of the source, and what the whole source cannot hold to the other sources.

A name means the language of a corpus that is spelled so, or else those that are the same in another spelling
(data/language_codes.py): "en" means "eng_Latn". Several of them count as one language in the temperature and divide its
share by their tokens.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence, Set

import numpy as np

from mmbert_jax.data.language_codes import check_names, read_as, unknown
from mmbert_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Entry:
    """One language of one corpus, as a phase reads it.

    Attributes:
      source: the source that named it; several with `+` between them if one corpus serves several sources.
      corpus: index of its corpus among the manifests.
      first_row, rows: its range of rows in that corpus's training split.
      tokens: tokens in these rows.
      share: its part of the phase's rows.
      passes: how often its rows are read during the phase.
    """

    source: str
    language: str
    corpus: int
    first_row: int
    rows: int
    tokens: int
    share: float
    passes: float


@dataclasses.dataclass(frozen=True)
class Mixture:
    """What a phase reads, sorted by source and language.

    Attributes:
      notes: where it differs from what the config asks for.
      remarks: what a reader of the config might not expect: languages that are meant by another spelling of their
        codes, and those of a corpus that no source names.
    """

    entries: tuple[Entry, ...]
    phase_rows: int
    notes: tuple[str, ...]
    remarks: tuple[str, ...]


def shares(sizes: Sequence[float], temperature: float, max_share: Sequence[float]) -> np.ndarray:
    """Shares proportional to sizes^temperature, none above its maximum, together 1.

    This is water filling: share_j = min(max_share_j, c * sizes_j^temperature) with the one c that makes them add up.

    Args:
      sizes: [n], 0 or more; what has size 0 has no share.
      temperature: 0 makes all shares equal, 1 proportional to the sizes.
      max_share: [n], 0 or more, together at least 1.

    Returns:
      float64 [n].
    """
    sizes, caps = np.asarray(sizes, np.float64), np.asarray(max_share, np.float64)
    weights = np.where(sizes > 0, np.maximum(sizes, 1e-300) ** temperature, 0.0)
    caps = np.where(weights > 0, caps, 0.0)
    if caps.sum() < 1 - 1e-9:
        raise ValueError(f"the maximal shares add up to {caps.sum():.6f}: less than 1")
    # In the order in which a rising c reaches the maxima: if exactly the first k are at theirs, c is `level[k]`.
    reached_at = np.divide(caps, weights, out=np.full_like(caps, np.inf), where=weights > 0)
    order = np.argsort(reached_at, kind="stable")
    caps_before = np.concatenate([[0.0], np.cumsum(caps[order])[:-1]])
    weights_left = np.cumsum(weights[order][::-1])[::-1]
    level = np.divide(
        1 - caps_before, weights_left, out=np.full_like(caps, np.inf), where=weights_left > 0
    )
    fits = level <= reached_at[order]
    c = level[np.argmax(fits)] if fits.any() else np.inf
    result = np.where(weights > 0, np.minimum(caps, c * weights), 0.0) if c < np.inf else caps
    return result / result.sum()


def build_mixture(
    data_config: Mapping,
    phase_rows: int,
    manifests: Sequence[Mapping],
    mixture_rows: int | None = None,
) -> Mixture:
    """The mixture of a phase of `phase_rows` rows.

    Args:
      data_config: `config.data`.
      manifests: one for all sources together, or one for each source in the order of `source_names`.
      mixture_rows: length of a phase by which `max_passes` is reckoned (config.data.mixture_tokens); None: phase_rows.

    Raises:
      UserError: a field out of range, no text at all, or less text than the phase needs at `max_passes`.
    """
    mixture_rows = mixture_rows or phase_rows
    names = source_names(data_config)
    _check(data_config, names)
    corpus_of = {name: 0 if len(manifests) == 1 else index for index, name in enumerate(names)}
    languages = [_languages_of(manifest, data_config["row_length"]) for manifest in manifests]
    # Of each corpus: its language -> the name by which sources mean it.
    meant = [
        read_as(of_corpus, _named_in(data_config["sources"], corpus_of, corpus))
        for corpus, of_corpus in enumerate(languages)
    ]
    notes = []

    # What each source names, and of that what its corpus has.
    claims: dict[str, list[str]] = {}
    for name in names:
        corpus = corpus_of[name]
        named = data_config["sources"][name]["languages"]
        found, missing = _claim(named, languages[corpus], meant[corpus])
        check_names(
            f"config.data.sources.{name}.languages", missing, all_languages(manifests[corpus])
        )
        if missing and found:
            notes.append(
                f"data source {name}: {len(missing)} of its languages are not in the corpus ({_shown(missing)})"
            )
        if found:
            claims[name] = found
        else:
            notes.append(
                f"data source {name}: none of its languages is in the corpus; its share goes to the other sources"
            )
    if not claims:
        named = [
            language for name in names for language in data_config["sources"][name]["languages"]
        ]
        there = sorted({language for of_corpus in languages for language in of_corpus})
        raise UserError(
            f"config.data.sources: the corpus has none of the languages named there ({_shown(named)}), only"
            f" {_shown(there) or 'none at all'}"
        )

    # Uncapped wishes [source, language], then room for each: a language that several sources want is divided among
    # them in proportion to their wishes, so that its passes are counted once.
    wanted_of_source = np.array(
        [data_config["sources"][name]["share"] for name in claims], np.float64
    )
    wanted_of_source /= wanted_of_source.sum()
    wishes, room, weights = {}, {}, {}
    for (name, found), wanted in zip(claims.items(), wanted_of_source, strict=True):
        corpus = corpus_of[name]
        weights[name] = _weights(
            found, languages[corpus], meant[corpus], data_config["temperature"]
        )
        uncapped = shares(weights[name], 1.0, np.ones(len(found)))
        for language, share in zip(found, uncapped, strict=True):
            wishes[name, language] = wanted * share
    wished = {}
    for (name, language), wish in wishes.items():
        key = corpus_of[name], language
        wished[key] = wished.get(key, 0.0) + wish
    for (name, language), wish in wishes.items():
        corpus = corpus_of[name]
        cap = data_config["max_passes"] * languages[corpus][language]["rows"] / mixture_rows
        room[name, language] = cap * wish / wished[corpus, language]
    _check_room(sum(room.values()), mixture_rows, data_config, len(wished))

    # Fill the sources, then the languages in each.
    room_of_source = np.array(
        [sum(room[name, language] for language in claims[name]) for name in claims]
    )
    share_of_source = shares(wanted_of_source, 1.0, room_of_source)
    share_of: dict[tuple[int, str], float] = {}
    sources_of: dict[tuple[int, str], list[str]] = {}
    for (name, found), wanted, got in zip(
        claims.items(), wanted_of_source, share_of_source, strict=True
    ):
        corpus = corpus_of[name]
        if got < wanted * 0.999:
            notes.append(
                f"data source {name}: {got:.2%} of the rows instead of {wanted:.2%}, since it has too little text for "
                f"config.data.max_passes={data_config['max_passes']:g}; the rest goes to the other sources"
            )
        caps = [room[name, language] / got for language in found]
        for language, share in zip(found, shares(weights[name], 1.0, caps), strict=True):
            share_of[corpus, language] = share_of.get((corpus, language), 0.0) + got * share
            sources_of.setdefault((corpus, language), []).append(name)

    entries = []
    for (corpus, language), share in share_of.items():
        of_language = languages[corpus][language]
        entries.append(
            Entry(
                source="+".join(sources_of[corpus, language]),
                language=language,
                corpus=corpus,
                first_row=of_language["first_row"],
                rows=of_language["rows"],
                tokens=of_language["tokens"],
                share=float(share),
                passes=float(share) * phase_rows / of_language["rows"],
            )
        )
    if mixture_rows != phase_rows:
        notes.append(_note_of_length(entries, phase_rows, mixture_rows, data_config))
    return Mixture(
        tuple(sorted(entries, key=lambda e: (e.source, e.language, e.corpus))),
        phase_rows,
        tuple(notes),
        tuple(_remarks(manifests, languages, meant, share_of.keys())),
    )


def source_names(data_config: Mapping) -> tuple[str, ...]:
    """The phase's sources in the order in which their manifests are passed around."""
    return tuple(sorted(data_config["sources"].keys()))


def describe(mixture: Mixture, languages: int = 12) -> str:
    """The mixture as a table: every source, the `languages` largest entries and the smallest, notes and remarks."""
    entries = sorted(mixture.entries, key=lambda e: -e.share)
    lines = [f"{'source':<28} {'languages':>9} {'rows':>13} {'share':>8} {'passes':>8}"]
    for source in sorted({e.source for e in entries}):
        of_source = [e for e in entries if e.source == source]
        share, rows = sum(e.share for e in of_source), sum(e.rows for e in of_source)
        passes = share * mixture.phase_rows / rows
        lines.append(
            f"{source[:28]:<28} {len(of_source):>9,} {rows:>13,} {share:>8.2%} {passes:>8.3f}"
        )
    lines.append(f"{'language':<28} {'':>9} {'rows':>13} {'share':>8} {'passes':>8}")
    left_out = len(entries) - languages - 1
    shown = entries if left_out <= 0 else [*entries[:languages], None, entries[-1]]
    for entry in shown:
        if entry is None:
            lines.append(f"... {left_out:,} more")
            continue
        name = f"{entry.language} ({entry.source})"[:38]
        lines.append(f"{name:<38} {entry.rows:>13,} {entry.share:>8.3%} {entry.passes:>8.3f}")
    lines.extend(f"note: {remark}" for remark in mixture.remarks)
    lines.extend(f"warning: {note}" for note in mixture.notes)
    return "\n".join(lines)


def _languages_of(manifest: Mapping, row_length: int) -> Mapping[str, Mapping]:
    """Language -> its rows in the training split, where it has any."""
    if str(row_length) not in manifest["row_lengths"]:
        raise UserError(
            f"config.data.row_length is {row_length}, but the corpus {manifest['source']!r} has rows of "
            f"{', '.join(manifest['row_lengths'])} tokens: prepare it with --row_length {row_length}"
        )
    found = manifest["row_lengths"][str(row_length)]["train"]["languages"]
    return {
        language: entry for language, entry in found.items() if entry["rows"] and entry["tokens"]
    }


def all_languages(manifest: Mapping) -> set[str]:
    """Those without rows, too."""
    return {
        language
        for of_length in manifest["row_lengths"].values()
        for split in of_length.values()
        for language in split["languages"]
    }


def _named_in(sources: Mapping, corpus_of: Mapping[str, int], corpus: int) -> set[str]:
    """All languages that the sources of a corpus name."""
    return {
        language
        for name, index in corpus_of.items()
        if index == corpus
        for language in sources[name]["languages"]
    }


def _claim(
    named: Sequence[str], languages: Mapping[str, Mapping], meant: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """(languages of the corpus that a source reads, languages that it names but the corpus lacks), each sorted.

    A source that names none reads what no source of the corpus names. A language that it names twice, as "zh" and as
    "cmn", is there when either is.
    """
    if not named:
        return sorted(languages.keys() - meant.keys()), []
    found = sorted(language for language, name in meant.items() if name in named)
    meaning = {meant[language] for language in found}
    missing = set(named) - meaning
    return found, sorted(missing - read_as(missing, meaning).keys())


def _weights(
    found: Sequence[str],
    languages: Mapping[str, Mapping],
    meant: Mapping[str, str],
    temperature: float,
) -> np.ndarray:
    """(tokens)^temperature of each language; languages that are meant by one name share what that name has."""
    names = [meant.get(language, language) for language in found]
    tokens = np.array([languages[language]["tokens"] for language in found], np.float64)
    of_name: dict[str, float] = {}
    for name, size in zip(names, tokens.tolist(), strict=True):
        of_name[name] = of_name.get(name, 0.0) + size
    together = np.array([of_name[name] for name in names], np.float64)
    return together**temperature * (tokens / together)


def _remarks(
    manifests: Sequence[Mapping],
    languages: Sequence[Mapping[str, Mapping]],
    meant: Sequence[Mapping[str, str]],
    read: Set[tuple[int, str]],
) -> Iterator[str]:
    for corpus, manifest in enumerate(manifests):
        of_corpus = languages[corpus]
        spelled = [f"{x!r} as {name}" for x, name in meant[corpus].items() if x != name]
        if spelled:
            yield (
                f"corpus {manifest['source']}: {len(spelled)} of its languages are meant by another spelling of their"
                f" codes ({_shown(spelled)})"
            )
        unread = [language for language in of_corpus if (corpus, language) not in read]
        if unread:
            tokens = sum(of_corpus[language]["tokens"] for language in unread)
            total = sum(entry["tokens"] for entry in of_corpus.values())
            yield (
                f"corpus {manifest['source']}: {len(unread):,} of its {len(of_corpus):,} languages are named by no"
                f" source and not read, {tokens:,} of {total:,} tokens ({_with_tokens(unread, of_corpus)})"
            )
        by_itself = unknown(x for x in of_corpus if meant[corpus].get(x) != x)
        if by_itself:
            yield (
                f"corpus {manifest['source']}: {len(by_itself):,} of its languages have no code of ISO 639 or BCP 47"
                f" and are meant by no other spelling ({_with_tokens(by_itself, of_corpus)})"
            )


def _with_tokens(languages: Sequence[str], of_corpus: Mapping[str, Mapping]) -> str:
    largest = sorted(languages, key=lambda language: (-of_corpus[language]["tokens"], language))
    return _shown([f"{language!r} {of_corpus[language]['tokens']:,}" for language in largest])


def _shown(items: Sequence[str]) -> str:
    return ", ".join(items[:8]) + (", ..." if len(items) > 8 else "")


def _check(data_config: Mapping, names: tuple[str, ...]) -> None:
    if not names:
        raise UserError(
            "config.data.sources is empty: name at least one source with its share and languages"
        )
    for name in names:
        share = data_config["sources"][name]["share"]
        if not share > 0:
            raise UserError(f"config.data.sources.{name}.share is {share}: it must be above 0")
    if not 0 <= data_config["temperature"] <= 1:
        raise UserError(
            f"config.data.temperature is {data_config['temperature']}: it must be between 0 and 1"
        )
    if not data_config["max_passes"] > 0:
        raise UserError(
            f"config.data.max_passes is {data_config['max_passes']}: it must be above 0"
        )


def _note_of_length(
    entries: Sequence[Entry], phase_rows: int, mixture_rows: int, data_config: Mapping
) -> str:
    """What it means that the shares are those of a phase of another length."""
    length, passes = data_config["row_length"], data_config["max_passes"]
    note = (
        f"shares are those of a phase of {mixture_rows * length:,} tokens (config.data.mixture_tokens); this one has"
        f" {phase_rows * length:,}"
    )
    beyond = sorted(
        (e for e in entries if e.passes > passes * (1 + 1e-6)),
        key=lambda e: (-e.passes, e.language),
    )
    if beyond:
        shown = ", ".join(f"{e.language} {e.passes:.1f}" for e in beyond[:8])
        shown += ", ..." if len(beyond) > 8 else ""
        note += f"; more often than config.data.max_passes={passes:g} are read: {shown}"
    return note


def _check_room(room: float, phase_rows: int, data_config: Mapping, languages: int) -> None:
    """`room` is the part of the phase that the text lasts for."""
    if room < 1:
        length, passes = data_config["row_length"], data_config["max_passes"]
        rows = room * phase_rows / passes
        raise UserError(
            f"the phase's {languages} languages have {rows:,.0f} rows of {length} tokens, which at "
            f"config.data.max_passes={passes:g} last for {int(room * phase_rows) * length:,} tokens of the "
            f"{phase_rows * length:,} that the phase takes: lower config.train.tokens to that, raise "
            f"config.data.max_passes to {np.ceil(passes / room * 10) / 10:g}, or add text"
        )
