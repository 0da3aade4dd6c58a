"""Rows in buckets: the same bytes as on a disk, from two emulators; and a store that fails as it is told to."""

import dataclasses
import itertools
import pickle
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from tiny_corpus import write_corpus

from mmbert_jax import buckets
from mmbert_jax.data import corpus, object_rows
from mmbert_jax.data.pipeline import held_out_batches, microbatches, open_data
from mmbert_jax.data.rows import Rows, Shard
from mmbert_jax.errors import UserError
from mmbert_jax.places import place

ROWS = {"deu": 30, "eng": 90}


def data_config(folder):
    return {
        "corpus": str(folder),
        "row_length": 16,
        "temperature": 1.0,
        "max_passes": 100.0,
        "sources": {"web": {"share": 1.0, "languages": ()}},
    }


@pytest.fixture
def folder(tmp_path):
    """120 rows in three shards."""
    return write_corpus(tmp_path / "corpus", ROWS, rows_per_shard=50, held_out={"eng": 2})


@pytest.fixture(params=["gs_bucket", "s3_bucket"])
def copied(request, folder):
    """The same corpus in a bucket."""
    return upload(folder, request.getfixturevalue(request.param))


def upload(folder, bucket):
    there = place(f"{bucket}/{folder.parent.name}/corpus")
    for path in folder.iterdir():
        (there / path.name).write_bytes(path.read_bytes())
    return there


# --- the same as on a disk ---


def test_batches_are_those_of_the_disk(folder, copied):
    batches = []
    for where in (folder, copied):
        data = open_data(data_config(where), 64, seed=3)
        ranges = [(i, i + 8) for i in range(0, 64, 8)]
        batches.append(
            [
                *microbatches(data, 8, ranges, rows=[1, 2, 5]),
                *(batch for batch, _ in held_out_batches(data_config(where), 4, 3)),
            ]
        )
    assert len(batches[0]) == 9
    for ours, theirs in zip(*batches, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name])


def test_one_corpus_for_each_source_in_a_bucket(folder, copied):
    config = data_config(copied.parent) | {
        "sources": {"corpus": {"share": 1.0, "languages": ("eng",)}}
    }
    data = open_data(config, 16, seed=0)
    assert data.sources[0][100] == corpus.rows_source(folder, data.manifests[0], 16, "train")[100]


def test_worker_processes_read_the_same(folder, copied):
    sent = pickle.dumps(corpus.rows_source(copied, corpus.read_manifest(copied), 16, "train"))
    assert len(sent) < 2000
    assert list(pickle.loads(sent)) == list(
        corpus.rows_source(folder, corpus.read_manifest(folder), 16, "train")
    )


def test_a_missing_and_a_changed_object_are_named_at_the_start(folder, copied):
    shard = copied / "train_16-00001.npy"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-5])
    manifest = corpus.read_manifest(copied)
    with pytest.raises(UserError, match=f"{shard}: {len(whole) - 5} bytes where .* {len(whole)}"):
        corpus.rows_source(copied, manifest, 16, "train")
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard}: shard is missing"):
        corpus.rows_source(copied, manifest, 16, "train")
    (copied / "manifest.json").unlink()
    with pytest.raises(UserError, match=f"{copied}: no corpus here"):
        corpus.read_manifest(copied)


def test_an_object_that_changes_meanwhile_is_named(copied):
    source = corpus.rows_source(copied, corpus.read_manifest(copied), 16, "train")
    shard = copied / "train_16-00001.npy"
    whole = shard.read_bytes()
    for changed, words in (
        (whole[:-5], "shorter than it was written"),
        (whole[:140] + bytes([whole[140] ^ 8]) + whole[141:], "row 0 is damaged"),
    ):
        shard.write_bytes(changed)
        with pytest.raises(UserError, match=f"{shard}: .*{words}"):
            source.__getitems__(range(50, 100))
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard}: shard is missing"):
        source[50]


def test_corpora_of_version_1_are_refused(tmp_path, request):
    there = upload(
        write_corpus(tmp_path / "corpus", ROWS, old=True), request.getfixturevalue("gs_bucket")
    )
    with pytest.raises(
        UserError, match=r"train_16-00000.arrayrecord: .* prepare the corpus again, or copy it"
    ):
        corpus.rows_source(there, corpus.read_manifest(there), 16, "train")


# --- stores that fail ---


class Store(ThreadingHTTPServer):
    """Answers ranged reads of one object, each with the status that `statuses` gives next."""

    request_queue_size = 256  # connections that come at once

    def __init__(self, content: bytes, statuses):
        self.content, self.statuses, self.given = content, iter(statuses), []
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)

    def next_status(self) -> int:
        with self.lock:
            self.given.append(next(self.statuses))
            return self.given[-1]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        status, content = self.server.next_status(), b""
        if status == 200:
            first, last = map(
                int, re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups()
            )
            status, content = 206, self.server.content[first : last + 1]
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        if status == 206:
            size = len(self.server.content)
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.send_header("x-goog-generation", "1")
            self.send_header("ETag", '"1"')
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture(params=["gs", "s3"])
def answers(request, tmp_path, monkeypatch):
    """Makes (rows of a shard in a store that answers with these statuses, the records that it holds, the store)."""
    folder = write_corpus(tmp_path / "corpus", {"eng": 50})
    (path,) = folder.glob("train_*")
    records = list(corpus.rows_source(folder, corpus.read_manifest(folder), 16, "train"))
    stores = []

    def make(statuses, retries=4):
        store = Store(path.read_bytes(), statuses)
        stores.append(store)
        threading.Thread(target=store.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{store.server_port}"
        for name in ("TENSORSTORE_GCS_HTTP_URL", "AWS_ENDPOINT_URL"):
            monkeypatch.setenv(name, url)
        for name in ("GOOGLE_AUTH_TOKEN_FOR_TESTING", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "x")
        quick = {"max_retries": retries, "initial_delay": "1ms", "max_delay": "4ms"}
        monkeypatch.setattr(buckets, "RETRIES", quick)
        shard = Shard(f"{request.param}://bucket{len(stores)}/{path.name}", 50, path.stat().st_size)
        object_rows._store.cache_clear()
        return Rows([shard]), records, store

    yield make
    for store in stores:
        store.shutdown()
        store.server_close()
    object_rows._store.cache_clear()


def test_one_failure_in_five_is_tried_again(answers):
    source, records, store = answers(itertools.cycle([200, 200, 503, 200, 200]), retries=16)
    assert source.__getitems__(range(50)) == records
    assert store.given.count(503) >= 10


@pytest.mark.parametrize(
    ("status", "words", "tries"),
    [
        (503, r"the store does not answer \(503\) in 5 tries; run the same command again", 5),
        (429, r"the store does not answer \(429\) in 5 tries; run the same command again", 5),
        (403, r"shard may not be read \(403\): see to the credentials and the bucket's", 1),
        (401, r"shard may not be read \(401\): see to the credentials and the bucket's", 1),
        (404, r"shard is missing \(404\); copy it again or prepare the corpus again", 1),
        (416, r"shard is shorter than it was written: truncated or changed", 1),
    ],
)
def test_what_keeps_failing_names_its_object(answers, status, words, tries):
    source, _, store = answers(itertools.repeat(status))
    with pytest.raises(UserError, match=rf"^(gs|s3)://bucket\d/train_16-00000\.npy: {words}"):
        source[7]
    assert len(store.given) == tries


def test_a_store_that_is_not_there_is_named(answers):
    source, _, store = answers([])
    store.shutdown()
    store.server_close()
    with pytest.raises(
        UserError, match=r"train_16-00000\.npy: the store does not answer .* 5 tries"
    ):
        source[7]


def most_under_way(store):
    """Lets a store take its time; gives a function that says how many requests it had at once."""
    under_way, most = 0, 0
    next_status, lock = store.next_status, threading.Lock()

    def counted():
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.05)
        with lock:
            under_way -= 1
        return next_status()

    store.next_status = counted
    return lambda: most


def test_requests_are_under_way_together_and_bounded(answers, monkeypatch):
    monkeypatch.setattr(object_rows, "REQUESTS_AT_ONCE", 8)
    source, records, store = answers(itertools.repeat(200))
    most = most_under_way(store)
    assert source.__getitems__(range(48)) == records[:48]
    assert most() == 8


def test_small_microbatches_are_read_ahead(answers, tmp_path, monkeypatch):
    """As many as it takes to keep a store busy that answers late, whatever `prefetch` says."""
    monkeypatch.setattr(object_rows, "REQUESTS_AT_ONCE", 16)
    source, _, store = answers(itertools.repeat(200))
    local = open_data(data_config(tmp_path / "corpus"), 400, seed=3)
    there = dataclasses.replace(local, sources=(source,))
    ranges = [(i, i + 2) for i in range(0, 200, 2)]
    most = most_under_way(store)
    begin = time.monotonic()
    batches = list(microbatches(there, 2, ranges))
    seconds = time.monotonic() - begin
    assert 12 <= most() <= 16
    assert seconds < 200 * 0.05 / 6
    for ours, expected in zip(batches, microbatches(local, 2, ranges), strict=True):
        for name, x in expected.items():
            np.testing.assert_array_equal(ours[name], x)


def test_the_manifest_is_looked_for_where_it_is_said(tmp_path):
    with pytest.raises(UserError, match="hdfs:// is not read or written here"):
        corpus.read_manifest("hdfs://there/corpus")
    assert not list(Path(tmp_path).iterdir())
