"""Short texts in some 240 languages from the locale data that the package `babel` brings along: the demo's text.

Sentences are dates, spans of time, amounts, measures, and lists of names, put together at random and written as CLDR
says each language writes them. So there is something to learn in every language and between them, with no download.
"""

import datetime
import random
from collections.abc import Iterator
from dataclasses import dataclass

from babel import Locale, dates, lists, localedata, numbers, units

# Languages of which CLDR knows fewer names than this have little more than a skeleton there.
FEWEST_NAMES = 60
LENGTHS = ("full", "long", "medium")
CURRENCIES = ("EUR", "USD", "INR", "JPY", "GBP", "CNY")
UNITS = (
    "length-kilometer",
    "mass-kilogram",
    "duration-hour",
    "duration-day",
    "temperature-celsius",
    "volume-liter",
    "digital-megabyte",
    "speed-kilometer-per-hour",
)
LONGEST_DOCUMENT = 12  # sentences
LIST = 3  # names in a list


@dataclass(frozen=True)
class Names:
    """What a language has words for."""

    territories: tuple[str, ...]
    languages: tuple[str, ...]
    units: tuple[str, ...]  # CLDR's codes

    def kinds(self) -> list[str]:
        """The kinds of sentences that can be made of them."""
        kinds = ["date", "money", "span"]
        if len(self.territories) >= LIST:
            kinds.append("territories")
        if len(self.languages) >= LIST:
            kinds.append("languages")
        if self.units:
            kinds.append("measure")
        return kinds


def languages() -> list[str]:
    """Codes of the languages that have enough names in CLDR, sorted; 239 in babel 2.18."""
    # A code with "_" is a language in one country or script: mostly the same names again.
    codes = sorted(code for code in localedata.locale_identifiers() if "_" not in code)
    names = {code: _names(Locale.parse(code)) for code in codes}
    return [
        code
        for code, found in names.items()
        if len(found.territories) + len(found.languages) >= FEWEST_NAMES
    ]


def documents(language: str, count: int) -> Iterator[str]:
    """`count` texts of one to LONGEST_DOCUMENT sentences; the n-th is the same whatever `count` is."""
    locale = Locale.parse(language)
    names = _names(locale)
    kinds = names.kinds()
    for n in range(count):
        # Seeded by a string: random.Random then goes through SHA-512, the same on every machine.
        draw = random.Random(f"{language} {n}")
        parts = [
            _sentence(draw, draw.choice(kinds), locale, names)
            for _ in range(draw.randint(1, LONGEST_DOCUMENT))
        ]
        yield ". ".join(parts) + "."


def _names(locale: Locale) -> Names:
    # Numbers stand for continents and regions, "_" for a language as one country speaks it.
    territories = tuple(name for code, name in sorted(locale.territories.items()) if len(code) == 2)
    spoken = tuple(name for code, name in sorted(locale.languages.items()) if "_" not in code)
    # Where a language has no name for a unit, babel writes its code.
    named = tuple(
        u for u in UNITS if u not in units.format_unit(1, u, length="long", locale=locale)
    )
    return Names(territories, spoken, named)


def _sentence(draw: random.Random, kind: str, locale: Locale, names: Names) -> str:
    moment = datetime.datetime(
        draw.randint(1950, 2030),
        draw.randint(1, 12),
        draw.randint(1, 28),
        draw.randint(0, 23),
        draw.randint(0, 59),
    )
    style = draw.choice(LENGTHS)
    match kind:
        case "date":
            return dates.format_date(moment, format=style, locale=locale)
        case "territories":
            return lists.format_list(draw.sample(names.territories, LIST), locale=locale)
        case "languages":
            return lists.format_list(draw.sample(names.languages, LIST), locale=locale)
        case "money":
            amount, currency = draw.randint(1, 99_999), draw.choice(CURRENCIES)
            return numbers.format_currency(amount, currency, locale=locale, format_type="name")
        case "measure":
            amount, unit = draw.randint(2, 5_000), draw.choice(names.units)
            return units.format_unit(amount, unit, length="long", locale=locale)
        case _:
            ago = datetime.timedelta(seconds=-draw.randint(60, 10**8))
            span = dates.format_timedelta(ago, locale=locale, add_direction=True)
            return f"{span}, {dates.format_datetime(moment, format=style, locale=locale)}"
