"""A tokeniser trained once for all tests of this folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from mmbert_jax.data import cldr_text

# A machine that is busy with something else is no failure.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

ROOT = Path(__file__).resolve().parents[2]
# Fifteen scripts.
LANGUAGES = (
    "am",
    "ar",
    "bn",
    "de",
    "el",
    "en",
    "fr",
    "he",
    "hi",
    "ja",
    "ka",
    "km",
    "ko",
    "ru",
    "ta",
    "th",
    "vi",
    "zh",
)


@pytest.fixture(scope="session")
def run_tool():
    """Runs tools/NAME.py with arguments, as a user would; keywords are added to the environment."""

    def run(name: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, arguments)],
            capture_output=True,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def cldr_file(tmp_path_factory) -> Path:
    """JSONL of 15 documents in each of LANGUAGES."""
    path = tmp_path_factory.mktemp("text") / "cldr.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for language in LANGUAGES:
            for text in cldr_text.documents(language, 15):
                record = {"language": language, "text": text}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory, run_tool, cldr_file) -> Path:
    """The folder that tools/train_tokenizer.py wrote: tokenizer.model, and what was exported from it."""
    folder = tmp_path_factory.mktemp("trained") / "tokenizer"
    done = run_tool(
        "train_tokenizer", "--input", cldr_file, "--vocab_size", 2000, "--output", folder
    )
    assert done.returncode == 0, done.stderr
    return folder
