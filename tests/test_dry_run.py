"""What a dry run checks, and that it leaves nothing behind."""

import re
import shutil

import pytest
from data.tiny_corpus import write_corpus
from tiny import tiny_config

from mmbert_jax.buckets import upload_folder
from mmbert_jax.dry_run import dry_run
from mmbert_jax.places import objects_under, place


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "text"
    return write_corpus(folder, {"eng": 200}, row_length=64, held_out={"eng": 1})


def config_of(corpus, **overrides):
    sizes = {"model__vocab_size": 2048, "mesh__data": 8}
    return tiny_config(data__corpus=str(corpus), **{**sizes, **overrides})


def test_a_run_that_can_be_started(corpus, tmp_path, capsys):
    before = sorted(corpus.rglob("*"))
    assert dry_run(config_of(corpus), tmp_path / "run")
    printed = capsys.readouterr().out
    assert printed.count("  ok  ") == 13
    assert "data fingerprint" in printed
    assert "14 steps" in printed
    assert printed.endswith("the run can be started\n")
    assert not any(tmp_path.iterdir())
    assert sorted(corpus.rglob("*")) == before


@pytest.mark.parametrize("bucket", ["gs_bucket", "s3_bucket"])
def test_a_run_in_a_bucket(corpus, bucket, request, capsys, monkeypatch):
    monkeypatch.setattr("mmbert_jax.dry_run._step", lambda *_: (True, "not compiled in this test"))
    bucket = place(request.getfixturevalue(bucket))
    upload_folder(corpus, bucket / "corpus", last=None)
    before = objects_under(bucket)
    config = config_of(bucket / "corpus")
    assert dry_run(config, bucket / "run")
    printed = capsys.readouterr().out
    assert re.search(r"reading rows .*: a row takes [\d.]+ ms; .* rows/s", printed)
    assert re.search(rf"disk .*: an object was written to {bucket}/run and removed in", printed)
    assert objects_under(bucket) == before
    for shard in bucket.glob("corpus/held_out*"):
        shard.unlink()
    assert not dry_run(config, bucket / "run")
    assert f"{shard}: shard is missing" in capsys.readouterr().out


def test_too_few_open_files(corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mmbert_jax.dry_run._step", lambda *_: (True, "not compiled in this test"))
    monkeypatch.setattr("resource.getrlimit", lambda _: (100, 100))
    assert not dry_run(config_of(corpus), tmp_path / "run")
    assert "may open 100 files (ulimit -n), and a run wants 128" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "check", "message"),
    [
        ({"mask__ratio": 0.001}, "config", "masks no token of a row"),
        ({"mesh__data": 3}, "mesh", "does not make 8 devices"),
        ({"data__row_length": 32}, "data", "prepare it with --row_length 32"),
        ({"model__vocab_size": 512}, "tokeniser", "set config.model.vocab_size=2048 or more"),
        ({"init_from": "/nowhere"}, "start checkpoint", "no checkpoint at /nowhere"),
    ],
)
def test_what_is_wrong_is_found(corpus, tmp_path, capsys, monkeypatch, overrides, check, message):
    monkeypatch.setattr("mmbert_jax.dry_run._step", lambda *_: (True, "not compiled in this test"))
    assert not dry_run(config_of(corpus, **overrides), tmp_path / "run")
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.startswith(f"FAILED {check}")]
    assert message in line
    assert lines[-1].startswith("1 checks failed")


def test_damaged_shards_full_disks_and_foreign_folders_are_found_together(
    corpus, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("mmbert_jax.dry_run._step", lambda *_: (True, "not compiled in this test"))
    shutil.copytree(corpus, tmp_path / "corpus")
    shard = next((tmp_path / "corpus").glob("train*"))
    shard.write_bytes(shard.read_bytes()[:-50])
    monkeypatch.setattr(
        "shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**6)
    )
    # The folder of the test holds the corpus, so is no run folder.
    assert not dry_run(config_of(tmp_path / "corpus"), tmp_path)
    printed = capsys.readouterr().out
    assert "FAILED data" in printed
    assert shard.name in printed
    assert "is no run folder" in printed
    # Four checkpoints of 3 x 4 bytes for each of the 2048 x 32 embeddings, and the layers.
    assert "FAILED disk" in printed
    assert "has 1.0 MB free, and 4 checkpoints of" in printed
