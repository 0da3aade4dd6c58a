"""tools/prepare_corpus.py and tools/train_tokenizer.py with everything in a bucket, and folders beside a corpus."""

import dataclasses
import json
import shutil

import fsspec
import pytest
from prepared import OPTIONS, content, to_jsonl
from small_tokenizer import write_small_tokenizer

from mmbert_jax.data.prepare import Settings, check_output, prepare_corpus
from mmbert_jax.data.sources import Fields, find_inputs
from mmbert_jax.data.tokenizer import load_tokenizer
from mmbert_jax.errors import UserError
from mmbert_jax.files import check_folder, read_json
from mmbert_jax.places import place


@pytest.fixture(params=["gs_bucket", "s3_bucket"])
def bucket(request):
    return request.getfixturevalue(request.param)


def upload(local, remote):
    system, _ = fsspec.core.url_to_fs(str(remote))
    for path in [local] if local.is_file() else local.rglob("*"):
        if path.is_file():
            name = "" if path == local else f"/{path.relative_to(local)}"
            system.put_file(str(path), f"{remote}{name}")


def download(remote, local):
    system, root = fsspec.core.url_to_fs(str(remote))
    for name in system.find(root):
        target = local / name.removeprefix(root).strip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        system.get_file(name, str(target))
    return local


def test_a_corpus_made_in_a_bucket_is_the_one_made_on_the_disk(
    tmp_path, bucket, corpus, model, prepare
):
    upload(corpus[1], f"{bucket}/text/text.jsonl")
    upload(model, f"{bucket}/tokenizer")
    done = prepare(
        *(f"{bucket}/corpus", "--input", f"{bucket}/text", *OPTIONS),
        tokenizer=f"{bucket}/tokenizer",
        workers=2,
    )
    assert done.returncode == 0, done.stderr
    assert content(download(f"{bucket}/corpus", tmp_path / "c")) == content(corpus[0])
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    assert manifest["inputs"] == [f"{bucket}/text/text.jsonl"]


def test_a_corpus_in_a_bucket_is_replaced_on_request_alone(tmp_path, bucket):
    """By a smaller one, of which nothing else is left."""
    settings = Settings(write_small_tokenizer(tmp_path / "tok"), Fields(), (16, 32), held_out=0.0)
    inputs, _ = find_inputs([write_small(tmp_path)], None)
    output = place(f"{bucket}/corpus")
    prepare_corpus(inputs, settings, output, 1, "first")
    settings = dataclasses.replace(settings, row_lengths=(16,))
    with pytest.raises(UserError, match="corpus: holds a corpus; name a new folder or give --over"):
        prepare_corpus(inputs, settings, output, 1, "second")
    prepare_corpus(inputs, settings, output, 1, "second", overwrite=True)
    names = {path.name for path in output.iterdir()}
    assert names == {"manifest.json", "tokenizer", "train_16-00000.npy"}
    (output / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds something that is no corpus \(notes.txt\)"):
        check_output(output, overwrite=True)


def write_small(folder):
    (folder / "small.jsonl").write_bytes(to_jsonl([("en", "a text")]))
    return folder / "small.jsonl"


def test_a_tokeniser_made_in_a_bucket(tmp_path, bucket, trained, cldr_file, run_tool):
    upload(cldr_file, f"{bucket}/cldr.jsonl")
    done = run_tool(
        *("train_tokenizer", "--input", f"{bucket}/cldr.jsonl", "--vocab_size", 2000),
        *("--output", f"{bucket}/trained"),
    )
    assert done.returncode == 0, done.stderr
    made = download(f"{bucket}/trained", tmp_path / "t")
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json"):
        assert (made / name).read_bytes() == (trained / name).read_bytes()


def test_an_upload_that_ends_half_way_leaves_no_corpus(tmp_path, gs_bucket, monkeypatch):
    """Neither a new one nor, where one was to be replaced, the old one's manifest above other shards."""
    inputs, _ = find_inputs([write_small(tmp_path)], None)
    settings = Settings(write_small_tokenizer(tmp_path / "tok"), Fields(), (16,), held_out=0.0)
    output = place(f"{gs_bucket}/corpus")
    prepare_corpus(inputs, settings, output, 1, "first")
    system, _ = fsspec.core.url_to_fs(str(output))
    copy = system.cp_file

    def fail(source, target, **options):
        if target.endswith("corpus/manifest.json"):
            raise OSError(5, "the network is gone")
        return copy(source, target, **options)

    with monkeypatch.context() as patch:
        patch.setattr(system, "cp_file", fail)
        with pytest.raises(UserError, match="gs:.*corpus: .*the network is gone"):
            prepare_corpus(inputs, settings, output, 1, "second", overwrite=True)
    assert not (output / "manifest.json").exists()
    # The same again, now that the network is back.
    prepare_corpus(inputs, settings, output, 1, "second", overwrite=True)
    assert read_json(output / "manifest.json")["source"] == "second"
    assert not place(f"{gs_bucket}/corpus.parts").exists()


@pytest.mark.parametrize("path", ["ftp://host/c", "hdfs://c", "gs:///c"])
def test_other_schemes_are_refused(tmp_path, path):
    reason = "names no bucket" if path.startswith("gs") else "is not read or written here"
    for use in (load_tokenizer, check_folder):
        with pytest.raises(UserError, match=f"^{path}: .*{reason}"):
            use(path)


def test_text_in_no_bucket_is_refused():
    with pytest.raises(UserError, match="^gs:///c: names no bucket"):
        find_inputs(["gs:///c"], None)


def test_tools_refuse_other_schemes(tmp_path, prepare, run_tool, corpus):
    for done in (
        prepare("ftp://host/c", "--input", corpus[1]),
        run_tool(
            "train_tokenizer", "--input", "a", "--vocab_size", 300, "--output", "ftp://host/c"
        ),
    ):
        assert done.returncode == 2
        assert done.stderr.startswith("error: ftp://host/c: ftp:// is not read or written here")


def test_the_home_folder(tmp_path, prepare, corpus, model, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_small(tmp_path)
    shutil.copytree(model, tmp_path / "tok")
    done = prepare("~/c", "--input", "~/small.jsonl", tokenizer="~/tok")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "c" / "manifest.json").is_file()


def test_hidden_files_do_not_keep_a_corpus_from_being_replaced(tmp_path, corpus):
    folder = shutil.copytree(corpus[0], tmp_path / "c")
    (folder / ".DS_Store").write_bytes(b"\0")
    check_output(folder, overwrite=True)
    with pytest.raises(UserError, match="holds a corpus; name a new folder"):
        check_output(folder, overwrite=False)
