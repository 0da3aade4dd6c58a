"""Exact duplicates: the first of equal texts is kept, whatever the formats, the workers and the interruptions."""

import gzip
import json
import re
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prepared import OPTIONS, content, read_rows, to_jsonl

from mmbert_jax.data.corpus import locate_document
from mmbert_jax.data.prepare import Settings, duplicates, prepare_corpus
from mmbert_jax.data.sources import Fields, find_inputs
from mmbert_jax.places import files_under, place

OPTIONS = (*OPTIONS[:-1], 3)  # some documents are moved to the held-out ones afterwards


@pytest.fixture(scope="module")
def planted(records, tmp_path_factory):
    """(folder, records in order of the inputs): three files of two formats with copies within and across languages."""
    folder = tmp_path_factory.mktemp("planted")
    copies = [("xx", text) for _, text in records[:30]]
    files = [records, records[20:90] + copies, copies[:20] + records[100:] + [("yy", "new")] * 3]
    (folder / "a.jsonl").write_bytes(to_jsonl(files[0]))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(to_jsonl(files[1])))
    columns = zip(*files[2], strict=True)
    table = pa.table(dict(zip(("language", "text"), columns, strict=True)))
    pq.write_table(table, folder / "c.parquet", row_group_size=17)
    return folder, [(i, n, *x) for i, file in enumerate(files) for n, x in enumerate(file, 1)]


@pytest.fixture(scope="module")
def first(planted):
    """The records that are to be kept: (file, number, language, text)."""
    found = {}
    for record in planted[1]:
        if record[-1].strip():
            found.setdefault(record[-1], record)
    return list(found.values())


@pytest.fixture(scope="module")
def deduplicated(planted, prepare, tmp_path_factory):
    folder = tmp_path_factory.mktemp("deduplicated")
    text = ("--input", planted[0], "--deduplicate", "exact")
    done = prepare(folder / "c", *text, *OPTIONS)
    assert done.returncode == 0, done.stderr
    return folder / "c", done.stdout


def test_the_first_of_equal_texts_is_kept(planted, first, deduplicated, prepare, tmp_path):
    """The rows are those of the kept texts by themselves, and each document is the first that has its text."""
    folder, said = deduplicated
    (tmp_path / "first.jsonl").write_bytes(to_jsonl([record[2:] for record in first]))
    done = prepare(tmp_path / "c", "--input", tmp_path / "first.jsonl", *OPTIONS)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((folder / "manifest.json").read_text())
    texts = sum(text.strip() != "" for *_, text in planted[1])
    dropped = texts - len(first)
    assert dropped > 200
    assert manifest["dropped_documents"] == {"duplicate": dropped}
    assert f"{dropped} documents dropped: duplicate\n" in said
    of_unique = content(tmp_path / "c")[1]
    for name in ("documents", "tokens", "bytes"):
        assert manifest[name] == of_unique[name]
    places = set()
    for row_length in (64, 256):
        for split in ("train", "held_out"):
            found = read_rows(folder, row_length, split)
            alone = read_rows(tmp_path / "c", row_length, split)
            assert len(found) > 1
            assert [tokens for tokens, _ in found] == [tokens for tokens, _ in alone]
            places |= {locate_document(manifest, x) for _, ids in found for x in ids}
    files = [planted[0] / name for name in ("a.jsonl", "b.jsonl.gz", "c.parquet")]
    assert places == {(str(files[file]), number) for file, number, *_ in first}


@pytest.mark.parametrize("workers", [2, 3])
def test_the_number_of_processes_changes_no_byte(planted, deduplicated, prepare, tmp_path, workers):
    text = ("--input", planted[0], "--deduplicate", "exact")
    done = prepare(tmp_path / "c", *text, *OPTIONS, workers=workers)
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "c") == content(deduplicated[0])
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize("store", ["gs_bucket", "s3_bucket"])
def test_in_a_bucket_the_bytes_are_the_same(request, planted, deduplicated, prepare, store):
    """What is compared lies there, too, and is gone afterwards."""
    bucket = place(request.getfixturevalue(store))
    text = ("--input", planted[0], "--deduplicate", "exact")
    done = prepare(bucket / "c", *text, *OPTIONS, workers=2)
    assert done.returncode == 0, done.stderr
    for path in deduplicated[0].glob("*.npy"):
        assert (bucket / "c" / path.name).read_bytes() == path.read_bytes()
    assert {path.relative_to(bucket).parts[0] for path in files_under(bucket)} == {"c"}


def test_the_same_text_twice_gives_the_same_bytes(deduplicated, planted, prepare, tmp_path):
    """Of a file and its copy all of the copy is dropped; a language may be left with nothing."""
    for name in ("1", "2"):
        shutil.copytree(planted[0], tmp_path / name)
    text = ("--input", tmp_path / "1", tmp_path / "2", "--deduplicate", "exact")
    done = prepare(tmp_path / "c", *text, *OPTIONS)
    assert done.returncode == 0, done.stderr
    (files, manifest), (alone, of_one) = content(tmp_path / "c"), content(deduplicated[0])
    assert files == alone
    dropped, more = of_one.pop("dropped_documents"), manifest.pop("dropped_documents")
    assert more["duplicate"] == 2 * dropped["duplicate"] + of_one["documents"]
    assert manifest.pop("empty_documents") == 2 * of_one.pop("empty_documents")
    assert manifest == of_one
    assert "xx" not in manifest["row_lengths"]["64"]["train"]["languages"]


@pytest.fixture
def in_process(planted, model, tmp_path, monkeypatch):
    """Prepares here, with many parts, as many groups, and some five ranges of hashes."""
    monkeypatch.setattr("mmbert_jax.data.sources.pieces.LEAST", 1)
    monkeypatch.setattr(duplicates, "_GROUP", 1)
    monkeypatch.setattr(duplicates, "_RANGE", 100)
    settings = Settings(
        place(model), Fields(), (64, 256), 0.25, 3, shard_tokens=3000, deduplicate=True
    )

    def run(files, **options):
        inputs, _ = find_inputs(files, None)
        return prepare_corpus(
            inputs, settings, tmp_path / "c", 1, "test", overwrite=True, **options
        )

    return run


def finished(capsys):
    """How many parts are said to be finished, and of how many."""
    found = re.search(r"(\d+) of (\d+) parts are finished already", capsys.readouterr().err)
    return tuple(map(int, found.groups()))


def test_interrupted_it_goes_on_and_more_files_are_compared_with_what_is_there(
    in_process, planted, deduplicated, tmp_path, monkeypatch, capsys
):
    files = sorted(planted[0].iterdir())
    in_process(files[1:], keep_parts=True)
    capsys.readouterr()

    def interrupted(job):
        write(job)
        raise KeyboardInterrupt

    write = duplicates.write_masks
    with monkeypatch.context() as patch:
        patch.setattr(duplicates, "write_masks", interrupted)
        with pytest.raises(KeyboardInterrupt):
            in_process(files)
    made, parts = finished(capsys)
    assert made == 2
    assert parts > 60
    in_process(files)
    assert finished(capsys) == (parts, parts)
    found, expected = content(tmp_path / "c"), content(deduplicated[0])
    assert found == expected
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_parts_with_masks_serve_a_corpus_without(in_process, planted, model, tmp_path):
    """What was dropped once is there again when nothing is to be dropped."""
    files = sorted(planted[0].iterdir())
    manifest = in_process(files, keep_parts=True)
    settings = Settings(place(model), Fields(), (64,), 0.25, 3, shard_tokens=3000)
    inputs, _ = find_inputs(files, None)
    whole = prepare_corpus(inputs, settings, tmp_path / "c", 1, "test", overwrite=True)
    assert "dropped_documents" not in whole
    assert whole["documents"] == manifest["documents"] + manifest["dropped_documents"]["duplicate"]
