"""The recipe's corpora: every source of every phase is described, and docs/data.md says what the recipe does."""

import csv
import importlib
from pathlib import Path

import pytest
from shared_data import shared_file

from mmbert_jax.data.language_codes import read_as, unknown
from mmbert_jax.recipe import languages, sources, tables
from mmbert_jax.recipe.corpora import CORPORA, FINEWEB2_HQ
from mmbert_jax.recipe.settings import PHASES

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "data.md"


def test_every_source_of_a_config_is_described():
    used = set()
    for phase in PHASES:
        config = importlib.import_module(f"configs.{phase}").get_config()
        for name, entry in config.data.sources.items():
            assert name in CORPORA, phase
            assert unknown(entry.languages) == []
            stated = CORPORA[name].language
            if stated != "folder":
                assert set(entry.languages) == {stated}, name
        used |= set(config.data.sources.keys())
    assert used == CORPORA.keys()


@pytest.mark.parametrize("table", ["shares_table", "corpora_table", "tokenised_table"])
def test_the_document_has_the_recipe_s_table(table):
    made = getattr(tables, table)()
    assert len(made.splitlines()) > 4
    assert made in DOCUMENT.read_text(), "run python -m mmbert_jax.recipe.tables"


def test_the_document_s_spellings_are_those_of_the_code():
    text = DOCUMENT.read_text()
    means = {
        "eng": "en ENG eng_Latn en-US",
        "cmn": "zh zho chi zh-Hant-TW cmn_Hani",
        "arb": "ar ara",
    }
    means |= {"deu": "ger", "fra": "fre", "heb": "iw"}
    for name, spelled in means.items():
        for code in spelled.split():
            assert f"`{code}`" in text
            assert read_as([code], set(languages.ALL)) == {code: name}


def test_fineweb2_hq_stands_for_fineweb2_in_phase_2():
    """Its languages are FineWeb2's folders, no language comes from both, and its part is the published one."""
    with shared_file("fineweb2_languages.csv").open() as file:
        assert set(FINEWEB2_HQ) <= {row["language"] for row in csv.DictReader(file)}
    assert len(set(FINEWEB2_HQ)) == 20
    phase = sources.phase2()
    both = [*phase.fineweb2.languages, *phase.fineweb2_hq.languages]
    assert sorted(both) == sorted(languages.PHASE2[1:])
    assert phase.fineweb2.share + phase.fineweb2_hq.share == pytest.approx(506.7)
    with shared_file("mmbert_tokens_per_language.csv").open() as file:
        tokens = {row["language"]: int(row["ext"]) for row in csv.DictReader(file)}
    part = sum(tokens[x] for x in FINEWEB2_HQ) / sum(tokens[x] for x in languages.PHASE2[1:])
    assert phase.fineweb2_hq.share / 506.7 == pytest.approx(part, abs=0.001)
