"""Texts that are dropped: repetition against datatrove's filter and by hand; counts in the manifest."""

import json
import random

import pytest
from prepared import OPTIONS, content, to_jsonl

from mmbert_jax.data.prepare.repetition import repetition

# What datatrove calls the limits.
THEIRS = {
    "duplicate paragraphs": "dup_para_frac",
    "characters of duplicate paragraphs": "dup_para_char_frac",
    "duplicate lines": "dup_line_frac",
    "characters of duplicate lines": "dup_line_char_frac",
    **{f"most frequent {n}-gram": f"top_{n}_gram" for n in (2, 3, 4)},
    **{f"duplicate {n}-grams": f"duplicated_{n}_n_grams" for n in range(5, 11)},
}


def texts(draw, count):
    """Texts that repeat lines, paragraphs and sequences of words of all lengths, more or less."""
    vocabulary = [
        "".join(draw.choices("abcdefghij", k=draw.randint(3, 9))) + str(i) for i in range(400)
    ]
    for _ in range(count):
        phrases = [draw.choices(vocabulary, k=draw.randint(1, 14)) for _ in range(5)]
        share = draw.random() * 0.4
        words = []
        for _ in range(draw.randint(1, 80)):
            words += (
                draw.choice(phrases) if draw.random() < share else draw.choices(vocabulary, k=4)
            )
            if draw.random() < 0.3:
                words.append(draw.choice(("\n", "\n\n", "\n\n\n", "\n")))
        if draw.random() < 0.1:
            pair = " ".join(draw.choices(vocabulary, k=2))
            for _ in range(len(words) // 8):
                words.insert(draw.randrange(len(words) + 1), pair)
        lines = " ".join(words).split("\n")
        for _ in range(draw.randint(0, len(lines) // 2)):
            lines.insert(draw.randrange(len(lines) + 1), draw.choice(lines))
        text = "\n".join(lines)
        # Of shorter texts datatrove drops those that have one sequence of words once.
        if len(text.split()) > 60:
            yield text


def test_repetition_is_what_datatrove_finds(monkeypatch):
    """Each limit is met by some texts, and by others none."""
    theirs = pytest.importorskip("datatrove.pipeline.filters.gopher_repetition_filter")
    from datatrove.data import Document

    # Its words come from libraries for each language, which is not what is compared here.
    monkeypatch.setattr(theirs, "split_into_words", lambda text, language: text.split())
    limits = theirs.GopherRepetitionFilter()
    found = []
    for text in texts(random.Random(0), 1500):
        kept = limits.filter(Document(text=text, id=""))
        expected = None if kept is True else kept[1]
        found.append(repetition(text))
        assert THEIRS.get(found[-1]) == expected, text
    assert {x for x in found if x} >= THEIRS.keys() - {"characters of duplicate paragraphs"}
    assert found.count(None) > 200


def words(n, first=0):
    return [f"{i:04}" for i in range(first, first + n)]


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("a", None),
        ("a b c d", None),
        ("word " * 3, "most frequent 2-gram"),
        # 3 of 13 lines are there a second time, then 6 of 16.
        ("\n".join([*words(10), *"abc", *"abc"]), None),
        ("\n".join([*words(7), *"abcdef", *"abcdef"]), "duplicate lines"),
        # 1 of 5 lines, with 30 of 84 and of 184 characters.
        ("\n".join([*words(3), "x" * 30, "x" * 30]), "characters of duplicate lines"),
        ("\n".join([*words(23), "x" * 30, "x" * 30]), None),
        # 1 of 4 paragraphs; the same lines with one newline between are below their limit.
        (
            "\n\n".join(["x" * 20, "y" * 30, "z" * 40, "y" * 30]),
            "characters of duplicate paragraphs",
        ),
        # "ab cd" 4 times, 20 characters of 99, then of 104.
        (
            " ".join(
                [
                    "ab cd",
                    *words(4),
                    "ab cd",
                    *words(4, 10),
                    "ab cd",
                    *words(4, 20),
                    "ab cd",
                    "0030",
                ]
            ),
            "most frequent 2-gram",
        ),
        (
            " ".join(
                [
                    "ab cd",
                    *words(4),
                    "ab cd",
                    *words(4, 10),
                    "ab cd",
                    *words(4, 20),
                    "ab cd",
                    *words(4, 30),
                ]
            ),
            None,
        ),
        # 10 words twice, 40 characters: of 249 more than 15%, of 269 (36 of them) more than 11%, of 449 less than 10%.
        (" ".join([*words(10), *words(30, 10), *words(10)]), "duplicate 5-grams"),
        (" ".join([*words(10), *words(34, 10), *words(10)]), "duplicate 9-grams"),
        (" ".join([*words(10), *words(70, 10), *words(10)]), None),
    ],
)
def test_hand_worked(text, result):
    assert repetition(text) == result


def without_spaces(draw, first, last, n):
    return "".join(chr(draw.randint(first, last)) for _ in range(n))


@pytest.mark.parametrize(
    ("first", "last"), [(0x4E00, 0x9FFF), (0x3041, 0x3096), (0x0E01, 0x0E2E), (0x1780, 0x17A2)]
)
def test_scripts_without_spaces(first, last):
    """What repeats itself is found wherever it begins, and a text that does not is no single word that does."""
    draw = random.Random(0)
    text = without_spaces(draw, first, last, 1000)
    again = without_spaces(draw, first, last, 60)
    assert repetition(text) is None
    assert repetition(text[:500] + " " + text[500:]) is None
    assert repetition(again + text[:211] + again + text[300:367] + again).startswith("duplicate")
    assert repetition(text + again[:10] + text[:13] + again[:10]) is None
    assert repetition(again[:9] * 40) is not None


def test_syllables_are_words_in_tibetan():
    syllables = [chr(0x0F40 + i) + chr(0x0F40 + j) for i in range(20) for j in range(20)]
    assert repetition("\u0f0b".join(syllables)) is None
    assert repetition("\u0f0b".join(syllables[:200] + syllables[:100])) == "duplicate 5-grams"
    assert repetition(" ".join(words(200) + words(100))) == "duplicate 5-grams"


RECORDS = [
    *(("en", f"text {i} " + " ".join(words(30, 31 * i))) for i in range(6)),
    *[("en", "short")] * 2,
    *[("en", "e\u0301" * 9)] * 3,  # 9 characters, normalised
    ("en", " ".join(words(10) * 6)),
    ("en", " ".join(words(2000))),
    ("xx", "short"),
    ("yy", " "),
    ("yy", "short"),
]


@pytest.fixture(scope="module")
def filtered(tmp_path_factory, prepare):
    """(folder, input, what was said)"""
    folder = tmp_path_factory.mktemp("filtered")
    (folder / "a.jsonl").write_bytes(to_jsonl(RECORDS))
    rules = ("--normalise", "--min_characters", 10, "--max_characters", 5000, "--drop_repetitive")
    rules += ("--deduplicate", "exact")
    done = prepare(folder / "c", "--input", folder / "a.jsonl", *rules, *OPTIONS)
    assert done.returncode == 0, done.stderr
    return folder / "c", rules, done


def test_documents_are_dropped_and_counted_by_reason(filtered, prepare, tmp_path):
    folder, rules, done = filtered
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["dropped_documents"] == {
        "duplicate": 0,
        "fewer than 10 characters": 7,
        "more than 5000 characters": 1,
        "most frequent 3-gram": 1,
    }
    assert (manifest["documents"], manifest["empty_documents"]) == (6, 1)
    filters = {"min_characters": 10, "max_characters": 5000, "repetition": "gopher"}
    assert manifest["filters"] == filters
    assert " 7 documents dropped: fewer than 10 characters\n" in done.stdout
    assert "all documents are dropped of 2 languages: xx, yy\n" in done.stderr
    # What is kept is packed as it is by itself.
    (tmp_path / "kept.jsonl").write_bytes(to_jsonl(RECORDS[:6]))
    assert prepare(tmp_path / "c", "--input", tmp_path / "kept.jsonl", *OPTIONS).returncode == 0
    assert content(tmp_path / "c")[0] == content(folder)[0]
    done = prepare(
        tmp_path / "d", "--input", folder.parent / "a.jsonl", *rules, *OPTIONS, workers=2
    )
    assert content(tmp_path / "d") == content(folder)


def test_other_filters_are_other_parts(filtered, prepare, tmp_path):
    """Kept parts are taken for the same rules alone."""
    text = ("--input", filtered[0].parent / "a.jsonl", "--keep_parts", "--overwrite", *OPTIONS)
    for rules, again in (
        (("--min_characters", 6), False),
        (("--min_characters", 6), True),
        (("--min_characters", 7), False),
        (("--drop_repetitive",), False),
        (("--normalise",), False),
        ((), False),
        (("--deduplicate", "exact"), True),
    ):
        done = prepare(tmp_path / "c", *text, *rules)
        assert done.returncode == 0, done.stderr
        assert ("parts are finished already" in done.stderr) == again, rules


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--min_characters", 0), "--min_characters is 0; it has to be at least 1"),
        (
            ("--min_characters", 9, "--max_characters", 8),
            "--max_characters is 8; it has to be at least 1, and --min_characters",
        ),
        (("--min_characters", 10**6), "a.jsonl: the filters leave no document; loosen them"),
    ],
)
def test_filters_that_leave_nothing(filtered, prepare, tmp_path, options, message):
    done = prepare(tmp_path / "c", "--input", filtered[0].parent / "a.jsonl", *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert not list(tmp_path.iterdir())
