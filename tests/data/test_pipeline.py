"""Microbatches: the same rows for any workers and processes, held-out rows, and where a step's documents come from."""

import gc
import time

import numpy as np
import pytest
from tiny_corpus import identify, write_corpus

from mmbert_jax.data import corpus, pipeline
from mmbert_jax.data.pipeline import documents_of, held_out_batches, microbatches, open_data
from mmbert_jax.data.rows import read_records
from mmbert_jax.errors import UserError

ROWS = {"deu": 300, "eng": 1500, "fao": 7, "khm": 64}
HELD_OUT = {"deu": 5, "eng": 30, "fao": 1, "zul": 2}
PHASE_ROWS = 480
MICROBATCH = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_corpus(
        tmp_path_factory.mktemp("pipeline") / "corpus", ROWS, held_out=HELD_OUT, rows_per_shard=400
    )


def data_config(folder, **changes):
    return {
        "corpus": str(folder),
        "row_length": 16,
        "temperature": 0.5,
        "max_passes": 100.0,
        "sources": {
            "english": {"share": 1.0, "languages": ("eng",)},
            "others": {"share": 2.0, "languages": ()},
        },
    } | changes


def ranges(start, stop, microbatch=MICROBATCH):
    """Global rows in microbatches, of which the last may have fewer."""
    return [(i, min(i + microbatch, stop)) for i in range(start, stop, microbatch)]


def rows_read(data, start=0, processes=1, workers=0, prefetch=2, microbatch=MICROBATCH):
    """(language, row) of the phase's rows in the order in which the processes together get them."""
    stop = data.mixture.phase_rows
    streams = [
        microbatches(data, microbatch, ranges(start, stop, microbatch), rows, workers, prefetch)
        for rows in np.split(np.arange(microbatch), processes)
    ]
    read = []
    for batches in zip(*streams, strict=True):
        for batch in batches:
            assert batch["tokens"].shape == (microbatch // processes, 16)
            held = batch["segment_ids"].any(axis=1)
            assert not any(x[~held].any() for x in batch.values())
            read += identify(batch["tokens"][held])
    return read


@pytest.fixture(scope="module")
def data(folder):
    return open_data(data_config(folder), PHASE_ROWS, seed=7)


@pytest.fixture(scope="module")
def expected(data):
    """The order itself, row by row, without the pipeline."""
    languages = sorted(ROWS)
    entries = data.mixture.entries
    order = (data.order[i] for i in range(PHASE_ROWS))
    return [(languages.index(entries[entry].language), row) for entry, _, row in order]


# --- the sequence of rows ---


def test_microbatches_are_the_order(data, expected):
    assert rows_read(data) == expected


def test_microbatches_do_not_depend_on_the_size_of_a_microbatch(data, expected):
    assert rows_read(data, microbatch=60) == expected


@pytest.mark.parametrize("processes", [2, 4])
def test_any_number_of_processes_reads_the_same(data, expected, processes):
    assert rows_read(data, processes=processes) == expected


@pytest.mark.parametrize(("workers", "processes"), [(1, 1), (2, 1), (2, 2)])
def test_any_number_of_workers_reads_the_same(data, expected, workers, processes):
    # Python's resource tracker complains if the collector frees what earlier streams left while it starts a process.
    gc.collect()
    start = PHASE_ROWS - 96
    assert rows_read(data, start, processes, workers, prefetch=4) == expected[start:]


@pytest.mark.parametrize("prefetch", [1, 5, 100])
def test_prefetching_does_not_matter(data, expected, prefetch):
    assert rows_read(data, prefetch=prefetch) == expected


@pytest.mark.parametrize("start", [0, 8, 13, 479, 480])
def test_resumes_from_any_row(data, expected, start):
    """Also between two microbatches; the last one is then filled up with padding."""
    assert rows_read(data, start) == expected[start:]


def test_seed_decides_the_order(folder, expected):
    assert rows_read(open_data(data_config(folder), PHASE_ROWS, seed=8)) != expected


def test_rows_arrive_as_the_model_takes_them(data):
    batch = next(microbatches(data, MICROBATCH, ranges(0, MICROBATCH)))
    assert {name: (x.dtype, x.shape) for name, x in batch.items()} == dict.fromkeys(
        ("tokens", "segment_ids", "positions"), (np.int32, (MICROBATCH, 16))
    )
    # Segments of 5 and 9 tokens, then two of padding.
    np.testing.assert_array_equal(batch["segment_ids"][3], [1] * 5 + [2] * 9 + [0] * 2)
    np.testing.assert_array_equal(batch["positions"][3], [*range(5), *range(9), 0, 0])
    np.testing.assert_array_equal(batch["tokens"][3][[0, 5, 14, 15]], [2, 2, 0, 0])


def test_languages_get_their_shares(folder):
    """Over a whole block, which is longer than the phase above, to within one row."""
    data = open_data(data_config(folder), 4096, seed=7)
    read = rows_read(data, microbatch=512)
    counts = np.bincount([language for language, _ in read], minlength=4)
    root = {language: ROWS[language] ** 0.5 for language in ("deu", "fao", "khm")}
    want = {"eng": 1 / 3} | {k: 2 / 3 * x / sum(root.values()) for k, x in root.items()}
    for language, count in zip(sorted(ROWS), counts, strict=True):
        assert abs(count - 4096 * want[language]) < 1, language


def test_abandoned_streams_stop_their_workers(data):
    stream = microbatches(data, MICROBATCH, ranges(0, PHASE_ROWS), workers=1)
    next(stream)
    start = time.perf_counter()
    del stream
    assert time.perf_counter() - start < 5


# --- several corpora ---


def test_one_corpus_for_each_source(tmp_path):
    write_corpus(tmp_path / "web", {"deu": 40, "eng": 90}, held_out={"eng": 2})
    write_corpus(tmp_path / "books", {"eng": 50}, held_out={"eng": 9, "fra": 1})
    config = data_config(
        tmp_path,
        sources={
            "web": {"share": 3.0, "languages": ()},
            "books": {"share": 1.0, "languages": ("eng",)},
        },
    )
    data = open_data(config, 64, seed=0)
    assert [(e.source, e.language) for e in data.mixture.entries] == [
        ("books", "eng"),
        ("web", "deu"),
        ("web", "eng"),
    ]
    origins = documents_of(data, 0, 64)
    batch = [
        row for batch in microbatches(data, 8, ranges(0, 64)) for row in identify(batch["tokens"])
    ]
    of_corpus = {"books": ["eng"], "web": ["deu", "eng"]}
    assert batch == [(of_corpus[o.source].index(o.language), o.row) for o in origins]

    # English held-out rows come from both in turn: books 0, web 0, books 1, web 1, books 2.
    [(held_out, names)] = held_out_batches(config, 8, 5)
    assert names == ["eng"] * 5 + ["fra"] + [""] * 2
    assert [row for _, row in identify(held_out["tokens"][:6])] == [0, 0, 1, 1, 2, 0]


def test_corpora_with_different_tokenisers_do_not_mix(tmp_path):
    write_corpus(tmp_path / "english", {"eng": 9})
    write_corpus(tmp_path / "others", {"deu": 9}, tokenizer="b")
    with pytest.raises(
        UserError, match=r"others was prepared with another tokeniser than .*english"
    ):
        open_data(data_config(tmp_path), 8, seed=0)


# --- held-out rows ---


@pytest.mark.parametrize("languages", [(), ("deu",)])
def test_held_out_rows_of_all_languages_of_the_corpus(folder, languages):
    """Also of those that the phase does not train on (zul has no training text at all)."""
    config = data_config(folder, sources={"others": {"share": 1.0, "languages": languages}})
    batches = list(held_out_batches(config, 4, 3))
    names = [name for _, of_batch in batches for name in of_batch]
    assert names == ["deu"] * 3 + ["eng"] * 3 + ["fao"] + ["zul"] * 2 + [""] * 3
    tokens = np.concatenate([batch["tokens"] for batch, _ in batches])
    index = {name: i for i, name in enumerate(sorted(HELD_OUT))}
    assert identify(tokens[:9]) == [
        (index[name], row) for name, row in zip(names, [0, 1, 2, 0, 1, 2, 0, 0, 1], strict=False)
    ]
    assert (tokens[:9, 1] == 11).all(), "rows of the held-out split"
    assert all((x[-3:] == 0).all() for x in batches[-1][0].values())
    assert {x.shape for batch, _ in batches for x in batch.values()} == {(4, 16)}


def test_corpus_without_held_out_rows(tmp_path):
    write_corpus(tmp_path / "corpus", {"eng": 9})
    assert list(held_out_batches(data_config(tmp_path / "corpus"), 4, 3)) == []


# --- each process reads its own rows, a batch at a time ---


@pytest.fixture
def reads(monkeypatch):
    """The numbers of rows that were read together, one entry a read."""
    counts = []

    def counted(wanted):
        counts.append(len(wanted))
        return read_records(wanted)

    monkeypatch.setattr(pipeline, "read_records", counted)
    return counts


def test_a_process_reads_its_rows_of_a_microbatch_in_one_go(data, reads):
    mine = [1, 4, 6]
    batches = list(microbatches(data, MICROBATCH, ranges(0, 29), mine))
    assert sorted(reads) == [2, 3, 3, 3]  # of the last five rows two
    for number, whole in enumerate(microbatches(data, MICROBATCH, ranges(0, 29))):
        for name, x in whole.items():
            np.testing.assert_array_equal(batches[number][name], x[mine])


def test_a_process_reads_its_held_out_rows_only(folder, reads):
    config = data_config(folder)
    whole = list(held_out_batches(config, 4, 3))
    assert reads == [4, 4, 1]
    reads.clear()
    for (ours, names), (all_rows, all_names) in zip(
        held_out_batches(config, 4, 3, slots=[1, 3]), whole, strict=True
    ):
        assert names == all_names
        for name, x in ours.items():
            np.testing.assert_array_equal(x, all_rows[name][[1, 3]])
    assert reads == [2, 2, 0]


def test_a_step_s_documents_are_read_in_one_go(data, reads):
    documents_of(data, 16, 40)
    assert reads == [24]


# --- from a step to its documents ---


def test_documents_of_a_step(data, expected):
    """Document ids say input file and line; in this corpus row r of the split is line r + 1."""
    origins = documents_of(data, 16, 40)
    languages = sorted(ROWS)
    assert [(languages.index(o.language), o.row) for o in origins] == expected[16:40]
    for origin in origins:
        assert origin.source == ("english" if origin.language == "eng" else "others")
        first = sum(ROWS[language] for language in languages if language < origin.language)
        line = first + origin.row + 1
        assert origin.documents == (("text.jsonl", line), ("text.jsonl", line))
        assert origin.document_ids == (corpus.document_id(0, line),) * 2
    later = [o for o in documents_of(data, 0, PHASE_ROWS) if o.language == "fao"]
    assert max(o.pass_number for o in later) > 0, "7 rows are read more than once in this phase"


# --- bad input ---


def test_errors_name_the_field_or_the_file(folder, tmp_path):
    with pytest.raises(
        UserError,
        match=r"config\.data\.corpus=.*nowhere: no such folder; name another, or make a corpus",
    ):
        open_data(data_config(tmp_path / "nowhere"), 8, 0)
    with pytest.raises(UserError, match=r"english: no corpus here"):
        open_data(data_config(tmp_path), 8, 0)
    with pytest.raises(UserError, match=r"config\.data\.row_length is 32"):
        open_data(data_config(folder, row_length=32), 8, 0)


def test_truncated_shard_is_named(tmp_path):
    folder = write_corpus(tmp_path / "corpus", ROWS, rows_per_shard=400)
    shard = folder / "train_16-00002.npy"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"train_16-00002\.npy"):
        open_data(data_config(folder), 8, 0)
