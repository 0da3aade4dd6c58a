"""Spellings of language codes: which language of a corpus is meant by a name in a config.

Codes of ISO 639-1, 639-2 and 639-3 and BCP 47 tags, with a script as FineWeb2 writes it or without, are told apart by
langcodes, which has IANA's registry and CLDR's aliases. What it does not know is a name of its own: it means what is
spelled exactly so.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import NamedTuple

import langcodes

from mmbert_jax.errors import UserError

SHOWN = 20  # languages that a sentence names

CODE = "code"  # program code, which is no language and has none's code

# Names of the published counts that langcodes does not know: program code, one newer than its tables (Toki Pona) and
# one that ISO 639-3 has withdrawn (Emilian-Romagnol).
_ALSO_KNOWN = {CODE, "tok", "eml"}

# Which macrolanguage an individual language stands for, where CLDR does not say, or says another than the member that
# FineWeb2 and the published counts have. Fanti, which CLDR counts with Twi as Akan, is counted apart there.
_STANDS_FOR = {
    "nob": "nor",
    "pbt": "pus",
    "gom": "kok",
    "mww": "hmn",
    "aii": "syr",
    "ojb": "oji",
    "wsg": "gon",
    "fat": "fat",
}

# Scripts that are several: FineWeb2's Chinese is `cmn_Hani`, whether simplified or traditional.
_SCRIPTS: dict[str | None, Set[str | None]] = {
    "Hani": {"Hani", "Hans", "Hant"},
    "Kore": {"Kore", "Hang"},
}


class Code(NamedTuple):
    """A code taken apart.

    Attributes:
      subtag: its language as it is written, in lower case.
      alpha3: the same by ISO 639-3 where it has such a code: "deu" for "de", "ger" and "deu".
      macro: the macrolanguage that it is, or stands for: "zho" for "zho" and "cmn"; else `alpha3`.
      script: as it is written or implied ("sh" is Latin), or None.
      likely_script: the one that the language is mostly written in; None where that is not known.
      territory: as it is written, or None.
    """

    subtag: str
    alpha3: str
    macro: str
    script: str | None
    likely_script: str | None
    territory: str | None


@functools.cache
def parse(code: str) -> Code:
    """Takes a code apart; one that is none is a language by itself, without script or territory."""
    code = _tag(code)
    try:
        tag = langcodes.Language.get(code)
        written = langcodes.Language.get(code, normalize=False)
        alpha3, macro = tag.to_alpha3(), tag.prefer_macrolanguage().to_alpha3()
    except (langcodes.LanguageTagError, LookupError):
        return Code(code.lower(), code.lower(), code.lower(), None, None, None)
    # "zh-yue" begins with one language and is another; "und" is none.
    subtag = (tag if written.extlangs else written).language or alpha3
    if tag.territory != written.territory:
        # CLDR takes Congo Swahili for Swahili in Congo: it has a code of its own, and text of its own.
        alpha3 = macro = subtag
    likely = tag.maximize().script if tag.language in langcodes.LIKELY_SUBTAGS else None
    macro = _STANDS_FOR.get(alpha3, macro)
    territory = tag.territory if written.territory else None
    return Code(subtag, alpha3, macro, tag.script, likely, territory)


def _tag(code: str) -> str:
    return code.strip().replace("_", "-")


def is_known(code: str) -> bool:
    """Whether this is a code of ISO 639 or BCP 47, or `CODE`."""
    code = _tag(code)
    return parse(code).subtag in _ALSO_KNOWN or langcodes.tag_is_valid(code)


def read_as(languages: Iterable[str], named: Set[str]) -> dict[str, str]:
    """Language -> the name that means it, of those that some name means.

    A language is meant by the name that is spelled exactly so; or else by one with the same code and another script's
    or territory's spelling ("eng" means "eng_Latn"); or else by one that is the same language in another list of codes
    ("en" means "eng" and "eng_Latn"); or else, if one of the two is a macrolanguage and the other the member that it is
    mostly written in, by that one ("zho" means "cmn", "ar" means "arb", neither means "yue" or "arz"). Two individual
    languages never mean each other. A name with a script or a territory does not mean a text with another one.
    """
    found = {}
    of_macro: dict[str, list[Code]] = {}
    spelled: dict[Code, str] = {}
    for name in sorted(named):
        code = parse(name)
        if spelled.setdefault(code, name) == name:
            of_macro.setdefault(code.macro, []).append(code)
    for language in languages:
        code = parse(language)
        fitting = [name for name in of_macro.get(code.macro, ()) if _fits(code, name)]
        if language in named:
            found[language] = language
        elif fitting:
            found[language] = spelled[max(fitting, key=functools.partial(_closeness, code))]
    return found


def _fits(language: Code, name: Code) -> bool:
    """Whether it is one language, or a macrolanguage and its member, and what both state is the same."""
    if language.alpha3 != name.alpha3 and language.macro not in (language.alpha3, name.alpha3):
        return False
    scripts = None in (name.script, language.script) or _scripts(name) & _scripts(language)
    return bool(scripts) and (
        None in (name.territory, language.territory) or name.territory == language.territory
    )


def _scripts(code: Code) -> Set[str | None]:
    return _SCRIPTS.get(code.script, {code.script})


def _closeness(language: Code, name: Code) -> tuple[bool, ...]:
    """The larger, the closer: a name of the same code; with its own script or territory, then with none."""
    return (
        name.subtag == language.subtag,
        name.alpha3 == language.alpha3,
        name.script is not None and name.script == language.script,
        name.territory is not None and name.territory == language.territory,
        name.script is None,
        name.territory is None,
        name.script == language.likely_script,
    )


def check_names(field: str, names: Iterable[str], languages: Iterable[str]) -> None:
    """Refuses names that are neither among a corpus's languages nor codes of languages: they are misspelled.

    Raises:
      UserError: there are such names; it names the config's field.
    """
    if wrong := unknown(names, languages):
        shown = ", ".join(map(repr, wrong[:SHOWN])) + (", ..." if len(wrong) > SHOWN else "")
        raise UserError(
            f"{field} names {shown}: neither a language of the corpus nor a code of ISO 639 or BCP 47; correct the"
            " spelling, or take it out"
        )


def unknown(names: Iterable[str], known: Iterable[str] = ()) -> list[str]:
    """The names, in their order, that are neither among the `known` nor codes of languages."""
    known = set(known)
    return [name for name in names if name not in known and not is_known(name)]


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
            f" ({', '.join(first[:SHOWN])}, ...): correct their codes, or choose another list"
        )
    lines = [
        f"{sum(documents.values()):,} documents in {len(documents):,} languages, of which the lists name {len(meant):,}"
    ]
    if spelled := [language for language, name in meant.items() if language != name]:
        shown = ", ".join(f"{language!r} as {meant[language]}" for language in spelled[:SHOWN])
        more = ", ..." if len(spelled) > SHOWN else ""
        lines.append(f"meant by another spelling of their codes: {len(spelled):,} ({shown}{more})")
    unread = documents.keys() - meant.keys()
    if unread:
        lines.append(
            f"named by no list, so read by no phase: {sum(documents[x] for x in unread):,} documents in"
            f" {len(unread):,} languages ({_counted(documents, unread)})"
        )
    if nameless := unknown(unread):
        lines.append(
            f"of these, no code of ISO 639 or BCP 47: {_counted(documents, nameless)}: correct them in the text"
        )
    return "\n".join(lines)


def _counted(documents: Mapping[str, int], languages: Iterable[str]) -> str:
    largest = sorted(languages, key=lambda language: (-documents[language], language))
    more = ", ..." if len(largest) > SHOWN else ""
    return ", ".join(f"{language!r} {documents[language]:,}" for language in largest[:SHOWN]) + more
