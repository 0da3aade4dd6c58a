"""From global row numbers to microbatches: which rows they are (order.py), read by Grain.

A microbatch is a range of global rows, of which each process reads those that its devices need. Which documents a step
sees depends on nothing else: not on processes, worker processes, prefetching or where a run resumed.
"""

import dataclasses
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from mmbert_jax.data import corpus
from mmbert_jax.data.mixture import Mixture, build_mixture, source_names
from mmbert_jax.data.order import RowOrder
from mmbert_jax.data.rows import Rows, read_records
from mmbert_jax.data.special_ids import SpecialIds, from_record
from mmbert_jax.data.tokenizer_identity import same_tokenizer
from mmbert_jax.errors import UserError
from mmbert_jax.places import Place, place

Batch = dict[str, np.ndarray]
# Threads that wait for a bucket's answers, each for those of one microbatch.
MOST_THREADS = 32
_EMPTY = np.zeros(0, np.uint32), np.zeros(0, np.uint32)


@dataclasses.dataclass(frozen=True)
class PhaseData:
    """The training rows of a phase.

    Attributes:
      manifests, sources: of each corpus its manifest and its rows as bytes, addressed by row number.
      tokenizer: what the manifests say of the tokeniser, which is the same for all.
    """

    mixture: Mixture
    order: RowOrder
    row_length: int
    manifests: tuple[corpus.Manifest, ...]
    sources: tuple[Rows | tuple[()], ...]

    @property
    def tokenizer(self) -> dict[str, Any]:
        return self.manifests[0]["tokenizer"]

    @property
    def special(self) -> SpecialIds:
        return from_record(self.tokenizer)


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a global row comes from: row number `row` of its language in its corpus, in pass `pass_number` from 0."""

    source: str
    language: str
    pass_number: int
    row: int
    document_ids: tuple[int, ...]
    documents: tuple[tuple[str, int], ...]  # (input file, line) of each document id


def open_data(
    data_config: Mapping, phase_rows: int, seed: int, mixture_rows: int | None = None
) -> PhaseData:
    """Opens the corpora of a phase, checks their shards, and settles the mixture and the order of rows.

    Args:
      mixture_rows: as in `build_mixture`.

    Raises:
      UserError: a corpus is missing or damaged, corpora do not fit together, or the config cannot be met.
    """
    folders, manifests = find_corpora(data_config)
    mixture = build_mixture(data_config, phase_rows, manifests, mixture_rows)
    row_length = data_config["row_length"]
    order = RowOrder([e.share for e in mixture.entries], [e.rows for e in mixture.entries], seed)
    sources = tuple(
        corpus.rows_source(folder, manifest, row_length, "train")
        for folder, manifest in zip(folders, manifests, strict=True)
    )
    return PhaseData(mixture, order, row_length, manifests, sources)


def find_corpora(data_config: Mapping) -> tuple[tuple[Place, ...], tuple[corpus.Manifest, ...]]:
    """(folders, manifests): one corpus for all sources, or one for each in the order of `source_names`.

    Raises:
      UserError: there is none, one is damaged, or they were prepared with different tokenisers.
    """
    folder = place(data_config["corpus"])
    if not data_config["corpus"] or not folder.is_dir():
        raise UserError(
            f"config.data.corpus={data_config['corpus']}: no such folder; name another, or make a corpus there:"
            " python tools/prepare_corpus.py --input TEXT.jsonl --tokenizer TOKENIZER --row_length"
            f" {data_config['row_length']} --output {data_config['corpus'] or 'corpora'}"
        )
    if (folder / corpus.MANIFEST).exists():
        folders = (folder,)
    else:
        folders = tuple(folder / name for name in source_names(data_config))
    manifests = tuple(corpus.read_manifest(folder) for folder in folders)
    for other, manifest in zip(folders, manifests, strict=True):
        if not same_tokenizer(manifest["tokenizer"], manifests[0]["tokenizer"]):
            raise UserError(
                f"{other} was prepared with another tokeniser than {folders[0]}: prepare it again with that one"
            )
    return folders, manifests


def microbatches(
    phase_data: PhaseData,
    microbatch_rows: int,
    ranges: Sequence[tuple[int, int]],
    rows: Sequence[int] | None = None,
    workers: int = 0,
    prefetch: int = 2,
) -> Iterator[Batch]:
    """This process's rows of the microbatches that hold these ranges of global rows, one after the other.

    Args:
      microbatch_rows: rows of a microbatch on all processes together.
      ranges: global rows [start, stop) of each microbatch, at most `microbatch_rows`; what is left of one is padding.
        Only its length is asked for and items by number; worker processes get it pickled.
      rows: which of them to read, from 0; all by default.
      workers: processes that read; 0 reads in threads of this process. Needs the usual `if __name__ == "__main__":`
        in the program's main module, which worker processes import.
      prefetch: microbatches read ahead, in all workers together; more where rows come from a bucket, which takes its
        time for each but gives many at once.

    Yields:
      `tokens`, `segment_ids`, `positions`: int32 [len(rows), row_length].
    """
    rows = np.arange(microbatch_rows) if rows is None else np.asarray(rows)
    source = _Microbatches(phase_data, ranges, rows)
    in_flight = max((rows.in_flight for rows in phase_data.sources if rows), default=1)
    prefetch = max(prefetch, -(-in_flight // max(len(rows), 1)) if in_flight > 1 else 0)
    # A worker takes every n-th microbatch and Grain puts them back in turn, so their number changes nothing.
    ahead = max(1, -(-prefetch // max(workers, 1)))
    threads = min(ahead, MOST_THREADS if in_flight > 1 else 4)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    dataset = grain.MapDataset.source(source).to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():
            # Grain looks at flags of its own when it starts workers; without absl's `app.run` the defaults hold.
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=ahead)
        )
    iterator = iter(dataset)
    stream = (batch for batch in iterator)
    # Whoever drops the stream before its end, be it by leaving the program, also stops the threads and processes.
    weakref.finalize(stream, iterator.close)
    return stream


def first_rows(phase_data: PhaseData, count: int) -> Batch:
    """The first rows of a phase: `tokens`, `segment_ids`, `positions`, int32 [count, row_length]."""
    return _Microbatches(phase_data, [(0, count)], np.arange(count))[0]


def held_out_rows(
    data_config: Mapping, max_rows_per_language: int
) -> tuple[list[tuple[str, int, int]], list[Rows | tuple[()]], SpecialIds]:
    """The held-out rows of every language that the phase's corpora have, whether the phase trains on it or not.

    A language's rows are the first ones of its held-out split; where several corpora have it, they take turns.

    Returns:
      (language, corpus, row) of each, in sorted order of languages, each corpus's rows, of which none is read, and
      the corpora's special ids.
    """
    row_length = data_config["row_length"]
    folders, manifests = find_corpora(data_config)
    rows_of: dict[str, list[tuple[int, int, int]]] = {}  # language -> (turn, corpus, row)
    sources = []
    for index, (folder, manifest) in enumerate(zip(folders, manifests, strict=True)):
        sources.append(corpus.rows_source(folder, manifest, row_length, "held_out"))
        for language, entry in manifest["row_lengths"][str(row_length)]["held_out"][
            "languages"
        ].items():
            for turn in range(min(entry["rows"], max_rows_per_language)):
                rows_of.setdefault(language, []).append((turn, index, entry["first_row"] + turn))
    chosen = [
        (language, index, row)
        for language in sorted(rows_of)
        for _, index, row in sorted(rows_of[language])[:max_rows_per_language]
    ]
    return chosen, sources, from_record(manifests[0]["tokenizer"])


def held_out_batches(
    data_config: Mapping,
    rows_per_batch: int,
    max_rows_per_language: int,
    slots: Sequence[int] | None = None,
) -> Iterator[tuple[Batch, list[str]]]:
    """The rows of `held_out_rows`.

    Args:
      slots: rows of a batch, from 0, that are read; all by default.

    Yields:
      (batch, languages): arrays int32 [len(slots), row_length], and the language of each of the batch's rows whether
      read or not, in sorted order of languages. The last batch is filled up with empty rows, whose language is "".
    """
    chosen, sources, special = held_out_rows(data_config, max_rows_per_language)
    row_length = data_config["row_length"]
    slots = np.arange(rows_per_batch) if slots is None else np.asarray(slots)
    for start in range(0, len(chosen), rows_per_batch):
        part = chosen[start : start + rows_per_batch]
        mine = [part[slot] for slot in slots if slot < len(part)]
        records = _read(sources, [index for _, index, _ in mine], [row for *_, row in mine])
        yield (
            _batch(records, len(slots), row_length, special.pad),
            [language for language, _, _ in part] + [""] * (rows_per_batch - len(part)),
        )


def records_of(phase_data: PhaseData, start_row: int, stop_row: int) -> list[bytes]:
    """The records of the global rows [start_row, stop_row)."""
    entry_index, _, row = phase_data.order.slice(start_row, stop_row)
    entries = [phase_data.mixture.entries[i] for i in entry_index]
    rows = [entry.first_row + int(r) for entry, r in zip(entries, row, strict=True)]
    return _read(phase_data.sources, [entry.corpus for entry in entries], rows)


def documents_of(phase_data: PhaseData, start_row: int, stop_row: int) -> list[Origin]:
    """Where the global rows [start_row, stop_row) come from: what a step that took them has seen."""
    origins = []
    for entry_index, pass_number, row, record in zip(
        *phase_data.order.slice(start_row, stop_row),
        records_of(phase_data, start_row, stop_row),
        strict=True,
    ):
        entry = phase_data.mixture.entries[entry_index]
        ids = tuple(corpus.decode_row(record)[2].tolist())
        places = tuple(corpus.locate_document(phase_data.manifests[entry.corpus], i) for i in ids)
        origins.append(
            Origin(entry.source, entry.language, int(pass_number), int(row), ids, places)
        )
    return origins


class _Microbatches:
    """Microbatches addressed by number, as Grain wants a data source to be.

    Batches are whole before Grain sees them, so that no later stage can change which rows stand together.
    """

    def __init__(self, data: PhaseData, ranges: Sequence[tuple[int, int]], rows: np.ndarray):
        self.order, self.sources, self.row_length = data.order, data.sources, data.row_length
        self.first_row = np.array([e.first_row for e in data.mixture.entries], np.int64)
        self.corpus = np.array([e.corpus for e in data.mixture.entries], np.int64)
        self.ranges = ranges
        self.rows = rows
        self.pad = data.special.pad

    def __len__(self) -> int:
        return len(self.ranges)

    def __getitem__(self, index: int) -> Batch:
        start, stop = self.ranges[int(index)]
        rows = self.rows[self.rows < stop - start]
        entry, _, row = self.order.slice(start, stop)
        entry, row = entry[rows], row[rows]
        row += self.first_row[entry]
        records = _read(self.sources, self.corpus[entry].tolist(), row.tolist())
        return _batch(records, len(self.rows), self.row_length, self.pad)

    def __repr__(self) -> str:  # names the stage in Grain's messages
        return f"{type(self).__name__}({len(self.rows)} x {self.row_length})"


def _read(sources: Sequence[Rows], of_source: Sequence[int], rows: Sequence[int]) -> list[bytes]:
    """Records by source and row, of all sources together."""
    return read_records([sources[i].locate(row) for i, row in zip(of_source, rows, strict=True)])


def _batch(records: Sequence[bytes], rows: int, row_length: int, pad: int) -> Batch:
    """The records as the model takes them, then empty rows."""
    filled = [corpus.decode_row(record)[:2] for record in records]
    return corpus.rows_to_arrays(filled + [_EMPTY] * (rows - len(filled)), row_length, pad)
