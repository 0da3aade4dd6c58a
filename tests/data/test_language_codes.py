"""Spellings of languages: against the tables of ISO 639 and CLDR, FineWeb2's codes and those of the published counts.

The tables are pycountry's of ISO 639 and Babel's of CLDR.
"""

import csv
import gzip
import json

import pycountry
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shared_data import shared_file

from mmbert_jax.data.language_codes import is_known, parse, read_as, unknown
from mmbert_jax.data.mixture import build_mixture
from mmbert_jax.recipe import cldr, languages

RECIPE = {*languages.ALL, languages.CODE}


# What a text may say, and the recipe's name for it. ISO 639-1, 639-2/B, 639-3, BCP 47, FineWeb2's, withdrawn ones.
@pytest.mark.parametrize(
    ("spelled", "name"),
    [
        ("en", "eng"),
        (" ENG", "eng"),
        ("eng_Latn", "eng"),
        ("en-US", "eng"),
        ("de", "deu"),
        ("ger", "deu"),
        ("fre", "fra"),
        ("pt-BR", "por"),
        ("iw", "heb"),
        ("in", "ind"),
        ("azj-Latn", "azj"),
        ("azj_Cyrl", "azj"),
        # Macrolanguages and the member that is meant by them.
        ("zh", "cmn"),
        ("zho_Hans", "cmn"),
        ("zh-Hant-TW", "cmn"),
        ("chi", "cmn"),
        ("ar", "arb"),
        ("ara", "arb"),
        ("sw", "swh"),
        ("swa", "swh"),
        ("ms", "zsm"),
        ("msa", "zsm"),
        ("et", "ekk"),
        ("est", "ekk"),
        ("lv", "lvs"),
        ("no", "nob"),
        ("nb", "nob"),
        ("sq", "als"),
        ("alb", "als"),
        ("az", "azj"),
        ("uz", "uzn"),
        ("mn", "khk"),
        ("ps", "pbt"),
        ("fa", "fas"),
        ("pes", "fas"),
        ("mg", "plt"),
        ("ne", "npi"),
        ("or", "ory"),
        ("ku", "kmr"),
        ("yi", "ydd"),
        ("ak", "twi"),
        ("om", "gaz"),
        ("orm", "gaz"),
        # Members that are languages of their own, and what begins with another language.
        ("nn", "nno"),
        ("yue", "yue"),
        ("zh-yue", "yue"),
        ("arz", "arz"),
        ("azb_Arab", "azb"),
        ("ckb", "ckb"),
        ("swc_Latn", "swc"),
        ("fat_Latn", "fat"),
        ("daf_Latn", "daf"),
        ("kzj", "kzj"),
        ("code", "code"),
        ("tok", "tok"),
        ("eml_Latn", "eml"),
    ],
)
def test_what_a_text_says_and_the_recipe_s_name(spelled, name):
    assert read_as([spelled], RECIPE) == {spelled: name}
    # The other way round, where the config says what the text says here.
    assert read_as([name], {spelled}) == {name: spelled}


@pytest.mark.parametrize(
    ("languages_of_text", "named", "expected"),
    [
        # Its own exact name wins, over the same code without script and over the macrolanguage.
        (["zho", "cmn"], {"zho", "cmn"}, {"zho": "zho", "cmn": "cmn"}),
        (["zho", "cmn", "zh"], {"cmn"}, {"zho": "cmn", "cmn": "cmn", "zh": "cmn"}),
        (["en", "eng", "eng_Latn"], {"en", "eng"}, {"en": "en", "eng": "eng", "eng_Latn": "eng"}),
        (
            ["srp_Cyrl", "srp_Latn"],
            {"srp", "srp_Latn"},
            {"srp_Cyrl": "srp", "srp_Latn": "srp_Latn"},
        ),
        # A name with a script or a territory does not mean a text with another, but one that does not say.
        (["srp_Cyrl", "srp", "sr-Latn"], {"srp_Latn"}, {"srp": "srp_Latn", "sr-Latn": "srp_Latn"}),
        (["srp"], {"srp_Latn", "srp_Cyrl"}, {"srp": "srp_Cyrl"}),
        (["zh"], {"zho_Hant", "zho_Hans"}, {"zh": "zho_Hans"}),
        (["eng"], {"eng_Latn"}, {"eng": "eng_Latn"}),
        (["cmn_Hani"], {"zh-Hant"}, {"cmn_Hani": "zh-Hant"}),
        (["cmn_Hans"], {"zh-Hant"}, {}),
        (["kor_Hang"], {"ko-Kore"}, {"kor_Hang": "ko-Kore"}),
        (["pbt_Arab", "pbt"], {"pbt_Arab"}, {"pbt_Arab": "pbt_Arab", "pbt": "pbt_Arab"}),
        (["pt-PT", "por"], {"pt-BR"}, {"por": "pt-BR"}),
        (["pt-PT"], {"pt-BR", "pt"}, {"pt-PT": "pt"}),
        # A macrolanguage means one member; members do not mean each other, though they stand for the same.
        (["arz", "arb"], {"ar"}, {"arb": "ar"}),
        (["yue", "wuu"], {"zho"}, {}),
        (["pbu", "pbt"], {"pus"}, {"pbu": "pus", "pbt": "pus"}),
        (["pbu"], {"pbt"}, {}),
        (["swc"], {"swh", "sw"}, {}),
        (["nno"], {"nor"}, {}),
        # Labels that are no codes mean themselves.
        (["legal", "Legal", "a text"], {"legal"}, {"legal": "legal", "Legal": "legal"}),
    ],
)
def test_what_names_mean(languages_of_text, named, expected):
    assert read_as(languages_of_text, named) == expected


@pytest.mark.parametrize(
    "code", ["", "xyz", "l00", "legal", "Latn", "my text", "zz", "eng-", "grman"]
)
def test_what_is_no_code(code):
    assert not is_known(code)
    assert unknown([code, "de"]) == [code]
    assert unknown([code], [code]) == []


@given(
    st.lists(st.sampled_from("en x i zh min de Latn 419 US a1b2c oxendict 1 u - é \0".split(" ")))
    .map("-".join)
    .filter(len)
    | st.text(max_size=12)
)
def test_any_string_is_a_name(code):
    """What a corpus holds as a language may be anything: it is a code, or it means itself."""
    assert isinstance(is_known(code), bool)
    assert read_as([code], {code, "eng"}) == {code: code}


def test_every_language_of_iso_639_is_found_by_each_of_its_codes():
    """`alpha_2`, `bibliographic` and `alpha_3` of one language mean each other, and no other language."""
    two_letters = [x for x in pycountry.languages if hasattr(x, "alpha_2")]
    assert len(two_letters) > 180
    for language in two_letters:
        for code in (language.alpha_2, getattr(language, "bibliographic", language.alpha_2)):
            # Serbo-Croatian and Twi, Tagalog and Filipino are one to CLDR.
            if language.alpha_3 not in ("hbs", "tgl"):
                assert parse(code).alpha3 == language.alpha_3, code
        assert is_known(language.alpha_3)


def test_cldr_s_languages_are_known():
    """Babel's locales are CLDR's; its codes are those of the demo's text."""
    babel = pytest.importorskip("babel.localedata")
    codes = {code.partition("_")[0] for code in babel.locale_identifiers()} - {"root"}
    assert len(codes) > 200
    assert unknown(sorted(codes)) == []
    assert unknown([x for group in cldr.GROUPS.values() for x in group]) == []


def rows_of(name):
    with shared_file(name).open() as file:
        return list(csv.DictReader(file))


def test_fineweb2_s_codes_and_the_published_ones_resolve():
    """All 1,913 subsets: the recipe's language of that code, but for 13 languages that the counts do not have."""
    subsets = [row["subset"] for row in rows_of("fineweb2_languages.csv")]
    published = [row["language"] for row in rows_of("mmbert_tokens_per_language.csv")]
    assert unknown(subsets) == unknown(published) == unknown(languages.ALL) == []
    found = read_as(subsets, RECIPE)
    assert all(name == subset.partition("_")[0] for subset, name in found.items())
    unread = {subset.partition("_")[0] for subset in subsets} - set(found.values())
    assert unread == {*"bbo gid hau lok mwf nan nmh nvm nza oku tbw und yat yaz".split()}
    assert read_as(published, RECIPE) == {name: name for name in published}
    # The other way round: a config of FineWeb2's names over a corpus with the published codes.
    assert read_as(published, set(subsets)).keys() == set(published) & {
        x.partition("_")[0] for x in subsets
    }


@pytest.mark.parametrize(
    ("name", "unread"),
    [
        ("help", set()),
        # Languages of the declarations of human rights that are members of macrolanguages, or that nobody counts.
        ("udhr", None),
    ],
)
def test_real_texts_are_read(name, unread):
    with gzip.open(shared_file(f"{name}.jsonl.gz"), "rt", encoding="utf-8") as file:
        codes = {json.loads(line)["language"] for line in file}
    assert unknown(codes) == []
    found = read_as(codes, RECIPE)
    if unread is not None:
        assert codes - found.keys() == unread
    # What the exact names miss, and spelling or a macrolanguage finds.
    expected = {
        "help": {"orm": "gaz", "zho": "cmn"},
        "udhr": {"que": "quz", "pes": "fas", "src": "srd", "tgl": "fil"},
    }
    assert {code: name for code, name in found.items() if code != name} == expected[name]


def test_a_config_may_spell_languages_in_any_way():
    """The mixture is the same, whichever list of codes the config and the corpus follow."""

    def mixture(config_codes, corpus_codes):
        entries, first = {}, 0
        for code, rows in sorted(zip(corpus_codes, (300, 200, 100), strict=True)):
            entries[code] = {"first_row": first, "rows": rows, "tokens": rows * 10}
            first += rows
        split = {"train": {"languages": entries}}
        config = {
            "row_length": 10,
            "temperature": 0.5,
            "max_passes": 100.0,
            "sources": {"web": {"share": 1.0, "languages": config_codes}},
        }
        built = build_mixture(config, 1000, [{"source": "text", "row_lengths": {"10": split}}])
        assert built.notes == ()
        return {entry.rows: entry.share for entry in built.entries}

    spellings = [("deu", "cmn", "ekk"), ("de", "zh", "et"), ("ger", "zho", "est")]
    spellings.append(("deu_Latn", "cmn_Hani", "ekk_Latn"))
    expected = mixture(spellings[0], spellings[0])
    for config_codes in spellings:
        for corpus_codes in spellings:
            assert mixture(config_codes, corpus_codes) == expected
