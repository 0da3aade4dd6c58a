"""From rows of the corpus to batches on the devices of a mesh."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mmbert_jax.data.pipeline import PhaseData, microbatches, open_data
from mmbert_jax.optim.schedules import batch_rows, mixture_rows, phase_rows
from mmbert_jax.parallel.processes import RESTART
from mmbert_jax.parallel.sharding import local_rows, put_rows
from mmbert_jax.rollback import Stretch, next_row
from mmbert_jax.step import phase_seed
from mmbert_jax.watchdog import deadline


def open_phase(config: ConfigDict) -> PhaseData:
    """The training rows of the phase of a config; errors as of `open_data`."""
    rows = phase_rows(config.train, config.data.row_length)
    return open_data(config.data, rows, phase_seed(config), mixture_rows(config))


def read_batches(
    config: ConfigDict,
    data: PhaseData,
    mesh: Mesh,
    row: int,
    rows: int,
    stretches: Sequence[Stretch] = (),
) -> Iterator[tuple[dict[str, jax.Array], int]]:
    """Batches from global row `row` on, on the devices, each with the number of microbatches that it holds.

    Every batch has the shape of the largest, [microbatches, rows of one, L]; what is not needed is zero. Each process
    reads the rows that its devices need. Batches that would start inside a stretch of skipped rows start behind it.
    """
    microbatch_rows = config.train.microbatch_rows
    slots = config.train.batch_rows // microbatch_rows
    mine = local_rows(mesh, microbatch_rows, "config.train.microbatch_rows")
    minutes = config.data.stall_minutes
    stalled = (
        f"no batch came within {minutes} minutes (config.data.stall_minutes): what holds {config.data.corpus} does not"
        " answer. The same command, run again, goes on from the newest checkpoint"
    )

    def stream_from(row: int) -> Iterator[dict[str, np.ndarray]]:
        workers, prefetch = config.data.loader_workers, config.data.prefetch
        return microbatches(data, microbatch_rows, row, mine, workers, prefetch)

    stream = stream_from(row)
    while row < rows:
        # After a skipped stretch the phase need not end with a whole batch.
        wanted = min(batch_rows(config.train, row, config.data.row_length), rows - row)
        count = wanted // microbatch_rows
        with deadline(60 * minutes, stalled, RESTART):
            parts = [next(stream) for _ in range(count)]
        empty = [{name: np.zeros_like(x) for name, x in parts[0].items()}] * (slots - count)
        batch = {name: np.stack([part[name] for part in parts + empty]) for name in parts[0]}
        yield put_rows(mesh, microbatch_rows, batch), count
        row += count * microbatch_rows
        if (after := next_row(row, stretches)) > row:
            row, stream = after, stream_from(after)
