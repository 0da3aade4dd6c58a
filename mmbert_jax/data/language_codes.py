"""Spellings of language codes: which language of a corpus is meant by a name in a config."""

import re
from collections.abc import Iterable, Mapping, Sequence, Set

from mmbert_jax.errors import UserError

SHOWN = 20  # languages that a sentence names

_WITH_SCRIPT = re.compile(r"([a-z]{2,3})[_-][a-z]{4}")


def language_key(code: str) -> str:
    """The code without what only spelling adds: " ENG" and FineWeb2's "eng_Latn" are "eng"."""
    code = code.strip().lower()
    with_script = _WITH_SCRIPT.fullmatch(code)
    return with_script[1] if with_script else code


def read_as(languages: Iterable[str], named: Set[str]) -> dict[str, str]:
    """Language -> the name that means it, of those that some name means: its own, or else its `language_key`.

    So "zho_Hant" goes with "zho" where nothing names "zho_Hant" itself.
    """
    found = {}
    for language in languages:
        name = language if language in named else language_key(language)
        if name in named:
            found[language] = name
    return found


def meant_by(languages: Iterable[str], named: Set[str]) -> dict[str, list[str]]:
    """Name -> the languages that it means, of the names that mean any."""
    found: dict[str, list[str]] = {}
    for language, name in read_as(languages, named).items():
        found.setdefault(name, []).append(language)
    return found


def describe_fit(
    documents: Mapping[str, int], groups: Mapping[str, Sequence[str]], needed: Sequence[str]
) -> str:
    """Which of a text's languages lists name, for people to read before anything is made of the text.

    Args:
      documents: of each language of the text.
      groups: the lists.
      needed: groups of which at least one language has to be there.

    Raises:
      UserError: none is.
    """
    named = {language for members in groups.values() for language in members}
    meant = read_as(documents, named)
    first = [name for group in needed for name in groups[group]]
    if not set(first) & set(meant.values()):
        raise UserError(
            f"none of the text's languages ({_counted(documents, documents)}) is among those that the first phase reads"
            f" ({', '.join(first[:SHOWN])}, ...): write their codes so, or choose another list"
        )
    lines = [
        f"{sum(documents.values()):,} documents in {len(documents):,} languages, of which the lists name {len(meant):,}"
    ]
    if spelled := [language for language, name in meant.items() if language != name]:
        shown = ", ".join(f"{language!r} as {meant[language]}" for language in spelled[:SHOWN])
        more = ", ..." if len(spelled) > SHOWN else ""
        lines.append(f"meant by another spelling of their codes: {len(spelled):,} ({shown}{more})")
    if unread := documents.keys() - meant.keys():
        lines.append(
            f"named by no list, so read by no phase: {sum(documents[x] for x in unread):,} documents in"
            f" {len(unread):,} languages ({_counted(documents, unread)})"
        )
    return "\n".join(lines)


def _counted(documents: Mapping[str, int], languages: Iterable[str]) -> str:
    largest = sorted(languages, key=lambda language: (-documents[language], language))
    more = ", ..." if len(largest) > SHOWN else ""
    return ", ".join(f"{language!r} {documents[language]:,}" for language in largest[:SHOWN]) + more
