"""New pieces: texts without the new script keep their ids, new ones get shorter and come back; rows are means."""

import gzip
import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from other_tokenizers import sentences, write
from programs import call, module
from shared_data import shared_file
from small_tokenizer import write_small_tokenizer
from tiny import tiny_config

from mmbert_jax.checkpoint import restore_params, save_params
from mmbert_jax.data.tokenizer import load_tokenizer
from mmbert_jax.data.tokenizer_identity import describe_tokenizer
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.model.heads import init_params
from mmbert_jax.surgery.extend import extend_params
from mmbert_jax.surgery.trimmed_files import NEVER

WORDS = "ភាសា ខ្មែរ ជា ភាសា ដែល មាន អក្សរ របស់ ខ្លួន និង ពាក្យ ជាច្រើន".split()
OLD = sentences(2500)
# A text to keep that names the new language in its own script.
NAMED = "the language ខ្មែរ is not here"


def new_texts(count: int = 60) -> list[str]:
    rng = np.random.default_rng(1)
    return [" ".join(rng.choice(WORDS, 20)) + " and 12%។" for _ in range(count)]


def write_texts(path, language, texts):
    lines = (json.dumps({"text": text, "language": language}) + "\n" for text in texts)
    path.write_text("".join(lines))


def write_run(folder, tokenizer):
    """A checkpoint of a tiny model with a tokeniser."""
    config = tiny_config(model__vocab_size=tokenizer.vocab_size)
    params = init_params(ModelConfig.from_config(config.model), 0)
    rng = np.random.default_rng(0)  # initialised biases are all zero
    params["head"]["bias"] = rng.normal(size=tokenizer.vocab_size).astype(np.float32)
    meta = {"phase": "tiny", "step": 3, "tokens": 5, "config": config.to_dict()}
    save_params(folder, params, meta | {"tokenizer": describe_tokenizer(tokenizer)})


def extend(folder, files, monkeypatch, more=()):
    words = f"--checkpoint {folder}/run --tokenizer {files} --input {folder}/new.jsonl".split()
    words += f"--keep_text {folder}/old.jsonl --output {folder}/extended".split()
    program = module("tools/extend_vocabulary")
    return call(program.main, ["extend_vocabulary", *words, *more], monkeypatch)


@pytest.fixture(scope="module", params=["gemma", "byte_level"])
def extended(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "gemma":
        files = write_small_tokenizer(folder / "tokenizer")
    else:
        files = write("byte_level", folder / "tokenizer")
    write_run(folder / "run", load_tokenizer(files))
    write_texts(folder / "new.jsonl", "khm", new_texts())
    # In byte-level BPE that name alone would cost all pieces: every one is built from the script's first bytes.
    kept = [*OLD, NAMED] if request.param == "gemma" else OLD
    write_texts(folder / "old.jsonl", "eng", kept)
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert extend(folder, files, monkeypatch, ["--pieces", "60"]) == 0
    before = tokenizers.Tokenizer.from_file(str(files / "tokenizer.json"))
    after = tokenizers.Tokenizer.from_file(
        str(folder / "extended" / "tokenizer" / "tokenizer.json")
    )
    return folder, before, after, json.loads((folder / "extended" / "extend.json").read_text())


def ids(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


def test_kept_texts_have_the_ids_that_they_had(extended):
    _, before, after, report = extended
    kept = OLD[:200] + [NAMED] * (report["dropped"] > 0)
    assert all(ids(before, text) == ids(after, text) for text in kept)
    assert (report["dropped"] > 0) == ("▁" in before.get_vocab())
    cost = report["languages"]["eng"]
    assert cost["same"] == cost["documents"] >= len(OLD)


def test_new_texts_get_shorter_and_come_back(extended):
    _, before, after, report = extended
    assert 0 < report["pieces"] <= 60
    for text in new_texts(5):
        assert len(ids(after, text)) < 0.7 * len(ids(before, text))
        assert after.decode(ids(after, text)) == before.decode(ids(before, text)) == text


def test_texts_without_the_script_have_the_ids_that_they_had(extended):
    _, before, after, report = extended
    affected = [(ord(a), ord(b)) for a, b in report["affected"]]

    @settings(max_examples=300, deadline=None)
    @given(st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("the កខ្ญไกท຀a  "))))
    def holds(text):
        kept = "".join(c for c in text if not any(a <= ord(c) <= b for a, b in affected))
        assert ids(before, kept) == ids(after, kept)
        assert after.decode(ids(after, text)) == before.decode(ids(before, text))

    holds()


def test_rows_are_the_means_of_what_spelled_them(extended):
    """By `tokenizers`: the old ids of each new piece's text."""
    folder, before, after, report = extended
    old, _ = restore_params(folder / "run")
    new, meta = restore_params(folder / "extended")
    first, last = report["vocabulary"]["before"], report["vocabulary"]["after"]
    size = report["rows"]["after"]
    assert size % 64 == 0
    assert meta["config"]["model"]["vocab_size"] == size == len(new["embeddings"]["tokens"])
    assert meta["extend"]["step"] == meta["history"][-1]["step"] == 3
    compared = 0
    for name, part in (("embeddings", "tokens"), ("head", "bias")):
        was, now = old[name][part], new[name][part]
        np.testing.assert_array_equal(now[:first], was)
        assert np.all(now[last:] == (NEVER if part == "bias" else 0))
        for i in range(first, last):
            text = after.decode([i])
            spelled = ids(before, text)
            if "\ufffd" not in text and before.decode(spelled) == text:
                if after.id_to_token(i).startswith("▁"):
                    spelled = ids(before, " " + text.lstrip())
                expected = was[spelled].astype(np.float64).mean(axis=0)
                np.testing.assert_allclose(now[i], expected, atol=1e-6)
                compared += 1
    assert compared > 20


def test_a_language_in_a_known_script_gets_no_pieces(tmp_path, monkeypatch, capsys):
    files = write_small_tokenizer(tmp_path / "tokenizer")
    write_run(tmp_path / "run", load_tokenizer(files))
    write_texts(tmp_path / "new.jsonl", "fin", sentences(30, seed=5))
    write_texts(tmp_path / "old.jsonl", "eng", sentences(30))
    assert extend(tmp_path, files, monkeypatch) == 0
    assert "every text keeps its tokens" in capsys.readouterr().out
    record = restore_params(tmp_path / "extended")[1]["tokenizer"]
    assert record["content"] == describe_tokenizer(load_tokenizer(files))["content"]


def test_what_cannot_be_extended_is_named(tmp_path, monkeypatch, capsys):
    files = write("unigram", tmp_path / "tokenizer")
    write_run(tmp_path / "run", load_tokenizer(files))
    write_texts(tmp_path / "new.jsonl", "khm", new_texts(20))
    write_texts(tmp_path / "old.jsonl", "eng", OLD[:30])
    assert extend(tmp_path, files, monkeypatch) == 2
    assert "cannot be extended: it is a Unigram, no BPE" in capsys.readouterr().err
    write_texts(tmp_path / "old.jsonl", "khm", OLD[:30])
    assert extend(tmp_path, files, monkeypatch) == 2
    assert "'khm' is a language of --input and of --keep_text" in capsys.readouterr().err
    assert not (tmp_path / "extended").exists()


def test_without_new_tokens_nothing_changes():
    params = {"embeddings": {"tokens": np.ones((4, 2), np.float32)}}
    larger = extend_params(params, 4, [], 4)
    np.testing.assert_array_equal(larger["embeddings"]["tokens"], params["embeddings"]["tokens"])


@pytest.mark.slow
def test_gemmas_own_tokeniser_is_extended(tmp_path, monkeypatch):
    """Help pages of 28 languages keep their ids; `transformers` loads the files, and Khmer pages come back from it."""
    transformers = pytest.importorskip("transformers")
    (tmp_path / "tokenizer").mkdir()
    packed = shared_file("gemma2_tokenizer.json.gz").read_bytes()
    (tmp_path / "tokenizer" / "tokenizer.json").write_bytes(gzip.decompress(packed))
    pages: dict[str, list[str]] = {}
    with gzip.open(shared_file("help.jsonl.gz"), "rt", encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            of_language = pages.setdefault(record["language"], [])
            if len(of_language) < (30 if record["language"] == "khm" else 2):
                of_language.append(record["text"][:3000])
    khmer = pages.pop("khm")
    write_texts(tmp_path / "new.jsonl", "khm", khmer)
    kept = [text for of_language in pages.values() for text in of_language]
    write_texts(tmp_path / "old.jsonl", "others", kept)
    write_run(tmp_path / "run", load_tokenizer(tmp_path / "tokenizer"))
    assert extend(tmp_path, tmp_path / "tokenizer", monkeypatch, ["--pieces", "200"]) == 0
    files = tmp_path / "extended" / "tokenizer"
    after = transformers.AutoTokenizer.from_pretrained(files)
    before = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer" / "tokenizer.json"))
    before.encode_special_tokens = True
    for text in kept:
        assert after(text, add_special_tokens=False).input_ids == ids(before, text)
    found = [after(text, add_special_tokens=False).input_ids for text in khmer]
    assert [after.decode(x) for x in found] == khmer
    assert sum(map(len, found)) < 0.8 * sum(len(ids(before, text)) for text in khmer)
