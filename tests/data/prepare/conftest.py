"""A corpus of all kinds of documents, prepared once."""

import random
import shutil

import pytest
from prepared import OPTIONS, to_jsonl

from mmbert_jax.data import cldr_text


@pytest.fixture(scope="session")
def records():
    """(language, text): short documents, some of many rows' length, doubles, empty ones; languages of all sizes."""
    draw = random.Random(0)
    found = []
    for language, count in {"de": 120, "ka": 40, "sw": 12, "ja": 3}.items():
        texts = list(cldr_text.documents(language, count))
        found += [(language, text) for text in texts]
        found.append((language, "\n".join(texts[:8])))
        found.append((language, texts[0]))
    found += [("de", ""), ("ka", " \n\t"), ("aa", "one document")]
    draw.shuffle(found)
    return found


@pytest.fixture(scope="session")
def model(trained, tmp_path_factory):
    """A folder with the sentencepiece model alone."""
    folder = tmp_path_factory.mktemp("model")
    shutil.copy(trained / "tokenizer.model", folder)
    return folder


@pytest.fixture(scope="session")
def prepare(run_tool, model):
    """Runs the tool with the given options before its defaults."""

    def run(output, *options, tokenizer=model, workers=1):
        return run_tool(
            *("prepare_corpus", "--tokenizer", tokenizer, "--output", output),
            *("--workers", workers, "--source", "test", *options),
        )

    return run


@pytest.fixture(scope="session")
def corpus(tmp_path_factory, records, prepare):
    """(folder, input file): two row lengths, a quarter held out, several shards."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "text.jsonl").write_bytes(to_jsonl(records))
    done = prepare(folder / "corpus", "--input", folder / "text.jsonl", *OPTIONS)
    assert done.returncode == 0, done.stderr
    return folder / "corpus", folder / "text.jsonl"
