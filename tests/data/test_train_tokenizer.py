"""tools/train_tokenizer.py: a tokeniser of Gemma's kind, a fair and repeatable sample, and refusals."""

import gzip
import json
from collections import defaultdict

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from mmbert_jax.data.sampling import SENTENCE_CHARACTERS, sample_sentences, sentences
from mmbert_jax.data.sources import Document

UNSEEN = "ᚠᚢᚦ 𓀀𓁐 ߒߞߏ ᜊᜌ 𞤀𞤣 ꦲꦏ ⵜⴰⵎ 🜁🜂"  # scripts that CLDR's eighteen languages do not use


@pytest.fixture(scope="module")
def model(trained):
    return sentencepiece.SentencePieceProcessor(model_file=str(trained / "tokenizer.model"))


# --- what was trained ---


def test_special_ids_are_gemmas(trained, model):
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    assert [model.id_to_piece(i) for i in range(5)] == specials
    assert [model.pad_id(), model.eos_id(), model.bos_id(), model.unk_id()] == [0, 1, 2, 3]
    exported = tokenizers.Tokenizer.from_file(str(trained / "tokenizer.json"))
    assert [exported.id_to_token(i) for i in range(5)] == specials
    config = json.loads((trained / "tokenizer_config.json").read_text())
    assert config["mask_token"] == "<mask>"
    assert config["model_max_length"] == 8192


def test_bytes_follow_the_special_tokens(model):
    assert [model.id_to_piece(5 + i) for i in range(256)] == [f"<0x{i:02X}>" for i in range(256)]
    assert all(model.is_byte(5 + i) for i in range(256))
    assert model.get_piece_size() == 2000


def test_digits_stand_alone(model):
    pieces = [model.id_to_piece(i) for i in range(261, 2000)]
    assert not [p for p in pieces if len(p) > 1 and any(c in "0123456789" for c in p)]


def test_unseen_scripts_become_bytes_and_come_back(model):
    ids = model.encode(UNSEEN)
    assert 3 not in ids
    assert sum(model.is_byte(i) for i in ids) > len(UNSEEN)
    assert model.decode(ids) == UNSEEN


@given(text=st.text(max_size=60))
def test_any_text_comes_back(model, text):
    ids = model.encode(text)
    assert 3 not in ids
    # U+2581 is how sentencepiece writes a space.
    assert model.decode(ids) == text.replace("▁", " ")


def test_more_than_letters_was_learnt(model, cldr_file):
    for language in ("de", "en", "ta", "vi"):
        texts = [
            r["text"]
            for r in map(json.loads, cldr_file.read_text().splitlines())
            if r["language"] == language
        ]
        letters = sum(len(text) for text in texts)
        assert sum(map(len, model.encode(texts))) < 0.8 * letters


def test_the_same_text_gives_the_same_tokeniser(tmp_path, run_tool, cldr_file, trained):
    done = run_tool(
        *("train_tokenizer", "--input", cldr_file, "--vocab_size", 2000),
        *("--output", tmp_path / "again"),
    )
    assert done.returncode == 0, done.stderr
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (trained / name).read_bytes()


def test_other_fields_and_no_languages(tmp_path, run_tool, cldr_file):
    texts = [json.loads(line)["text"] for line in cldr_file.read_text().splitlines()]
    file = tmp_path / "bodies.jsonl.gz"
    file.write_bytes(gzip.compress("\n".join(json.dumps({"body": t}) for t in texts).encode()))
    (tmp_path / "more.txt").write_text("text of no language, with Zürich in it")
    done = run_tool(
        *("train_tokenizer", "--input", file, tmp_path / "more.txt", "--text_field", "body"),
        *("--vocab_size", 1500, "--character_coverage", 1, "--max_length", 512),
        *("--output", tmp_path / "made" / "tokenizer"),
    )
    assert done.returncode == 0, done.stderr
    assert "1500 pieces from 271 sentences, 1 languages" in done.stdout
    config = json.loads((tmp_path / "made" / "tokenizer" / "tokenizer_config.json").read_text())
    assert config["model_max_length"] == 512


# --- the sample ---


def documents_of(counts: dict[str, int]):
    documents = [
        Document(0, 0, language, f"{language} {i}" + "\n" * (i % 3) + f"more {i}", b"")
        for language, count in counts.items()
        for i in range(count)
    ]
    documents.sort(key=lambda d: d.text[::-1])  # languages mixed
    return [d._replace(number=i) for i, d in enumerate(documents, 1)]


@settings(max_examples=40)
@given(
    counts=st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 60), min_size=1),
    limit=st.integers(10, 200),
)
def test_small_languages_are_taken_whole_and_the_others_evenly(counts, limit):
    documents = documents_of(counts)
    available = defaultdict(list)
    for document in documents:
        available[document.language] += [x for x in document.text.split("\n") if x.strip()]
    # The largest cap that respects the limit, tried one after the other.
    cap = next(
        c
        for c in range(200, 0, -1)
        if c == 1 or sum(min(len(x), c) for x in available.values()) <= limit
    )
    sample = sample_sentences(documents, limit)
    assert list(sample) == sorted(available)
    for language, lines in sample.items():
        assert len(lines) == min(len(available[language]), cap)
        assert set(lines) <= set(available[language])
    assert sum(map(len, sample.values())) <= limit
    assert sample == sample_sentences(iter(documents), limit)


def test_a_sample_is_spread_over_the_whole_text():
    documents = documents_of({"eng": 5000})
    numbers = [int(line.split()[-1]) for line in sample_sentences(documents, 200)["eng"]]
    assert len(set(numbers)) > 150
    assert all(sum(a <= n < a + 1000 for n in numbers) > 20 for a in range(0, 5000, 1000))


def test_long_lines_are_cut_and_blank_ones_left_out():
    line = "".join(chr(0x4E00 + i) for i in range(2500))
    parts = list(sentences(f"a\n\n \t\n{line}\nb"))
    assert parts[0] == "a"
    assert "".join(parts[1:-1]) == line
    assert parts[-1] == "b"
    # sentencepiece passes over longer ones without a word.
    assert all(len(part.encode()) <= 4192 for part in parts)
    assert max(map(len, parts)) == SENTENCE_CHARACTERS


# --- refusals ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--vocab_size", 261), "--vocab_size is 261; it has to be at least 262"),
        (("--max_sentences", 0), "--max_sentences is 0; it has to be at least 1"),
        (("--character_coverage", 0), "--character_coverage is 0.0; it has to be above 0"),
        (("--max_length", 2), "--max_length is 2; it has to be at least 8"),
        (("--vocab_size", 500_000), "--vocab_size 500000 does not suit this text: Vocabulary size"),
        (("--vocab_size", 262), "--vocab_size 262 does not suit this text: Vocabulary size"),
        (("--text_field", "body"), "cldr.jsonl, line 1: no field 'body', only 'language', 'text'"),
        (("--input", "absent.jsonl"), "absent.jsonl: no such file or folder"),
    ],
)
def test_refusals(tmp_path, run_tool, cldr_file, options, message):
    defaults = ("--input", cldr_file, "--vocab_size", 2000, "--output", tmp_path / "tokenizer")
    done = run_tool("train_tokenizer", *defaults, *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_no_text(tmp_path, run_tool):
    file = tmp_path / "empty.jsonl"
    file.write_text('{"language": "eng", "text": " "}\n')
    done = run_tool(
        "train_tokenizer", "--input", file, "--vocab_size", 300, "--output", tmp_path / "t"
    )
    assert done.returncode == 2
    assert f"{file}: no text; check --input and --text_field" in done.stderr


def test_an_output_that_is_there_is_refused(tmp_path, run_tool, cldr_file):
    (tmp_path / "notes.txt").write_text("mine")
    for output, message in (
        (tmp_path, " is not empty: choose another output folder, or remove it first"),
        (tmp_path / "notes.txt", ": is a file; name a folder"),
    ):
        done = run_tool(
            "train_tokenizer", "--input", cldr_file, "--vocab_size", 300, "--output", output
        )
        assert done.returncode == 2
        assert done.stderr == f"error: {output}{message}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
