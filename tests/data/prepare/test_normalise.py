"""Normalised texts: against Unicode's own tables, and as a corpus of texts that were normalised before."""

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prepared import OPTIONS, content, read_rows, to_jsonl

from mmbert_jax.data.prepare.normalise import UNICODE_VERSION, normalise

LINE_ENDINGS = ("\r\n", "\r", "\v", "\f", "\x85", "\u2028", "\u2029")
RARE = st.sampled_from(
    [*LINE_ENDINGS, *"\n\t\0\x7f\x9f\ufeff\ufffe\ufdd0e\u0301\u1100\u1161\u200d"]
)
PLANES = st.sampled_from([chr(plane << 16 | 0xFFFE) for plane in range(1, 17)])


def expected(text):
    """Character by character; what is no character has category Cn and stays so in all versions of Unicode."""
    for ending in LINE_ENDINGS:
        text = text.replace(ending, "\n")
    kept = [
        c
        for c in text
        if c in "\n\t"
        or not (
            unicodedata.category(c) == "Cc"
            or c == "\ufeff"
            or 0xFDD0 <= ord(c) <= 0xFDEF
            or ord(c) & 0xFFFE == 0xFFFE
        )
    ]
    return unicodedata.normalize("NFC", "".join(kept))


@given(st.lists(RARE | PLANES | st.characters(exclude_categories=["Cs"])).map("".join))
def test_normalised_text(text):
    found = normalise(text)
    assert found == expected(text)
    assert normalise(found) == found
    assert unicodedata.is_normalized("NFC", found)


def test_every_character_by_itself():
    text = "x".join(map(chr, (*range(0xD800), *range(0xE000, 0x110000))))
    assert normalise(text).split("x") == expected(text).split("x")


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("a\r\n\r\nb\rc\n", "a\n\nb\nc\n"),
        ("page\fpage", "page\npage"),
        ("\ufeffa\ufeffb\0", "ab"),
        ("Cafe\u0301", "Caf\xe9"),
        ("\u1112\u1161\u11ab", "\ud55c"),
        ("e\0\u0301", "\xe9"),  # what is taken out first would have kept them apart
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", None),  # Persian, with its joiner
        ("\u0915\u094d\u200d\u0937\t", None),
        ("\u212b", "\xc5"),
        ("\ufb01", None),  # a ligature is another text under NFKC alone
    ],
)
def test_hand_worked(text, result):
    assert normalise(text) == (text if result is None else result)


def test_a_corpus_is_that_of_texts_normalised_before(tmp_path, corpus, records, prepare):
    """Also which documents are held out, and which are the same, is decided by the normalised text."""
    clean = [(language, expected(text)) for language, text in records]
    spoilt = [
        (language, "\ufeff" + unicodedata.normalize("NFD", text.replace("\n", "\r\n")))
        for language, text in clean
    ]
    assert sum(a != b for a, b in zip(clean, spoilt, strict=True)) == len(records)
    for name, texts in (("clean", clean), ("spoilt", spoilt)):
        (tmp_path / f"{name}.jsonl").write_bytes(to_jsonl(texts))
    done = prepare(tmp_path / "clean", "--input", tmp_path / "clean.jsonl", *OPTIONS)
    assert done.returncode == 0, done.stderr
    text = ("--input", tmp_path / "spoilt.jsonl", "--normalise")
    for workers in (1, 2):
        output = tmp_path / f"spoilt{workers}"
        done = prepare(output, *text, *OPTIONS, workers=workers)
        assert done.returncode == 0, done.stderr
        files, manifest = content(output)
        assert manifest.pop("normalised") == {"form": "NFC", "unicode": UNICODE_VERSION}
        assert (files, manifest) == content(tmp_path / "clean")


def test_text_that_is_nothing_else_is_empty(tmp_path, prepare):
    (tmp_path / "a.jsonl").write_bytes(to_jsonl([("en", "\0\ufeff"), ("en", "a\0b")]))
    done = prepare(tmp_path / "c", "--input", tmp_path / "a.jsonl", "--normalise")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    assert (manifest["documents"], manifest["empty_documents"]) == (1, 1)
    assert manifest["bytes"] == 2
    assert len(read_rows(tmp_path / "c", 1024, "train")) == 1
