"""Masked examples from a corpus that the tools made: real words of several scripts, read back as they were."""

import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
import tokenizers

from mmbert_jax.data import cldr_text
from mmbert_jax.report.examples import masked_examples

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = ("de", "el", "en", "ka", "ru")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    with (folder / "text.jsonl").open("w") as file:
        for language in LANGUAGES:
            for text in cldr_text.documents(language, 60):
                file.write(json.dumps({"language": language, "text": text}) + "\n")
    text = ("--input", "text.jsonl")
    for tool, *options in (
        ("train_tokenizer", *text, "--vocab_size", "3000", "--output", "tokenizer"),
        (
            *("prepare_corpus", *text, "--tokenizer", "tokenizer", "--output", "corpus"),
            *("--row_length", "64", "--held_out", "0.3", "--workers", "1"),
        ),
    ):
        command = [sys.executable, str(ROOT / "tools" / f"{tool}.py"), *options]
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            check=False,
        )
        assert done.returncode == 0, done.stderr
    return folder / "corpus"


@pytest.fixture(scope="module")
def texts():
    return {language: list(cldr_text.documents(language, 60)) for language in LANGUAGES}


def test_examples_are_parts_of_documents_with_one_word_hidden(corpus, texts):
    examples = masked_examples(corpus, [("en", "de"), ("ru", "el"), ("ka", "zz")])
    # German is written in the script of English, and there is no language zz.
    assert [example.language for example in examples] == ["en", "ru", "el", "ka"]
    tokenizer = tokenizers.Tokenizer.from_file(str(corpus / "tokenizer" / "tokenizer.json"))
    for example in examples:
        assert example.text.count("<mask>") == 1
        whole = example.text.replace("<mask>", example.hidden)
        assert any(whole in text for text in texts[example.language])
        assert all(unicodedata.category(c)[0] in "LM" for c in example.hidden.strip())
        ids = tokenizer.encode(example.text, add_special_tokens=False).ids
        hidden = tokenizer.encode(whole, add_special_tokens=False).ids
        assert len(ids) == len(hidden) <= 24
        assert [a for a, b in zip(ids, hidden, strict=True) if a != b] == [4]


def test_no_more_examples_than_asked_for(corpus):
    groups = [("en", "ru", "el", "ka")]
    for count in (1, 3):
        assert len(masked_examples(corpus, groups, per_group=count)) == count
    assert masked_examples(corpus, []) == []
