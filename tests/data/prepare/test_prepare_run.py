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


def started(tmp_path, model, *options):
    """A preparation with two workers in a group of its own, when it has finished a part."""
    if not (tmp_path / "text").exists():
        texts = [("de", f"{i} " + "Wort " * 200) for i in range(20_000)]  # 20 MB: some seconds
        (tmp_path / "text").mkdir()
        (tmp_path / "text" / "long.jsonl").write_bytes(to_jsonl(texts))
    process = subprocess.Popen(
        [
            *(sys.executable, str(ROOT / "tools" / "prepare_corpus.py"), "--workers", "2"),
            *("--input", str(tmp_path / "text"), "--tokenizer", str(model), "--source", "test"),
            *("--output", str(tmp_path / "out" / "c"), *options),
        ],
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    before = set(tmp_path.glob("out/c.parts/*.index"))
    while not set(tmp_path.glob("out/c.parts/*.index")) - before:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
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


def indices(folder):
    """What was finished, and when."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.index")}


def test_a_killed_preparation_goes_on_where_it_was(tmp_path, model, prepare):
    """Each time that it is killed it has finished more; what is finished is not done again, nor changes a byte."""
    found = {}
    for _ in range(3):
        process = started(tmp_path, model)
        process.kill()
        process.communicate()
        wait_until_group_is_gone(process)
        now = indices(tmp_path / "out" / "c.parts")
        assert now.items() > found.items()
        found = now
    text = ("--input", tmp_path / "text")
    done = prepare(tmp_path / "out" / "c", *text, "--keep_parts", workers=2)
    assert done.returncode == 0, done.stderr
    assert f"{len(found)} of 10 parts are finished already" in done.stderr
    assert indices(tmp_path / "out" / "c.parts").items() >= found.items()
    assert prepare(tmp_path / "whole" / "c", *text).returncode == 0
    assert [path.name for path in (tmp_path / "whole").iterdir()] == ["c"]
    assert content(tmp_path / "out" / "c") == content(tmp_path / "whole" / "c")


def test_more_files_cost_only_themselves(tmp_path, corpus, model, prepare):
    """Kept parts serve a larger corpus, unless their file or what decides their content has changed."""
    first, second = tmp_path / "text" / "a.jsonl", tmp_path / "text" / "b.jsonl"
    first.parent.mkdir()
    lines = corpus[1].read_bytes().splitlines(keepends=True)
    first.write_bytes(b"".join(lines[:100]) * 200)  # larger than what shares a part
    second.write_bytes(b"".join(lines[100:]) * 200)
    options = ("--keep_parts", "--overwrite", *OPTIONS)
    said = []
    for files, more in (
        ([first], ()),
        ([first, second], ()),
        ([second, first], ()),
        ([first], ("--held_out", 0.5)),
    ):
        done = prepare(tmp_path / "c", *more, "--input", *files, *options, *more)
        assert done.returncode == 0, done.stderr
        said += [line for line in done.stderr.splitlines() if "already" in line] or [""]
    of_first, of_both = (int(said[i].split()[n]) for i, n in ((1, 0), (2, 2)))
    assert said[0] == said[3] == ""
    assert said[1].startswith(f"{of_first} of {of_both} parts are finished already")
    assert said[2].startswith(f"{of_both} of {of_both} parts are finished already")
    os.utime(first)
    done = prepare(tmp_path / "c", "--input", first, *options)
    assert "already" not in done.stderr
    assert prepare(tmp_path / "other", "--input", first, *OPTIONS).returncode == 0
    assert content(tmp_path / "c") == content(tmp_path / "other")


def test_an_ended_preparation_keeps_what_is_finished_and_one_at_work_is_left_alone(
    tmp_path, corpus, model, prepare
):
    process = started(tmp_path, model)
    done = prepare(tmp_path / "out" / "c", "--input", corpus[1])
    assert done.returncode == 2
    assert "c.parts: another process is at work here; wait for it" in done.stderr
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert b"what is finished is kept in" in errors
    assert b"error: terminated" in errors
    wait_until_group_is_gone(process)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["c.parts"]
    (tmp_path / "out" / "c.parts" / "notes.txt").write_text("mine")
    done = prepare(tmp_path / "out" / "c", "--input", corpus[1])
    assert "c.parts: the finished parts of the corpus were to lie here, but it holds notes.txt" in (
        done.stderr
    )
