"""What cannot be prepared: exit status 2, one line that says where and what to do, nothing left behind."""

import gzip
import json
import re
import shutil
import subprocess
import sys

import pytest
import zstandard
from prepared import ROOT, content, read_rows, to_jsonl
from small_tokenizer import write_small_tokenizer

from mmbert_jax.data.prepare import Settings, prepare_corpus
from mmbert_jax.data.sources import Fields, find_inputs
from mmbert_jax.data.tokenizer import HuggingFaceTokenizer
from mmbert_jax.errors import UserError

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
    *said, line = [x for x in done.stderr.splitlines() if not x.startswith("tokenise ")]
    assert line.startswith("error: ")
    assert message in line
    if name != "language.jsonl":
        assert str(tmp_path / name) in line
    left = list((tmp_path / "made").iterdir() if (tmp_path / "made").exists() else [])
    # Of what is finished the user is told; here that is the text of the other language.
    assert [path.name for path in left] == (["c.parts"] if name == "language.jsonl" else [])
    assert said == [
        f"what is finished is kept in {x}; the same command goes on behind it" for x in left
    ]


def test_records_that_cannot_be_read_are_passed_over_on_request(tmp_path, prepare):
    """Counted by reason, the first ones named by their lines, kept in the manifest; files that are cut still end it."""
    faulty = [data.split(GOOD)[-1] for data, message in list(FAULTS.values())[:5]]
    (tmp_path / "a.jsonl").write_bytes(GOOD + b"".join(faulty) + b"{\n" * 4)
    options = ("--input", tmp_path / "a.jsonl", "--on_error", "skip")
    assert prepare(tmp_path / "c", *options).returncode == 0
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    assert manifest["documents"] == 1
    assert manifest["faulty_records"] == {
        "field 'text' holds half a surrogate pair": 1,
        "field 'text' is a int": 1,
        "invalid JSON": 5,
        "invalid UTF-8": 1,
        "no field 'text'": 1,
    }
    said = prepare(tmp_path / "d", *options, workers=2).stderr
    at = said.index("records that were passed over:\n           5  invalid JSON\n")
    table = said[at:].splitlines()
    assert [re.match(f"{' ' * 14}{tmp_path}/a.jsonl, line (\\d+): ", x)[1] for x in table[2:5]] == [
        *("3", "7", "8")
    ]
    assert content(tmp_path / "c") == content(tmp_path / "d")
    # What is left is the corpus of the records that can be read, but for what the manifest says of the others.
    (tmp_path / "good.jsonl").write_bytes(GOOD)
    assert prepare(tmp_path / "good", "--input", tmp_path / "good.jsonl").returncode == 0
    assert content(tmp_path / "good")[0] == content(tmp_path / "c")[0]
    (tmp_path / "a.jsonl.gz").write_bytes(FAULTS["cut.jsonl.gz"][0])
    done = prepare(tmp_path / "e", "--input", tmp_path / "a.jsonl.gz", "--on_error", "skip")
    assert done.returncode == 2
    assert "damaged or not compressed as its name says" in done.stderr


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


@pytest.mark.parametrize(("kilobytes", "left"), [(1, []), (125, ["c.parts"])])
def test_a_disk_that_is_full(tmp_path, corpus, model, kilobytes, left):
    """A limit on the size of files fails writes as a full disk does: first a part's, then a shard's."""
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
    *_, line = done.stderr.splitlines()
    assert re.match(f"error: (cannot write a shard: .*)?{tmp_path}/c\\b.*$", line), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == left


@pytest.mark.parametrize("wrong", [324, 1])
def test_an_id_that_no_model_has_a_row_for(tmp_path, monkeypatch, wrong):
    """Or that ends a document, and `load_tokenizer` has not found: the document is named, no corpus is written."""
    encode = HuggingFaceTokenizer.encode_batch

    def encode_wrongly(self, texts):
        found = zip(texts, encode(self, texts), strict=True)
        return [[*ids, wrong, 20] if "odd" in text else ids for text, ids in found]

    monkeypatch.setattr(HuggingFaceTokenizer, "encode_batch", encode_wrongly)
    lines = [("en", "a text"), ("en", "an odd one"), ("de", "ein Text")]
    (tmp_path / "in.jsonl").write_bytes(to_jsonl(lines))
    inputs, _ = find_inputs([tmp_path / "in.jsonl"], None)
    settings = Settings(write_small_tokenizer(tmp_path / "tok"), Fields(), (16,), held_out=0.0)
    with pytest.raises(
        UserError, match=f"in.jsonl, line 2: .* gives the id {wrong} within the text"
    ):
        prepare_corpus(inputs, settings, tmp_path / "c", 1, "test")
    assert not (tmp_path / "c").exists()


def test_a_folder_that_cannot_be_written(tmp_path, prepare, run_tool, corpus):
    """The programs run as root here, who may write anywhere, so the folder is one of the kernel's."""
    for done in (
        prepare("/proc/c", "--input", corpus[1]),
        run_tool(
            *("train_tokenizer", "--input", corpus[1], "--vocab_size", 600, "--output", "/proc/t")
        ),
    ):
        assert done.returncode == 2
        (line,) = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
        assert line.startswith("error: /proc")
        assert "Traceback" not in done.stderr
