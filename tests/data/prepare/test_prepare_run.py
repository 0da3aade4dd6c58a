"""What a corpus does not depend on, and preparations that are ended."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import zstandard
from prepared import OPTIONS, ROOT, content, read_rows, to_jsonl

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
