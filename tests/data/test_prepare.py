"""tools/prepare_corpus.py, from files to a corpus whose raw records are counted here once more."""

import gzip
import hashlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import zstandard
from small_tokenizer import write_small_tokenizer

from mmbert_jax.data import cldr_text, tokenizer_identity
from mmbert_jax.data import prepare as preparation
from mmbert_jax.data.corpus import rows_source
from mmbert_jax.data.sources import Fields, find_inputs

ROOT = Path(__file__).resolve().parents[2]
BOS, EOS = 2, 1
HELD_OUT = 0.25


def to_jsonl(records) -> bytes:
    lines = (json.dumps({"language": a, "text": b}, ensure_ascii=False) for a, b in records)
    return "".join(line + "\n" for line in lines).encode()


def read_rows(folder, row_length, split):
    """Every row as (tokens of each segment, ids of its documents), straight from the shards."""
    manifest = json.loads((folder / "manifest.json").read_text())
    rows = []
    for shard in manifest["row_lengths"][str(row_length)][split]["shards"]:
        path = folder / shard["file"]
        assert path.stat().st_size == shard["bytes"]
        slots = np.load(path)
        assert len(slots) == shard["rows"]
        for row, slot in enumerate(map(np.ndarray.tobytes, slots)):
            checksum, length = struct.unpack_from("<II", slot)
            assert checksum == zlib.crc32(slot[4:], row)
            record = slot[8 : 8 + length]
            assert not any(slot[8 + length :])
            n, s = struct.unpack_from("<II", record)
            tokens = list(struct.unpack_from(f"<{n}I", record, 8))
            ends = struct.unpack_from(f"<{s}I", record, 8 + 4 * n)
            ids = struct.unpack_from(f"<{s}Q", record, 8 + 4 * n + 4 * s)
            starts = (0, *ends[:-1])
            rows.append(([tokens[a:b] for a, b in zip(starts, ends, strict=True)], ids))
    return rows


def is_held_out(text: str, share: float = HELD_OUT) -> bool:
    """The rule: the upper half of the text's 64-bit hash, as a share of all that it could be."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest[4:], "little") < share * 2**32


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


OPTIONS = ("--row_length", 64, 256, "--shard_tokens", 3000)
OPTIONS += ("--held_out", HELD_OUT, "--held_out_documents", 0)


def content(folder):
    """Every file of a corpus but the manifest's list of inputs."""
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    manifest = json.loads(files.pop("manifest.json"))
    del manifest["inputs"]
    return files, manifest


# --- what is in a corpus ---


@pytest.mark.parametrize("row_length", [64, 256])
def test_every_token_of_every_document_is_there_once(corpus, records, model, row_length):
    """The documents, tokenised by sentencepiece itself, cut by hand, against the pieces found in all rows."""
    bare = sentencepiece.SentencePieceProcessor(model_file=str(model / "tokenizer.model"))
    expected = defaultdict(list)
    for line, (_, text) in enumerate(records, 1):
        if text.strip():
            rest = [*bare.encode(text), EOS]
            split = "held_out" if is_held_out(text) else "train"
            while rest:
                expected[split, line].append([BOS, *rest[: row_length - 1]])
                rest = rest[row_length - 1 :]
    assert max(map(len, expected.values())) > 3
    found = defaultdict(list)
    for split in ("train", "held_out"):
        for segments, ids in read_rows(corpus[0], row_length, split):
            assert 0 < sum(map(len, segments)) <= row_length
            for segment, identity in zip(segments, ids, strict=True):
                found[split, identity].append(
                    segment
                )  # the only input is file 0, so an id is a line
    assert {key: sorted(pieces) for key, pieces in found.items()} == {
        key: sorted(pieces) for key, pieces in expected.items()
    }


@pytest.mark.parametrize("row_length", [64, 256])
@pytest.mark.parametrize("split", ["train", "held_out"])
def test_counts_of_the_manifest_are_those_of_the_records(corpus, records, row_length, split):
    manifest = json.loads((corpus[0] / "manifest.json").read_text())
    entry = manifest["row_lengths"][str(row_length)][split]
    rows = read_rows(corpus[0], row_length, split)
    assert list(entry["languages"]) == sorted(entry["languages"])
    assert sum(shard["rows"] for shard in entry["shards"]) == len(rows)
    at = filled = 0
    for language, counts in entry["languages"].items():
        assert counts["first_row"] == at
        of_language = rows[at : at + counts["rows"]]
        at += counts["rows"]
        ids = {identity for _, found in of_language for identity in found}
        assert {records[identity - 1][0] for identity in ids} == {language}
        texts = [records[identity - 1][1] for identity in ids]
        assert counts["documents"] == len(ids)
        assert counts["bytes"] == sum(len(text.encode()) for text in texts)
        tokens = sum(len(segment) for segments, _ in of_language for segment in segments)
        assert counts["tokens"] == tokens
        filled += tokens
    assert at == len(rows)
    assert entry["fill"] == pytest.approx(filled / len(rows) / row_length, abs=1e-6)


def test_totals_of_the_manifest(corpus, records, model):
    manifest = json.loads((corpus[0] / "manifest.json").read_text())
    texts = [text for _, text in records if text.strip()]
    bare = sentencepiece.SentencePieceProcessor(model_file=str(model / "tokenizer.model"))
    assert manifest["documents"] == len(texts) == len(records) - 2
    assert manifest["empty_documents"] == 2
    assert manifest["tokens"] == sum(map(len, bare.encode(texts)))
    assert manifest["bytes"] == sum(len(text.encode()) for text in texts)
    assert manifest["inputs"] == [str(corpus[1])]
    assert manifest["source"] == "test"
    assert (manifest["held_out_fraction"], manifest["held_out_documents"]) == (HELD_OUT, 0)
    assert manifest["special_ids"] == {"pad": 0, "eos": 1, "bos": 2, "unk": 3, "mask": 4}
    copied = (corpus[0] / "tokenizer" / "tokenizer.model").read_bytes()
    assert copied == (model / "tokenizer.model").read_bytes()
    assert manifest["tokenizer"] == {
        "sha256": hashlib.sha256(copied).hexdigest(),
        "content": tokenizer_identity.content(model / "tokenizer.model"),
        "vocab_size": bare.get_piece_size(),
        "file": "tokenizer.model",
    }


def test_every_shard_has_a_digest_of_what_is_trained_on(corpus):
    """The records without their document ids, which depend on where the input lay."""
    folder, manifest = corpus[0], json.loads((corpus[0] / "manifest.json").read_text())
    for row_length, splits in manifest["row_lengths"].items():
        for split, entry in splits.items():
            rows = iter(rows_source(folder, manifest, int(row_length), split))
            for shard in entry["shards"]:
                digest = hashlib.blake2b(digest_size=8)
                for record in itertools.islice(rows, shard["rows"]):
                    tokens, segments = struct.unpack_from("<II", record)
                    digest.update(record[: 8 + 4 * tokens + 4 * segments])
                assert shard["digest"] == digest.hexdigest()


def test_large_languages_have_shards_of_their_own_and_small_ones_share(corpus):
    manifest = json.loads((corpus[0] / "manifest.json").read_text())
    train = manifest["row_lengths"]["64"]["train"]
    ends = np.cumsum([shard["rows"] for shard in train["shards"]])
    of = {
        name: np.searchsorted(ends, [x["first_row"], x["first_row"] + x["rows"] - 1], "right")
        for name, x in train["languages"].items()
    }
    assert of["de"][1] - of["de"][0] >= 2  # de has some 8,000 tokens, a shard about 3,000
    shared = [name for name in of if any(of[name][1] == of[o][0] for o in of if o != name)]
    assert shared
    assert max(shard["rows"] for shard in train["shards"]) * 64 < 6000


def test_a_small_corpus_has_shards_for_many_processes(tmp_path, corpus, model, monkeypatch):
    monkeypatch.setattr(preparation, "LEAST_SHARED", 64)
    settings = preparation.Settings(model, Fields(), (64,), held_out=0.0)
    inputs, _ = find_inputs([corpus[1]], None)
    manifest = preparation.prepare_corpus(inputs, settings, tmp_path / "c", 1, "test")
    shards = manifest["row_lengths"]["64"]["train"]["shards"]
    rows = sum(shard["rows"] for shard in shards)
    assert 16 <= len(shards) <= 32
    assert max(shard["rows"] for shard in shards) < rows / 8


def test_rows_are_in_random_order(corpus):
    """Documents, long ones too, do not stand in the order of the input, nor together."""
    ids = [found[0] for _, found in read_rows(corpus[0], 64, "train")]
    assert ids != sorted(ids)
    assert np.mean(np.diff(ids) > 0) < 0.7


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


# --- what a corpus does not depend on ---


def test_number_of_processes(tmp_path, corpus, prepare):
    done = prepare(tmp_path / "c", "--input", corpus[1], *OPTIONS, workers=3)
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "c") == content(corpus[0])


@pytest.mark.parametrize(
    ("ending", "compress"),
    [("gz", gzip.compress), ("zst", zstandard.ZstdCompressor().compress)],
)
def test_compression_and_names_of_fields(tmp_path, corpus, prepare, ending, compress):
    renamed = [
        json.dumps({"lang": r["language"], "body": r["text"], "language": 1})
        for r in map(json.loads, corpus[1].read_text().splitlines())
    ]
    file = tmp_path / f"text.jsonl.{ending}"
    file.write_bytes(compress("\n".join(renamed).encode()))
    fields = ("--text_field", "body", "--language_field", "lang")
    done = prepare(tmp_path / "c", "--input", file, *fields, *OPTIONS)
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "c") == content(corpus[0])


def test_plain_text_in_folders_and_the_order_of_documents(tmp_path, corpus, records, prepare):
    for i, (language, text) in enumerate(records):
        folder = tmp_path / "text" / language
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{9999 - i}.txt").write_bytes(text.encode())
    done = prepare(tmp_path / "c", "--input", tmp_path / "text", *OPTIONS)
    assert done.returncode == 0, done.stderr
    ours, theirs = content(tmp_path / "c")[1], content(corpus[0])[1]
    assert ours == theirs
    for row_length in (64, 256):
        for split in ("train", "held_out"):
            found = [row for row, _ in read_rows(tmp_path / "c", row_length, split)]
            assert found == [row for row, _ in read_rows(corpus[0], row_length, split)]


# --- faults: exit status 2, one line that says where and what to do, nothing left behind ---

GOOD = to_jsonl([("en", "good text")])
FAULTS = {
    "utf8.jsonl": (
        GOOD + b'{"text": "\xff"}\n',
        "line 2: invalid UTF-8 at byte 10; convert the file",
    ),
    "json.jsonl": (GOOD * 2 + b'{"text": "a"\n', "line 3: invalid JSON"),
    "field.jsonl": (
        GOOD + b'{"language": "en"}\n',
        "line 2: no field 'text', only 'language'; name",
    ),
    "type.jsonl": (GOOD + b'{"language": "en", "text": 1}\n', "line 2: field 'text' is a int"),
    "half.jsonl": (
        GOOD + b'{"language": "en", "text": "\\ud800"}\n',
        "line 2: field 'text' holds half",
    ),
    "language.jsonl": (
        GOOD + to_jsonl([("xx", ""), ("xx", " ")]),
        "language 'xx': all of its 2 documents are empty; remove them or check which field",
    ),
    "nothing.jsonl": (b"", "no documents; check --input"),
    "blank.jsonl": (b"\n\n", "no documents; check --input"),
    "cut.jsonl.gz": (gzip.compress(GOOD * 99)[:-9], "damaged or not compressed as its name says"),
    "cut.jsonl.zst": (zstandard.compress(GOOD * 99)[:-9], "copy or compress it again"),
    "table.csv": (b"a,b\n", "cannot be read; expected *.jsonl"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_bad_input_is_named_and_leaves_nothing(tmp_path, prepare, name):
    data, message = FAULTS[name]
    (tmp_path / name).write_bytes(data)
    done = prepare(tmp_path / "made" / "c", "--input", tmp_path / name)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("tokenise ")]
    assert line.startswith("error: ")
    assert message in line
    if name != "language.jsonl":
        assert str(tmp_path / name) in line
    assert not list((tmp_path / "made").iterdir() if (tmp_path / "made").exists() else [])


def test_faults_found_by_worker_processes_read_the_same(tmp_path, prepare):
    data, message = FAULTS["json.jsonl"]
    (tmp_path / "json.jsonl").write_bytes(data)
    done = prepare(tmp_path / "c", "--input", tmp_path / "json.jsonl", workers=2)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path}/json.jsonl, {message}")
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["json.jsonl"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--row_length", 4), "--row_length is [4]; it has to be at least 8"),
        (("--held_out", 1), "--held_out is 1.0; it has to be at least 0 and below 1"),
        (("--held_out", "nan"), "--held_out is nan"),
        (("--held_out_documents", -1), "--held_out_documents is -1; it has to be at least 0"),
        (("--shard_tokens", 100), "--shard_tokens is 100; it has to be at least a row"),
        (
            ("--tokenizer", "absent"),
            "absent: no such tokeniser; make one with tools/train_tokenizer",
        ),
        (("--input", "absent"), "absent: no such file or folder"),
    ],
)
def test_bad_options(tmp_path, corpus, prepare, options, message):
    done = prepare(tmp_path / "c", "--input", corpus[1], *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert not list(tmp_path.iterdir())


def test_an_output_folder_with_something_else_is_refused(tmp_path, corpus, prepare):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    shutil.copytree(corpus[0], tmp_path / "and_more")
    (tmp_path / "and_more" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name, message in (
        ("mine", "holds something that is no corpus (notes.txt); name a new folder"),
        ("and_more", "holds something that is no corpus (notes.txt); name a new folder"),
        ("file", "is a file; name a folder"),
    ):
        before = sorted(tmp_path.rglob("*"))
        done = prepare(tmp_path / name, "--input", corpus[1], "--overwrite")
        assert done.returncode == 2
        assert done.stderr == f"error: {tmp_path / name}: {message}\n"
        assert sorted(tmp_path.rglob("*")) == before


def test_a_corpus_is_replaced_only_on_request_and_only_by_a_whole_one(tmp_path, corpus, prepare):
    output = shutil.copytree(corpus[0], tmp_path / "c")
    (tmp_path / "bad.jsonl").write_bytes(GOOD + b"{\n")
    (tmp_path / "good.jsonl").write_bytes(GOOD)
    done = prepare(output, "--input", tmp_path / "good.jsonl")
    assert done.returncode == 2
    assert "holds a corpus; name a new folder or give --overwrite" in done.stderr
    assert prepare(output, "--input", tmp_path / "bad.jsonl", "--overwrite").returncode == 2
    assert content(output) == content(corpus[0])
    assert prepare(output, "--input", tmp_path / "good.jsonl", "--overwrite").returncode == 0
    assert len(read_rows(output, 1024, "train") + read_rows(output, 1024, "held_out")) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"c", "bad.jsonl", "good.jsonl"}


@pytest.mark.parametrize("kilobytes", [1, 60])
def test_a_disk_that_is_full(tmp_path, corpus, model, kilobytes):
    """A limit on the size of files fails writes as a full disk does: first the spill's, then a shard's."""
    command = [sys.executable, str(ROOT / "tools" / "prepare_corpus.py"), "--workers", "1"]
    command += [
        "--input",
        str(corpus[1]),
        "--tokenizer",
        str(model),
        "--output",
        str(tmp_path / "c"),
    ]
    limit = f"ulimit -f {kilobytes}; exec " + ' "$@"'
    done = subprocess.run(
        ["bash", "-c", limit, "bash", *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert re.match(f"error: (cannot write a shard: .*)?{tmp_path}/c\\b.*\\n$", done.stderr), (
        done.stderr
    )
    assert not list(tmp_path.iterdir())


# --- interruptions ---


def started(tmp_path, model):
    """A preparation with two workers in a group of its own, when it has begun to work."""
    texts = [("de", f"{i} " + "Wort " * 200) for i in range(20_000)]  # 20 MB: some seconds
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "long.jsonl").write_bytes(to_jsonl(texts))
    process = subprocess.Popen(
        [
            *(sys.executable, str(ROOT / "tools" / "prepare_corpus.py"), "--workers", "2"),
            *("--input", str(tmp_path / "text"), "--tokenizer", str(model)),
            *("--output", str(tmp_path / "out" / "c")),
        ],
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    while not list(tmp_path.glob("out/.c.partial-*/spill")):
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(0.7)  # for the workers
    assert process.poll() is None
    return process


def wait_until_group_is_gone(process):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError("worker processes go on without their parent")


def test_a_killed_preparation_can_be_started_again(tmp_path, corpus, model, prepare):
    process = started(tmp_path, model)
    process.kill()
    process.communicate()
    wait_until_group_is_gone(process)
    (left,) = (tmp_path / "out").iterdir()
    assert left.name.startswith(".c.partial-")
    done = prepare(tmp_path / "out" / "c", "--input", corpus[1], *OPTIONS)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["c"]
    assert content(tmp_path / "out" / "c") == content(corpus[0])


def test_an_ended_preparation_leaves_nothing_and_one_at_work_is_left_alone(
    tmp_path, corpus, model, prepare
):
    process = started(tmp_path, model)
    (at_work,) = (tmp_path / "out").iterdir()
    # A second preparation of the same folder must not take the first one's work for abandoned.
    assert prepare(tmp_path / "out" / "c", "--input", corpus[1]).returncode == 0
    assert at_work.is_dir()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert b"error: terminated" in errors
    wait_until_group_is_gone(process)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["c"]
