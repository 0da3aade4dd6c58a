"""Batches: the same rows in every step on any mesh, in microbatches of any size, from any row on."""

import jax
import numpy as np
import pytest
from data.tiny_corpus import identify, write_corpus
from tiny import tiny_config

from mmbert_jax.batches import MicrobatchRanges, open_phase, read_batches
from mmbert_jax.data.pipeline import open_data
from mmbert_jax.errors import UserError
from mmbert_jax.optim.schedules import batch_rows, phase_rows
from mmbert_jax.parallel.mesh import make_mesh
from mmbert_jax.step import phase_seed

# Batches of 6, 11 and 16 rows, then of 20: none is a multiple of a microbatch below.
GROWING = {
    "train__batch_rows": 20,
    "train__batch_warmup_from_rows": 6,
    "train__batch_warmup_stage_rows": 5,
    "train__batch_warmup_tokens": 64 * 33 * 2,
    "train__tokens": 64 * 200,
    "data__max_passes": 1e9,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "text"
    return write_corpus(folder, {"deu": 30, "eng": 90, "fao": 7}, row_length=64)


def config_of(corpus, microbatch_rows, **overrides):
    sizes = {"train__microbatch_rows": microbatch_rows, **GROWING, **overrides}
    return tiny_config(data__corpus=str(corpus), **sizes)


def mesh_of(data, fsdp=1, tensor=1):
    return make_mesh(
        {"data": data, "fsdp": fsdp, "tensor": tensor}, jax.devices()[: data * fsdp * tensor]
    )


def steps_of(config, mesh, row=0, rows=None, stretches=()):
    """Of each step, (row, language, row of the language) of all its rows; every batch is checked."""
    rows = phase_rows(config.train, 64) if rows is None else rows
    data = open_data(config.data, rows, phase_seed(config))
    size, slots = (
        config.train.microbatch_rows,
        -(-config.train.batch_rows // config.train.microbatch_rows),
    )
    for batch, count, taken in read_batches(config, data, mesh, row, rows, stretches):
        tokens = np.asarray(batch["tokens"])
        assert tokens.shape == (slots, size, 64)
        assert count == -(-taken // size)
        flat = {name: np.asarray(x).reshape(-1, 64) for name, x in batch.items()}
        assert not any(x[taken:].any() for x in flat.values())
        yield identify(flat["tokens"][:taken])


def expected_steps(config, row=0, rows=None):
    """The same from the order of the data, without batches."""
    rows = phase_rows(config.train, 64) if rows is None else rows
    order = open_data(config.data, rows, phase_seed(config)).order
    while row < rows:
        taken = min(batch_rows(config.train, row, 64), rows - row)
        yield [(order[i][0], order[i][2]) for i in range(row, row + taken)]
        row += taken


@pytest.mark.parametrize(
    ("mesh_shape", "microbatch_rows"),
    [((8, 1, 1), 16), ((2, 1, 1), 8), ((2, 4, 1), 32), ((2, 2, 2), 12)],
)
def test_every_mesh_and_microbatch_have_the_same_rows_in_a_step(
    corpus, mesh_shape, microbatch_rows
):
    """What lies on the devices of a mesh is what the order of the data says, row for row."""
    config = config_of(corpus, microbatch_rows)
    found = list(steps_of(config, mesh_of(*mesh_shape)))
    assert [len(step) for step in found][:7] == [6, 6, 11, 11, 16, 16, 20]
    assert found == list(expected_steps(config))


@pytest.mark.parametrize("row", [12, 17, 195])
def test_a_run_goes_on_from_any_row(corpus, row):
    """Also where one with another microbatch stopped, and to an end that no whole batch reaches."""
    config = config_of(corpus, 8)
    found = list(steps_of(config, mesh_of(1), row, 203))
    assert found == list(expected_steps(config, row, 203))
    assert sum(map(len, found)) == 203 - row


def test_what_is_left_out_need_not_be_whole_microbatches(corpus):
    """Rows 12 to 22 are skipped: the third step begins at row 23, as it does in a run that starts there."""
    config = config_of(corpus, 8)
    stretches = [{"first": 12, "stop": 23}]
    found = list(steps_of(config, mesh_of(1), stretches=stretches))
    assert found[:2] == list(expected_steps(config))[:2]
    assert found[2:] == list(expected_steps(config, 23))


@pytest.mark.parametrize("first", [2**32 - 3, 2**33 + 5])
def test_rows_beyond_32_bits(corpus, first):
    config = config_of(corpus, 8)
    found = list(steps_of(config, mesh_of(1), first, first + 50))
    assert [len(step) for step in found] == [20, 20, 10]
    assert found == list(expected_steps(config, first, first + 50))


@pytest.mark.parametrize("size", [1, 3, 8, 20, 64])
@pytest.mark.parametrize(("row", "rows"), [(0, 400), (6, 6), (7, 46), (61, 400), (399, 400)])
def test_microbatches_are_addressed_by_number(size, row, rows):
    config = config_of("", size)
    expected, first = [], row
    while first < rows:
        stop = first + min(batch_rows(config.train, first, 64), rows - first)
        expected += [(i, min(i + size, stop)) for i in range(first, stop, size)]
        first = stop
    ranges = MicrobatchRanges(config, row, rows)
    assert [ranges[i] for i in range(len(ranges))] == expected
    with pytest.raises(IndexError):
        ranges[len(ranges)]


def test_groups_name_languages_in_any_spelling_and_nothing_else(corpus):
    """A code that the corpus lacks is no mistake, a name that is no code is."""
    named = {"north": ("fo", "swe"), "south": ("de", "eng_Latn")}
    assert open_phase(config_of(corpus, 4, eval__groups=named)).mixture.entries
    with pytest.raises(UserError, match=r"config\.eval\.groups\.north names 'faroish': neither"):
        open_phase(config_of(corpus, 4, eval__groups=named | {"north": ("fo", "faroish")}))
