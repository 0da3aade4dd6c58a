"""Folders as users keep them: which files are read, in which order, and what is said of the others."""

import json
import os
import shutil
from pathlib import Path

import pytest
from small_tokenizer import write_small_tokenizer
from tiny_corpus import write_corpus

from mmbert_jax.data.sources import Fields, find_inputs, read_documents
from mmbert_jax.errors import UserError

LINE = b'{"language": "eng", "text": "a"}\n'


def write(path: Path, content: bytes = LINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def found(*paths, default_language="und"):
    """(paths below the first one's folder, notes)"""
    inputs, notes = find_inputs(paths, None, default_language)
    return [str(item.path) for item in inputs], notes


@pytest.fixture
def text(tmp_path):
    folder = tmp_path / "text"
    write(folder / "b.jsonl")
    write(folder / "a" / "c.txt", b"words")
    return folder


def both(text):
    return [f"{text}/a/c.txt", f"{text}/b.jsonl"]


# --- hidden names ---


def test_hidden_files_and_folders_are_left_out(text):
    write(text / ".ipynb_checkpoints" / "b-checkpoint.jsonl")
    write(text / "._b.jsonl", b"\0\5\26\7\0\2\0\0Mac OS X        ")
    write(text / "a" / ".cache" / "deep" / "x.txt")
    write(text / ".DS_Store", b"\0")
    assert found(text) == (both(text), [f"passed over in {text}: 4 hidden"])


def test_a_folder_in_a_hidden_one_can_be_named(tmp_path):
    file = write(tmp_path / ".cache" / "text" / "a.jsonl")
    assert found(file.parent) == ([str(file)], [])
    assert found(write(tmp_path / ".a.jsonl"))[0] == [f"{tmp_path}/.a.jsonl"]


# --- kinds ---


def test_what_is_not_read_is_named_by_its_kind(text):
    for name in ("B.JSONL", "c.jsonl.GZ", "d.jsonl.lz4", "e.orc", "f.orc", "README"):
        write(text / name)
    write(text / "g.odt")
    os.mkfifo(text / "pipe.jsonl")
    files, (note,) = found(text)
    assert files == both(text)
    assert note.startswith(f"passed over in {text}: 2 *.orc, 1 *")
    for kind in ("1 *.JSONL", "1 *.jsonl.GZ", "1 *.jsonl.lz4", "1 without an ending", "1 more"):
        assert kind in note


def test_a_folder_without_text_says_what_it_has(tmp_path):
    write(tmp_path / "a.orc")
    with pytest.raises(UserError, match=r"nothing to read .*; passed over: 1 \*.orc"):
        found(tmp_path)


# --- links and doubles ---


def test_links_are_followed_and_every_file_is_read_once(text, tmp_path):
    elsewhere = write(tmp_path / "elsewhere" / "d.jsonl")
    (text / "linked").symlink_to(elsewhere.parent)
    (text / "z.jsonl").symlink_to("b.jsonl")
    files, notes = found(text)
    assert files == [*both(text), f"{text}/linked/d.jsonl"]
    assert notes == [f"{text}/z.jsonl is the same file as {text}/b.jsonl, read once"]


def test_links_that_lead_in_circles_come_to_an_end(text):
    (text / "a" / "up").symlink_to("..")
    (text / "self").symlink_to("self")
    files, notes = found(text)
    assert files == both(text)
    assert notes == [
        f"{text}/self: broken link, passed over",
        f"{text}/a/up is reached twice, read once",
    ]


def test_broken_links_are_named(text, tmp_path):
    (text / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    files, notes = found(text)
    assert files == both(text)
    assert notes == [f"{text}/gone.jsonl: broken link, passed over"]
    with pytest.raises(UserError, match=f"gone.jsonl: broken link: there is no {tmp_path}/nowhere"):
        found(text / "gone.jsonl")


@pytest.mark.parametrize("again", ["text/b.jsonl", "text/../text/b.jsonl", "text", "text/a"])
def test_what_is_named_twice_is_read_once(text, tmp_path, monkeypatch, again):
    monkeypatch.chdir(tmp_path)
    files, (note,) = found("text", again)
    assert files == ["text/a/c.txt", "text/b.jsonl"]
    assert note.endswith(", read once")
    assert note.startswith(again)


def test_a_text_is_read_once_when_its_file_is_named_before_its_folder(text):
    files, notes = found(text / "b.jsonl", text)
    assert files == [f"{text}/b.jsonl", f"{text}/a/c.txt"]
    assert notes == [f"{text}/b.jsonl is named twice, read once"]


# --- what this project writes ---


def test_own_outputs_in_a_folder_are_passed_over(text):
    write_corpus(text / "corpus", {"eng": 3})
    write_small_tokenizer(text / "tok")
    write_small_tokenizer(text / "corpus" / "tokenizer")
    write(text / "run" / "config.json", b"{}")
    write(text / "run" / "metrics.jsonl", b"{}\n")
    write(text / "run" / "checkpoints" / "3" / "params" / "x.json", b"{}")
    write(text / "hf" / "config.json", b"{}")
    write(text / "hf" / "model.safetensors", b"")
    write(text / "hf" / "extra.json", b"{}")
    files, notes = found(text)
    assert files == both(text)
    assert notes == [
        f"passed over in {text}: 4 of this program's own (corpus, hf, run, tok/tokenizer.json)"
    ]


def test_text_beside_a_foreign_manifest_is_read(text):
    write(text / "a" / "manifest.json", b'{"format": "of another program"}')
    assert f"{text}/a/manifest.json" in found(text)[0]


def test_a_corpus_is_no_text(tmp_path):
    write_corpus(tmp_path / "corpus", {"eng": 3})
    with pytest.raises(UserError, match="corpus: is a corpus, no text"):
        found(tmp_path / "corpus")


# --- names ---


def test_names_that_are_not_utf8(tmp_path, run_tool):
    """From the command line into the manifest and back, in a locale of any kind."""
    folder = tmp_path / os.fsdecode(b"f\xfcr")
    write(folder / os.fsdecode(b"\xe9t\xe9.jsonl"), LINE * 3)
    write(folder / "ein b\u00f6ses.jsonl", LINE)
    tokenizer = write_small_tokenizer(tmp_path / "tok")
    for locale in ("C.UTF-8", "C", "en_US.ISO-8859-1"):
        shutil.rmtree(tmp_path / "c", ignore_errors=True)
        options = ("--tokenizer", tokenizer, "--row_length", 16, "--workers", 1)
        output = ("--output", tmp_path / "c")
        done = run_tool("prepare_corpus", "--input", folder, *options, *output, LC_ALL=locale)
        assert done.returncode == 0, done.stderr
        manifest = json.loads((tmp_path / "c" / "manifest.json").read_bytes())
        assert [os.fsencode(name) for name in manifest["inputs"]] == [
            os.fsencode(folder) + b"/ein b\xc3\xb6ses.jsonl",
            os.fsencode(folder) + b"/\xe9t\xe9.jsonl",
        ]
    bad = write(folder / os.fsdecode(b"bad\xff.jsonl"), b"{\n")
    done = run_tool("prepare_corpus", "--input", bad, *options, "--output", tmp_path / "d")
    assert done.returncode == 2
    assert "bad\\udcff.jsonl, line 1: invalid JSON" in done.stderr
    assert "Traceback" not in done.stderr


def test_inputs_can_be_in_the_home_folder(text, monkeypatch):
    monkeypatch.setenv("HOME", str(text.parent))
    assert found("~/text")[0] == both(text)


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match="a.jsonl: neither a file nor a folder; write what comes"):
        found(tmp_path / "a.jsonl")


# --- buckets ---


@pytest.mark.parametrize("store", ["gs_bucket", "s3_bucket"])
def test_a_folder_in_a_bucket(request, store, text, tmp_path):
    """The same inputs, documents and notes as on the disk."""
    import fsspec

    bucket = request.getfixturevalue(store)
    write(text / ".hidden" / "a.jsonl")
    write(text / "d.orc")
    write(text / "deu" / "e.txt", "\ufeffWörter".encode())
    write_corpus(text / "corpus", {"eng": 3})
    system, _ = fsspec.core.url_to_fs(bucket)
    for path in text.rglob("*"):
        if path.is_file():
            system.put_file(str(path), f"{bucket}/find/{path.relative_to(text)}")

    def documents(folder):
        inputs, notes = find_inputs([folder, f"{folder}/b.jsonl"], None)
        batches = read_documents(inputs, Fields())
        return (
            [(str(item.path).removeprefix(str(folder)), item.size) for item in inputs],
            [document for batch in batches for document in batch.documents],
            [note.replace(str(folder), "FOLDER") for note in notes],
        )

    assert documents(f"{bucket}/find") == documents(text)
    assert [document.text for document in documents(text)[1]] == ["words", "a", "Wörter"]
    with pytest.raises(UserError, match="find/absent.jsonl: no such file or folder"):
        find_inputs([f"{bucket}/find/absent.jsonl"], None)


# --- data sets and formats ---


def mds_folder(folder, shards=("shard.0.mds",), absent=(), **changes):
    """A folder with an index that lists empty shards."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for name in (*shards, *absent):
        raw = {"basename": name, "bytes": 8, "hashes": {}}
        entry = {"format": "mds", "version": 2, "samples": 0, "compression": None}
        entries.append(entry | {"raw_data": raw, "zip_data": None} | changes)
        if name not in absent:
            write(folder / name, b"\0" * 8)
    (folder / "index.json").write_text(json.dumps({"version": 2, "shards": entries}))
    return folder


def test_shards_of_nested_and_merged_indexes_are_read_once(tmp_path):
    for name in ("a/split_0", "a/split_0-dup", "b"):
        mds_folder(tmp_path / name)
    mds_folder(tmp_path / "a", ["split_0/shard.0.mds", "split_0-dup/shard.0.mds"])
    mds_folder(tmp_path, ["a/split_0/shard.0.mds", "b/shard.0.mds"], ["c/x.mds", "c/y.mds"])
    inputs, notes = find_inputs([tmp_path], "eng")
    places = [(str(x.path.relative_to(tmp_path)), x.format, x.index.parent.name) for x in inputs]
    assert places == [
        ("a/split_0/shard.0.mds", "mds", "split_0"),
        ("a/split_0-dup/shard.0.mds", "mds", "split_0-dup"),
        ("b/shard.0.mds", "mds", "b"),
    ]
    assert notes == [f"{tmp_path}/index.json: 2 of the shards that it lists are not there"]


def test_a_merged_index_alone(tmp_path):
    mds_folder(tmp_path, ["a/0.mds", "b/0.mds", "b/1.mds"])
    inputs, _ = find_inputs([tmp_path], "eng")
    assert [(x.path.parent.name, x.path.name, x.number) for x in inputs] == [
        ("a", "0.mds", 0),
        ("b", "0.mds", 1),
        ("b", "1.mds", 2),
    ]


def test_shards_that_are_not_there_or_not_listed(tmp_path):
    mds_folder(tmp_path / "a", absent=["shard.1.mds"])
    with pytest.raises(UserError, match="a/shard.1.mds is not there, but .*a/index.json lists it"):
        found(tmp_path)
    write(tmp_path / "b" / "shard.0.mds")
    with pytest.raises(UserError, match=r"nothing to read .*passed over: 1 \*.mds"):
        found(tmp_path / "b")
    with pytest.raises(UserError, match="shard.0.mds: name the folder of the data set"):
        found(tmp_path / "b" / "shard.0.mds")


def test_other_files_called_index_json_are_jsonl(tmp_path):
    write(tmp_path / "index.json")
    assert found(tmp_path) == ([f"{tmp_path}/index.json"], [])


def test_splits_of_a_tfds_data_set(tmp_path):
    split = {"name": "train", "shardLengths": ["3"]}
    info = {"fileFormat": "array_record", "splits": [split, split | {"name": "test"}]}
    write(tmp_path / "1.0.0" / "dataset_info.json", json.dumps(info).encode())
    write(tmp_path / "1.0.0" / "features.json", b"{}")
    write(tmp_path / "1.0.0" / "x-train.array_record-00000-of-00001", b"12345")
    (source,), notes = find_inputs([tmp_path], "eng")
    assert (source.format, source.split, source.size) == ("tfds", "train", 5)
    assert notes == [f"{tmp_path}/1.0.0: only its split train is read, not test"]


def test_files_by_their_content_and_by_insisting(tmp_path):
    parquet = write(tmp_path / "a.data", b"PAR1...")
    lines = write(tmp_path / "b", b"\n" + LINE)
    other = write(tmp_path / "c.md", b"# text")
    inputs, _ = find_inputs([parquet, lines], "eng")
    assert [x.format for x in inputs] == ["parquet", "jsonl"]
    with pytest.raises(UserError, match=r"c.md: cannot be read; expected .*; --format insists"):
        found(other)
    (source,), _ = find_inputs([other], "eng", format="text")
    assert source.format == "text"
    write(tmp_path / "folder" / "d.parquet")
    write(tmp_path / "folder" / "e.jsonl")
    inputs, notes = find_inputs([tmp_path / "folder"], "eng", format="parquet")
    assert [x.path.name for x in inputs] == ["d.parquet"]
    assert notes == [f"passed over in {tmp_path}/folder: 1 of jsonl"]


@pytest.mark.parametrize(
    ("pattern", "path", "language"),
    [
        ("data/{language}/train", "data/deu_Latn/train/000.parquet", "deu_Latn"),
        ("data/{language}", "data/ell/ell-00000-of-00001.jsonl", "ell"),
        ("{language}-*.jsonl", "data/ell-00000-of-00001.jsonl", "ell"),
        ("/data/{language}/", "data/x/data/deu/0.parquet", "deu"),
        ("text.{language}.jsonl", "text.pt-br.jsonl", "pt-br"),
    ],
)
def test_the_language_from_the_path(tmp_path, pattern, path, language):
    file = write(tmp_path / path)
    for named in (file, tmp_path):
        (source,), _ = find_inputs([named], None, language_from_path=pattern)
        assert source.language == language


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("data/train", "has to contain {language} once"),
        ("{language}/{language}", "has to contain {language} once"),
        ("ata/{language}", "is nowhere in this path"),
        ("data/{language}/test", "is nowhere in this path"),
    ],
)
def test_patterns_that_say_nothing(tmp_path, pattern, message):
    write(tmp_path / "data" / "deu" / "train" / "a.jsonl")
    with pytest.raises(UserError, match=message):
        find_inputs([tmp_path], None, language_from_path=pattern)


def test_folders_of_what_was_removed(tmp_path):
    write(tmp_path / "data" / "deu" / "a.jsonl")
    write(tmp_path / "data" / "deu_removed" / "train" / "a.jsonl")
    files, notes = found(tmp_path)
    assert files == [f"{tmp_path}/data/deu/a.jsonl"]
    assert notes == [f"passed over in {tmp_path}: 1 folders of what was removed (data/deu_removed)"]
    assert found(tmp_path / "data" / "deu_removed")[0] != []
