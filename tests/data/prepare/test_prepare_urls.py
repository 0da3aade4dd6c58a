"""Text behind URLs gives the corpus that it gives from the disk."""

import gzip
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from mds_writer import folder as to_write
from mds_writer import write_mds
from prepared import OPTIONS, content
from web_servers import CUT, RESET


def write_parquet(path, records):
    columns = {"language": [a for a, _ in records], "text": [b for _, b in records]}
    pq.write_table(pa.table(columns), path, row_group_size=17)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("name", "ranges"),
    [("a.jsonl", "yes"), ("a.parquet", "yes"), ("a", "no"), ("a.jsonl.gz", "no")],
)
def test_files_of_web_servers(tmp_path, corpus, records, prepare, web, name, ranges):
    """With failures that pass: one answer is cut off, one connection reset, one request refused for a moment."""
    text = corpus[1].read_bytes()
    web.files = {"/a": zstandard.compress(text), "/a.jsonl": text, "/a.jsonl.gz": text}
    web.files["/a.parquet"] = write_parquet(tmp_path / "a.parquet", records)
    web.ranges = ranges
    faults = {4: CUT, 7: RESET, 10: 503}
    web.fault = lambda *_: faults.pop(len(web.seen), None)
    done = prepare(tmp_path / "c", "--input", f"{web.url}/{name}", *OPTIONS, workers=2)
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "c") == content(corpus[0])
    assert len(faults) < 3


def test_servers_that_cannot_give_what_is_needed(tmp_path, corpus, records, prepare, web):
    web.files["/a.jsonl"] = corpus[1].read_bytes()
    web.files["/a.parquet"] = write_parquet(tmp_path / "a.parquet", records)
    for ranges, name, message in (
        ("lies", "a.jsonl", "the server was asked for bytes 0-"),
        ("no", "a.parquet", "Parquet is read in parts, which this server does not give"),
    ):
        web.ranges = ranges
        done = prepare(tmp_path / "c", "--input", f"{web.url}/{name}", *OPTIONS)
        assert done.returncode == 2
        assert f"{name}: {message}" in done.stderr
        assert not (tmp_path / "c").exists()


def test_a_folder_that_fsspec_reads(tmp_path, corpus, records, prepare):
    """In several processes, by the one of its file systems that crosses them."""
    (tmp_path / "in").mkdir()
    lines = corpus[1].read_bytes().splitlines(keepends=True)
    (tmp_path / "in" / "a.jsonl").write_bytes(b"".join(lines[:50]))
    (tmp_path / "in" / "b.jsonl.gz").write_bytes(gzip.compress(b"".join(lines[50:])))
    (tmp_path / "in" / "README.md").write_text("about")
    outputs = []
    for i, path in enumerate((tmp_path / "in", f"file://{tmp_path}/in")):
        done = prepare(tmp_path / str(i), "--input", path, *OPTIONS, workers=2)
        assert done.returncode == 0, done.stderr
        assert "1 *.md" in done.stderr
        outputs.append(content(tmp_path / str(i)))
    assert outputs[0] == outputs[1]


def test_an_output_behind_a_url_is_refused(corpus, prepare):
    done = prepare("hf://datasets/org/corpus", "--input", corpus[1], *OPTIONS)
    assert done.returncode == 2
    assert "hf://datasets/org/corpus: hf:// is not read or written here, unless" in done.stderr


@pytest.fixture
def on_hub(hub, monkeypatch, tmp_path):
    """Programs see the hub of this test alone."""
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    return hub


def on_disk(tmp_path, files):
    folder = tmp_path / "disk"
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_a_data_set_of_the_hub(tmp_path, corpus, records, prepare, on_hub):
    """JSONL, Parquet and MDS in folders, by a branch and by a commit; the commit is named in the manifest."""
    lines = corpus[1].read_bytes().splitlines(keepends=True)
    samples = [{"text": text, "language": language} for language, text in records[40:]]
    columns = {"text": "str", "language": "str"}
    write_mds(tmp_path / "recipe.json", [to_write(tmp_path / "mds", columns, samples)])
    files = {
        "data/a.jsonl": b"".join(lines[:20]),
        "data/deep/b.parquet": write_parquet(tmp_path / "b.parquet", records[20:40]),
        **{f"data/mds/{path.name}": path.read_bytes() for path in (tmp_path / "mds").iterdir()},
        "README.md": b"about",
    }
    first = on_hub.commit(files)
    disk = on_disk(tmp_path, files)
    done = prepare(tmp_path / "0", "--input", disk / "data", *OPTIONS)
    assert done.returncode == 0, done.stderr
    on_hub.commit(files | {"data/a.jsonl": b"{}"})
    urls = [f"hf://datasets/org/texts@{first}/data"]
    on_hub.fault = lambda method, path, part: 503 if len(on_hub.seen) == 9 else None
    done = prepare(tmp_path / "1", "--input", *urls, *OPTIONS, workers=2)
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "1") == content(tmp_path / "0")
    on_hub.commit(files)
    done = prepare(tmp_path / "2", "--input", "hf://datasets/org/texts/data", *OPTIONS)
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "2") == content(tmp_path / "0")
    manifest = json.loads((tmp_path / "2" / "manifest.json").read_text())
    assert f"hf://datasets/org/texts@{first}/data/a.jsonl" in manifest["inputs"]


def test_parts_of_an_older_commit_are_taken_where_the_file_is_the_same(
    tmp_path, corpus, prepare, on_hub
):
    small = corpus[1].read_bytes()
    files = {"0.jsonl": small * ((2 << 20) // len(small) + 1)}
    on_hub.commit(files)
    url = "hf://datasets/org/texts"
    options = ("--row_length", 1024, "--keep_parts", "--overwrite")
    done = prepare(tmp_path / "c", "--input", url, *options, workers=2)
    assert done.returncode == 0, done.stderr
    on_hub.commit(files | {"1.jsonl": small})
    done = prepare(tmp_path / "c", "--input", url, *options, workers=2)
    assert done.returncode == 0, done.stderr
    assert "2 of 3 parts are finished already" in done.stderr


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("hf://datasets/org/other", "see to the name, and whether it may be read"),
        ("hf://datasets/org/texts@v9", "see to the name, and whether it may be read"),
        ("hf://datasets/org/texts/no", "texts@[0-9a-f]{40}/no: no such file or folder"),
    ],
)
def test_what_is_not_on_the_hub(tmp_path, prepare, on_hub, path, message):

    on_hub.commit({"a.jsonl": b"{}\n"})
    done = prepare(tmp_path / "c", "--input", path, *OPTIONS)
    assert done.returncode == 2
    assert re.search(message, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
