"""From rows of the corpus to batches on the devices of a mesh."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mmbert_jax.data.language_codes import check_names
from mmbert_jax.data.mixture import all_languages
from mmbert_jax.data.pipeline import PhaseData, microbatches, open_data
from mmbert_jax.optim.schedules import batch_rows, mixture_rows, phase_rows
from mmbert_jax.parallel.sharding import local_rows, put_rows
from mmbert_jax.rollback import Stretch, next_row
from mmbert_jax.step import phase_seed
from mmbert_jax.waiting import data_in_time


def open_phase(config: ConfigDict) -> PhaseData:
    """The training rows of the phase of a config; errors as of `open_data`, and for names in `eval.groups`."""
    rows = phase_rows(config.train, config.data.row_length)
    data = open_data(config.data, rows, phase_seed(config), mixture_rows(config))
    languages = {language for manifest in data.manifests for language in all_languages(manifest)}
    for group, names in config.eval.groups.items():
        check_names(f"config.eval.groups.{group}", names, languages)
    return data


def read_batches(
    config: ConfigDict,
    data: PhaseData,
    mesh: Mesh,
    row: int,
    rows: int,
    stretches: Sequence[Stretch] = (),
) -> Iterator[tuple[dict[str, jax.Array], int, int]]:
    """Batches from global row `row` on, on the devices, each with how many microbatches and how many rows it holds.

    Every batch has the shape of the largest, [microbatches, rows of one, L]; what is not needed is zero, in the last
    microbatch too. Which rows a batch holds does not depend on the size of a microbatch. Each process reads the rows
    that its devices need. Batches that would start inside a stretch of skipped rows start behind it.
    """
    microbatch_rows = config.train.microbatch_rows
    slots = -(-config.train.batch_rows // microbatch_rows)
    mine = local_rows(mesh, microbatch_rows, "config.train.microbatch_rows")

    def stream_from(row: int) -> Iterator[dict[str, np.ndarray]]:
        workers, prefetch = config.data.loader_workers, config.data.prefetch
        ranges = MicrobatchRanges(config, row, rows)
        return microbatches(data, microbatch_rows, ranges, mine, workers, prefetch)

    stream = stream_from(row)
    while row < rows:
        wanted = step_rows(config, row, rows)
        count = -(-wanted // microbatch_rows)
        with data_in_time(config):
            parts = [next(stream) for _ in range(count)]
        empty = [{name: np.zeros_like(x) for name, x in parts[0].items()}] * (slots - count)
        batch = {name: np.stack([part[name] for part in parts + empty]) for name in parts[0]}
        yield put_rows(mesh, microbatch_rows, batch), count, wanted
        row += wanted
        if (after := next_row(row, stretches)) > row:
            row, stream = after, stream_from(after)


def step_rows(config: ConfigDict, row: int, rows: int) -> int:
    """Rows of the step that starts at `row` of a phase of `rows`, which after a skipped stretch need not end with a
    whole batch."""
    return min(batch_rows(config.train, row, config.data.row_length), rows - row)


class MicrobatchRanges(Sequence):
    """The global rows [start, stop) of every microbatch from `row` to the end of the phase, in the order of the steps.

    The steps of a growing batch are kept as a list; those of a full one, which may be millions, are computed.
    """

    def __init__(self, config: ConfigDict, row: int, rows: int):
        self.size, self.full, self.end = config.train.microbatch_rows, config.train.batch_rows, rows
        # Of each step until the batch is full, its first row and first microbatch; then those of the first full step.
        self.rows, self.numbers = [row], [0]
        while row < rows and (taken := step_rows(config, row, rows)) < self.full:
            row += taken
            self.rows.append(row)
            self.numbers.append(self.numbers[-1] + -(-taken // self.size))

    def __len__(self) -> int:
        steps, rest = divmod(self.end - self.rows[-1], self.full)
        return self.numbers[-1] + steps * -(-self.full // self.size) + -(-rest // self.size)

    def __getitem__(self, number: int) -> tuple[int, int]:
        if not 0 <= number < len(self):
            raise IndexError(number)
        step = bisect_right(self.numbers, number) - 1
        if step < len(self.numbers) - 1:
            first, stop = self.rows[step], self.rows[step + 1]
            number -= self.numbers[step]
        else:
            step, number = divmod(number - self.numbers[-1], -(-self.full // self.size))
            first = self.rows[-1] + step * self.full
            stop = min(first + self.full, self.end)
        start = first + number * self.size
        return start, min(start + self.size, stop)
