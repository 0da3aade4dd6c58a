"""tools/plot_mixture.py as users call it."""

import subprocess
import sys
from pathlib import Path

from tiny_corpus import write_corpus

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
from ml_collections import ConfigDict

def get_config(temperature="0.5"):
    return ConfigDict({
        "data": {"corpus": "", "row_length": 16, "temperature": float(temperature), "max_passes": 9.0,
                 "sources": {"web": {"share": 1.0, "languages": ()}}},
        "train": {"tokens": 1600, "batch_rows": 4, "microbatch_rows": 4, "batch_warmup_from_rows": 4,
                  "batch_warmup_tokens": 0},
    })
"""


def run(*arguments):
    command = [sys.executable, ROOT / "tools" / "plot_mixture.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_prints_compares_and_plots(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", {"eng": 400, "deu": 100, "fao": 25})
    (tmp_path / "config.py").write_text(CONFIG)
    (tmp_path / "counts.csv").write_text("language,tokens\neng,400\ndeu,200\nfao,100\nzul,5\n")
    result = run(
        *("--config", f"{tmp_path}/config.py", f"{tmp_path}/config.py:1.0"),
        *("--corpus", corpus, "--output", tmp_path / "shares.png"),
        *("--counts", f"{tmp_path}/counts.csv:tokens"),
    )
    assert result.returncode == 0, result.stderr
    # Roots of the sizes are 4 : 2 : 1, the counts too; the sizes themselves are 16 : 4 : 1.
    assert "eng (web)                                        400  57.143%    0.143" in result.stdout
    assert "eng (web)                                        400  76.190%    0.190" in result.stdout
    assert (
        "3 languages in common: total variation distance 0.000, correlation of log shares 1.000"
        in result.stdout
    )
    assert "total variation distance 0.190" in result.stdout
    assert (tmp_path / "shares.png").read_bytes().startswith(b"\x89PNG")


def test_help_and_errors(tmp_path):
    assert "example:" in run("--help").stdout
    result = run("--config", tmp_path / "none.py", "--corpus", tmp_path)
    assert (result.returncode, result.stderr) == (
        2,
        f"error: --config {tmp_path}/none.py: there is no file {tmp_path}/none.py\n",
    )
