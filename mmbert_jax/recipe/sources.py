"""What the phases of mmBERT read: the published composition, in billions of tokens by source (dataset cards).

Each function returns what `config.data.sources` holds: source -> share (of any unit) and languages. With one corpus per
source the names are the corpora's folders. With one corpus for everything a source is no more than its languages, and
shares of sources with the same languages add up.

The cards add up to the published tokens per language within 2%. Temperature shaped
FineWeb2 alone; MegaWika, 1 to 10% of the tokens, has several languages too and is shaped alike here.

corpora.py says where each source is to be had.
"""

from ml_collections import ConfigDict

from mmbert_jax.recipe.corpora import FINEWEB2_HQ
from mmbert_jax.recipe.languages import CODE, ENGLISH, PHASE1, PHASE2

# Its 50 languages without English: phase 1's English tokens are those of the English sources alone.
MEGAWIKA = tuple(
    """
    afr arb azj ben ces cmn deu ekk fas fin fra gle glg guj heb hin hrv ind ita jpn kat kaz khk khm kor lit lvs mal
    mar mkd mya nld npi pbt pol por ron rus sin slv spa swe tam tha tur ukr urd vie xho
    """.split()
)


def phase1() -> ConfigDict:
    """2.0T tokens, of which 34.5% English and 5.1% code."""
    return _sources(
        fineweb2=1196.6,
        fineweb2_languages=PHASE1[1:],
        megawika=4.7,
        code={"starcoder": 100.6},
        english={
            "dclm": 600.0,
            "arxiv": 27.8,
            "stackexchange": 18.6,
            "tulu_flan": 15.3,
            "dolmino_math": 11.2,
            "pes2o": 8.4,
            "books": 4.3,
            "stackexchange_dolmino": 1.4,
        },
    )


def phase2() -> ConfigDict:
    """600B tokens, of which 12.1% English and 3.3% code; FineWeb2-HQ stands for FineWeb2 in its 20 languages.

    These are a corpus of their own, a tenth of FineWeb2's size, and the published shares are by the sizes of FineWeb2.
    So they have their published part of both, 59.8% by the tokens per language.

    The card names Wikipedia without its languages; read as English, which brings English nearer to its published share.
    """
    high_quality = 506.7 * 0.598
    return _sources(
        fineweb2=506.7 - high_quality,
        fineweb2_languages=tuple(x for x in PHASE2[1:] if x not in FINEWEB2_HQ),
        fineweb2_hq=high_quality,
        megawika=0.0,
        code={"starcoder": 17.2},
        english={
            "dclm_dolmino": 40.0,
            "arxiv": 5.4,
            "dolmino_math": 4.3,
            "books": 3.9,
            "pes2o": 3.2,
            "tulu_flan": 3.1,
            "stackexchange": 3.0,
            "stackexchange_dolmino": 2.8,
            "wikipedia": 1.2,
        },
    )


# The English and code sources of the decay phases, as published for the one with 110 languages.
DECAY_ENGLISH_SOURCES = {
    "arxiv": 3.3,
    "prolong_textbooks": 3.1,
    "books": 2.2,
    "dclm": 2.0,
    "tulu_flan": 1.0,
    "dolmino_math": 0.5,
}
DECAY_CODE_SOURCES = {"prolong_code": 2.8, "starcoder": 0.5}


def decay_110() -> ConfigDict:
    """100B tokens over 109 languages and code, 13.2% English, 3.2% code."""
    return _sources(
        fineweb2=78.5,
        fineweb2_languages=PHASE2[1:],
        megawika=9.5,
        code=DECAY_CODE_SOURCES,
        english=DECAY_ENGLISH_SOURCES,
    )


def decay_english() -> ConfigDict:
    """100B tokens over the same languages, 17.9% English, 3.1% code.

    Derived: of this variant only the tokens per language are published. The sources are those of `decay_110`, English,
    code and the others scaled to their published totals.
    """
    return _scaled(PHASE2[1:], multilingual=79.0, english=17.9, code=3.1)


def decay_all() -> ConfigDict:
    """100B tokens over all 1,833 languages, 10.1% English, 5.5% code.

    Derived like `decay_english`. FineWeb2 has every language that no other source names; MegaWika's part is with it.
    """
    return _scaled((), multilingual=84.4, english=10.1, code=5.5)


def _scaled(
    languages: tuple[str, ...], multilingual: float, english: float, code: float
) -> ConfigDict:
    megawika = multilingual * 9.5 / (78.5 + 9.5) if languages else 0.0
    return _sources(
        fineweb2=multilingual - megawika,
        fineweb2_languages=languages,
        megawika=megawika,
        code=_to_total(DECAY_CODE_SOURCES, code),
        english=_to_total(DECAY_ENGLISH_SOURCES, english),
    )


def _to_total(sources: dict[str, float], total: float) -> dict[str, float]:
    return {name: share * total / sum(sources.values()) for name, share in sources.items()}


def _sources(
    *,
    fineweb2: float,
    fineweb2_languages: tuple[str, ...],
    fineweb2_hq: float = 0.0,
    megawika: float,
    code: dict[str, float],
    english: dict[str, float],
) -> ConfigDict:
    sources = {"fineweb2": {"share": fineweb2, "languages": fineweb2_languages}}
    if fineweb2_hq:
        sources["fineweb2_hq"] = {"share": fineweb2_hq, "languages": FINEWEB2_HQ}
    if megawika:
        sources["megawika"] = {"share": megawika, "languages": MEGAWIKA}
    for shares, language in ((code, CODE), (english, ENGLISH)):
        for name, share in shares.items():
            sources[name] = {"share": share, "languages": (language,)}
    return ConfigDict(sources)
