"""tools/mixture_report.py as users call it."""

import json
from functools import partial

import pytest
from data.tiny_corpus import write_corpus
from programs import run_tool

CONFIG = """
from ml_collections import ConfigDict

def get_config(temperature="0.5"):
    return ConfigDict({
        "data": {"corpus": "", "row_length": 16, "temperature": float(temperature), "max_passes": 9.0,
                 "sources": SOURCES},
        "train": {"tokens": 1600, "batch_rows": 4, "microbatch_rows": 4, "batch_warmup_from_rows": 4,
                  "batch_warmup_tokens": 0},
    })
"""


COUNTS = "language,tokens\nen,400\ndeu_Latn,200\nfo,100\nzul,5\n"


@pytest.fixture
def run(monkeypatch, capsys):
    """The program's exit status, and what it printed."""
    return partial(run_tool, "mixture_report", monkeypatch, capsys)


def config_file(folder, sources):
    (folder / "config.py").write_text(CONFIG.replace("SOURCES", repr(sources)))
    return f"{folder}/config.py"


WEB = {"web": {"share": 1.0, "languages": ()}}


def test_prints_compares_and_plots(tmp_path, run):
    corpus = write_corpus(tmp_path / "corpus", {"eng": 400, "deu": 100, "fao": 25})
    (tmp_path / "counts.csv").write_text(COUNTS)
    config = config_file(tmp_path, WEB)
    status, said = run(
        *("--config", config, f"{config}:1.0", "--corpus", corpus, "--output", tmp_path / "out"),
        *("--counts", f"{tmp_path}/counts.csv:tokens"),
    )
    assert status == 0, said
    # Roots of the sizes are 4 : 2 : 1, the counts too; the sizes themselves are 16 : 4 : 1. 100 rows of 14 tokens.
    lines = [line.split() for line in said.splitlines()]
    assert ["eng", "(web)", "5.6k", "800", "57.143%", "0.143"] in lines
    assert ["eng", "(web)", "5.6k", "1.1k", "76.190%", "0.190"] in lines
    assert ["web", "3", "7.3k", "1.4k", "100.000%", "0.190"] in lines
    assert (
        "3 languages in common: total variation distance 0.000, correlation of log shares 1.000"
        in said
    )
    assert "total variation distance 0.190" in said
    assert (tmp_path / "out" / "mixture.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out" / "mixture.txt").read_text().strip() in said
    found = json.loads((tmp_path / "out" / "mixture.json").read_text())
    of_web = found[config]["sources"]["web"]
    assert of_web["read"] == pytest.approx(1400)
    assert of_web["languages"] == 3
    fao = found[config]["languages"]["fao"]
    assert (fao["available"], fao["sources"]) == (350, ["web"])
    assert (fao["share"], fao["passes"]) == pytest.approx((1 / 7, 100 / 7 / 25))
    assert found[f"{config}:1.0"]["published"]["total_variation"] == pytest.approx(0.190, abs=5e-4)


def test_what_it_warns_of(tmp_path, run):
    """A source without a corpus, a language without text, many passes, and what no source reads."""
    corpora = tmp_path / "corpora"
    write_corpus(corpora / "web", {"deu": 100, "fao": 8, "zul": 7, "x11": 3})
    config = config_file(
        tmp_path,
        {
            "web": {"share": 1.0, "languages": ("de", "fo", "nld")},
            "books": {"share": 1.0, "languages": ("en",)},
        },
    )
    status, said = run("--config", f"{config}:0.0", "--corpus", corpora)
    assert status == 0, said
    warnings = [line for line in said.splitlines() if line.startswith("warning: ")]
    assert warnings == [
        f"warning: data source books: no corpus in {corpora}/books",
        "warning: 1 languages are read more than 5 times: fao 6.2",
        "warning: data source web: 1 of its languages are not in the corpus (nld)",
    ]
    assert "2 of its 4 languages are named by no source" in said
    assert "('zul' 98, 'x11' 42)" in said
    assert "no code of ISO 639 or BCP 47" in said
    (corpora / "web" / "manifest.json").unlink()
    status, said = run("--config", config, "--corpus", corpora)
    assert status == 2
    assert "manifest.json" in said


def test_sizes_stand_for_a_corpus_that_is_not_there_yet(tmp_path, run):
    """The shares and passes of a corpus with so many tokens; scripts of a language together, units times a factor."""
    (tmp_path / "sizes.csv").write_text(
        "language,words\neng,3200\neng,3200\ndeu,1600\nfao,-\nzul,0\n"
    )
    (tmp_path / "more.csv").write_text("language,tokens\nfao,400\n")
    config = config_file(tmp_path, WEB)
    sizes = (f"{tmp_path}/sizes.csv:words*1.0", f"{tmp_path}/more.csv:tokens")
    status, said = run("--config", config, "--sizes", *sizes)
    assert status == 0, said
    corpus = write_corpus(tmp_path / "corpus", {"eng": 400, "deu": 100, "fao": 25})
    _, over_corpus = run("--config", config, "--corpus", corpus)
    by_language = [line.split() for line in over_corpus.splitlines() if "(web)" in line]
    # Share and passes; rows of a corpus that is there are not quite full.
    assert [line.split()[-2:] for line in said.splitlines() if "(web)" in line] == [
        line[-2:] for line in by_language
    ]
    assert len(by_language) == 3


def test_errors(tmp_path, run):
    config = config_file(tmp_path, WEB)
    sizes = tmp_path / "sizes.csv"
    sizes.write_text("language,words\neng,3200\nxyz,many\n")
    none = tmp_path / "none.py"
    for words, expected in (
        (("--config", none, "--corpus", tmp_path), f"--config {none}: there is no file {none}"),
        (
            ("--config", config, "--sizes", f"{sizes}:bytes"),
            f"--sizes {sizes}:bytes: {sizes} has no column 'bytes'",
        ),
        (
            ("--config", config, "--sizes", f"{sizes}:words"),
            f"--sizes {sizes}:words: could not convert string to float: 'many'",
        ),
        (
            ("--config", config, "--sizes", f"{sizes}:words*x"),
            f"--sizes {sizes}:words*x: 'x' is no number above 0",
        ),
    ):
        assert run(*words) == (2, f"error: {expected}\n")
