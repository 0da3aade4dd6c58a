"""Parquet: files that Arrow wrote in all the ways it can, and damaged ones."""

import resource

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmbert_jax.data.sources import parquet
from mmbert_jax.errors import UserError

TEXTS = ["one", None, "zwei\nZeilen", "", "𠮷野家", "one"] * 50
META = [None if i % 7 == 0 else {"lang": f"l{i % 3}", "n": {"deep": i}} for i in range(len(TEXTS))]


def table(text_type=None):
    text = pa.array(TEXTS)
    if text_type is not None:
        text = text.dictionary_encode() if text_type == "dictionary" else text.cast(text_type)
    columns = {"text": text, "meta": pa.array(META), "a.b": pa.array(range(len(TEXTS)))}
    vectors = pa.array(np.zeros((len(TEXTS), 100)).tolist())
    return pa.table(columns | {"embedding": vectors})


def read(path, columns, start=0, stop=None):
    stop = len(parquet.row_groups(path)) if stop is None else stop
    return list(parquet.read_rows(path, start, stop, columns))


def stored(text):
    return None if text is None else text.encode()


EXPECTED = [(i, {"text": stored(text)}) for i, text in enumerate(TEXTS, 1)]


@pytest.mark.parametrize(
    "text_type", [None, "dictionary", pa.large_string(), pa.binary(), pa.string_view()]
)
@pytest.mark.parametrize("options", [{}, {"compression": "zstd", "use_dictionary": False}])
def test_every_way_to_store_text(tmp_path, text_type, options):
    path = tmp_path / "a.parquet"
    pq.write_table(table(text_type), path, row_group_size=70, **options)
    assert parquet.row_groups(path) == [70, 70, 70, 70, 20]
    assert read(path, ["text"]) == EXPECTED
    assert read(path, ["text"], 1, 3) == EXPECTED[70:210]
    assert read(path, ["text"], 4, 5) == EXPECTED[280:]


def test_names_reach_into_structs_unless_a_column_has_the_name(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(table(), path)
    assert parquet.column_names(path) == ["text", "meta.lang", "meta.n.deep", "a.b", "embedding"]
    for (i, row), meta in zip(
        read(path, ["meta.lang", "meta.n.deep", "a.b", "no"]), META, strict=True
    ):
        lang, deep = (stored(meta["lang"]), meta["n"]["deep"]) if meta else (None, None)
        assert row == {"meta.lang": lang, "meta.n.deep": deep, "a.b": i - 1}
    assert read(path, ["no.such"])[-1] == (len(TEXTS), {})


def test_only_what_is_needed_is_read(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    wide = {
        "text": ["a"] * 1000,
        "embedding": np.random.default_rng(0).random((1000, 300)).tolist(),
    }
    pq.write_table(pa.table(wide), path, row_group_size=500)
    got = []

    class Counting:
        def __init__(self, file):
            self._file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self._file.close()

        def read(self, size=-1):
            data = self._file.read(size)
            got.append(len(data))
            return data

        def __getattr__(self, name):
            return getattr(self._file, name)

    class Remote:
        """A path that is not the disk's, so that it is read as a bucket's objects are."""

        def open(self, mode):
            return Counting(path.open(mode))

        def __str__(self):
            return "gs://bucket/a.parquet"

    assert [row["text"] for _, row in read(Remote(), ["text"])] == [b"a"] * 1000
    assert sum(got) < path.stat().st_size / 10


def test_memory_does_not_follow_the_row_group(tmp_path):
    path = tmp_path / "a.parquet"
    draw = np.random.default_rng(0)
    texts = [draw.bytes(500_000).hex() for _ in range(100)]  # 100 MB in one row group
    # One text a page: a page is read as a whole.
    pq.write_table(pa.table({"text": texts}), path, use_dictionary=False, write_batch_size=1)
    lengths = [len(text) for text in texts]
    del texts
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pool = pa.default_memory_pool()
    at_start, most, found = pool.bytes_allocated(), 0, []
    for _, row in parquet.read_rows(path, 0, 1, ["text"]):
        found.append(len(row["text"]))
        most = max(most, pool.bytes_allocated() - at_start)
    assert found == lengths
    assert most < 16 << 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


@pytest.mark.parametrize("size", [0, 3, 12, 500, -1, -8, -300])
def test_truncated(tmp_path, size):
    path = tmp_path / "a.parquet"
    pq.write_table(table(), path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=f"^{path}: damaged, or no Parquet"):
        read(path, ["text"])


def test_flipped_bytes_never_do_more_than_raise(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(table(), path, row_group_size=100)
    data = path.read_bytes()
    # Not in the footer: there Arrow itself can end the process.
    data_end = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    draw = np.random.default_rng(0)
    faults = 0
    for _ in range(300):
        changed = bytearray(data)
        for at in draw.integers(4, data_end, 8):
            changed[at] = draw.integers(256)
        path.write_bytes(changed)
        fault = None
        try:
            read(path, ["text", "meta.lang"])
        except UserError as error:
            fault = str(error)
        assert fault is None or fault.startswith(str(path))
        faults += fault is not None
    assert faults > 50
