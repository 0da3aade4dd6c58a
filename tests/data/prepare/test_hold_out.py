"""Which documents are held out."""

import hashlib
import json
import random

from prepared import HELD_OUT, is_held_out, read_rows, to_jsonl
from small_tokenizer import write_small_tokenizer

from mmbert_jax.data import prepare as preparation
from mmbert_jax.data.sources import Fields, find_inputs

# --- what is held out ---


def test_held_out_documents_follow_from_their_texts_alone(tmp_path, corpus, records, prepare):
    """Other order, other files, other tokeniser, other row length: the same texts; doubles on one side."""
    draw = random.Random(1)
    shuffled = [r for r in records if r[1].strip()]
    draw.shuffle(shuffled)
    (tmp_path / "b.jsonl").write_bytes(to_jsonl(shuffled[:70]))
    (tmp_path / "a.jsonl").write_bytes(to_jsonl(shuffled[70:]))
    small = write_small_tokenizer(tmp_path / "small")
    files = (tmp_path / "b.jsonl", tmp_path / "a.jsonl")
    options = ("--input", *files, "--row_length", 32, "--held_out", HELD_OUT)
    options += ("--held_out_documents", 0)
    done = prepare(tmp_path / "other", *options, tokenizer=small)
    assert done.returncode == 0, done.stderr
    texts = {}
    for split in ("train", "held_out"):
        other = {i for _, ids in read_rows(tmp_path / "other", 32, split) for i in ids}
        placed = ((i >> 40, i & (2**40 - 1)) for i in other)
        texts[split] = {
            shuffled[line - 1 if file == 0 else 70 + line - 1][1] for file, line in placed
        }
        for row_length in (64, 256):
            ids = {i for _, found in read_rows(corpus[0], row_length, split) for i in found}
            assert {records[i - 1][1] for i in ids} == texts[split]
    assert texts["held_out"] == {text for _, text in shuffled if is_held_out(text)}
    assert not texts["train"] & texts["held_out"]
    assert len(texts["held_out"]) > 20


def test_nothing_is_held_out_when_nothing_should_be(tmp_path, corpus, prepare):
    done = prepare(tmp_path / "c", "--input", corpus[1], "--held_out", 0)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    assert manifest["row_lengths"]["1024"]["held_out"] == {
        "shards": [],
        "fill": 0.0,
        "languages": {},
    }


def in_order_of_hashes(texts):
    return sorted(texts, key=lambda t: hashlib.blake2b(t.encode(), digest_size=8).digest()[::-1])


def test_every_language_has_held_out_documents_where_it_has_enough_text(tmp_path, model):
    """None by their share: of each language the lowest hashes, five or a quarter, whatever the order and processes."""
    small = in_order_of_hashes(f"small {i}" for i in range(11))
    tiny = in_order_of_hashes(f"tiny {i}" for i in range(3))
    large = in_order_of_hashes(f"large {i}" for i in range(60))
    copied = in_order_of_hashes(f"copied {i}" for i in range(8))
    records = [("small", t) for t in small] + [("tiny", t) for t in tiny]
    # Of the lowest text there are too many copies; one of the second lowest is in another language.
    records += [("copied", t) for t in copied + copied[:1] * 4] + [("large", t) for t in large]
    records.append(("large", copied[1]))
    found = []
    for number, (workers, files) in enumerate(((1, 1), (2, 3))):
        random.Random(number).shuffle(records)
        folder = tmp_path / str(number)
        folder.mkdir()
        for i in range(files):
            (folder / f"{i}.jsonl").write_bytes(to_jsonl(records[i::files]))
        settings = preparation.Settings(model, Fields(), (16,), 1e-12, held_out_documents=5)
        inputs, _ = find_inputs([folder], None)
        output = tmp_path / f"corpus-{number}"
        manifest = preparation.prepare_corpus(inputs, settings, output, workers, "test")
        splits = {}
        for split, entry in manifest["row_lengths"]["16"].items():
            tokens = [segments for segments, _ in read_rows(output, 16, split)]
            rows = {
                language: sorted(map(str, tokens[x["first_row"] : x["first_row"] + x["rows"]]))
                for language, x in entry["languages"].items()
            }
            splits[split] = {k: (x["documents"], rows[k]) for k, x in entry["languages"].items()}
        found.append(splits)
        placed = {split: set() for split in splits}
        for split in splits:
            for _, ids in read_rows(output, 16, split):
                placed[split] |= {records[i >> 40 :: files][(i & (2**40 - 1)) - 1] for i in ids}
    assert found[0] == found[1]
    expected = {("small", t) for t in small[:2]} | {("large", t) for t in large[:5]}
    expected |= {("copied", t) for t in copied[1:4]} | {("large", copied[1])}
    assert placed["held_out"] == expected
    assert placed["train"] == set(records) - expected


def test_a_language_is_never_held_out_as_a_whole(tmp_path, prepare):
    texts = [f"document {i}" for i in range(200)]
    out = [text for text in texts if is_held_out(text)]
    kept = next(text for text in texts if not is_held_out(text))
    records = [("all", out[0]), ("all", out[1]), ("some", out[0]), ("some", kept)]
    (tmp_path / "text.jsonl").write_bytes(to_jsonl(records))
    options = ("--input", tmp_path / "text.jsonl", "--held_out", HELD_OUT)
    done = prepare(tmp_path / "c", *options)
    assert done.returncode == 0, done.stderr
    splits = json.loads((tmp_path / "c" / "manifest.json").read_text())["row_lengths"]["1024"]
    assert set(splits["train"]["languages"]) == {"all", "some"}
    assert splits["train"]["languages"]["all"]["documents"] == 2
    assert set(splits["held_out"]["languages"]) == {"some"}
