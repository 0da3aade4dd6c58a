"""Rows that spoil a run: skipped after enough bad steps, by hand, and not for ever."""

import json
import shutil
import signal

import jax.numpy as jnp
import pytest
from data.tiny_corpus import write_corpus
from tiny import tiny_config

from mmbert_jax import rollback
from mmbert_jax.checkpoint import read_meta
from mmbert_jax.errors import UserError
from mmbert_jax.metrics import read_metrics, read_set_aside
from mmbert_jax.model.masking import mask_tokens
from mmbert_jax.optim.schedules import phase_rows
from mmbert_jax.parallel.processes import RESTART
from mmbert_jax.run import SKIPPED_ROWS, checkpoint, list_checkpoints
from mmbert_jax.step import compile_train_step
from mmbert_jax.train import train


@pytest.fixture(scope="module")
def compiled():
    return {}


@pytest.fixture
def run(tmp_path, monkeypatch, compiled):
    """A function that trains as far as it goes, with NaN in the loss of the given rows; it returns the exit status."""
    corpus = write_corpus(tmp_path / "corpus", {"eng": 400}, row_length=64)
    # More rows in the embedding than the tokeniser has entries.
    overrides = {"model__vocab_size": 2304, "mesh__data": 8, "train__batch_warmup_tokens": 0}
    config = tiny_config(data__corpus=str(corpus), train__max_skipped_steps=2, **overrides)

    def run(bad_rows=(), by_hand=None, every_steps=2) -> int:
        config.checkpoint.every_steps = every_steps

        def poisoned(key, rows, *args, **options):
            assert options["vocabulary"] == 2048
            *targets, weights = mask_tokens(key, rows, *args, **options)
            bad = jnp.isin(rows[:, 1], jnp.array([*bad_rows, 10**6], jnp.uint32))
            return *targets, jnp.where(bad[:, None], jnp.nan, weights)

        def compile_once(*arguments):
            if bad_rows not in compiled:
                compiled[bad_rows] = compile_train_step(*arguments)
            return compiled[bad_rows]

        monkeypatch.setattr("mmbert_jax.step.mask_tokens", poisoned)
        monkeypatch.setattr("mmbert_jax.train.compile_train_step", compile_once)
        try:
            train(config, tmp_path / "run", by_hand)
        except SystemExit as end:
            return end.code
        finally:  # train() catches signals to the end of its program
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return 0

    run.folder, run.rows = tmp_path / "run", phase_rows(config.train, 64)
    return run


def steps_by_row(folder) -> list[int]:
    """The row after each step, from the metrics."""
    return [r["tokens"] // 64 for r in read_metrics(folder) if "loss" in r]


def test_bad_rows_are_skipped_from_the_checkpoint_before_them(run):
    # Steps take 16 rows. Steps 5 and 6 are bad, and the newest checkpoint before them is that of step 4, row 64.
    bad = range(70, 100)
    assert run(bad) == RESTART
    stretch = {"step": 4, "first": 64, "stop": 96, "reason": "no finite gradients"}
    assert rollback.read_stretches(run.folder) == [stretch]
    assert run(bad) == 0
    # Rows 96 to 99 and what stands with them were bad as well, but one bad step in a row does nothing.
    assert steps_by_row(run.folder)[:5] == [16, 32, 48, 64, 112]
    # What made it go back stays on record.
    gone = read_set_aside(run.folder)
    assert [record["step"] for record, _ in gone] == [5, 6]
    assert {(note["back_to_step"], note["why"]) for _, note in gone} == {
        (4, "rolled back: no finite gradients")
    }


def test_going_back_by_hand(run):
    assert run() == 0
    steps = [int(path.name) for path in list_checkpoints(run.folder)]
    assert steps == [8, 10, 12]
    losses = [r["loss"] for r in read_metrics(run.folder) if "loss" in r]
    assert run(by_hand=(8, 20)) == 0
    assert steps_by_row(run.folder) == [*range(16, 129, 16), 164, 180, 192]
    assert [r["loss"] for r in read_metrics(run.folder) if "loss" in r][:8] == losses[:8]
    names = {path.name for path in (run.folder / "checkpoints").iterdir()}
    assert {"rolled-back-10", "rolled-back-12", "8", "10", "11"} <= names
    (stretch,) = read_meta(run.folder)["skipped_rows"]
    assert (stretch["first"], stretch["stop"]) == (128, 148)
    # A restarted job says the same again: it has been done.
    before = sorted(run.folder.rglob("*"))
    assert run(by_hand=(8, 20)) == 0
    assert sorted(run.folder.rglob("*")) == before
    with pytest.raises(
        UserError, match=r"no checkpoint at step 9 to go back to; there are \[8, 10, 11\]"
    ):
        run(by_hand=(9, 20))
    with pytest.raises(UserError, match="of the phase's 192 rows none is left"):
        run(by_hand=(8, 64))


def fake_run(folder, rows):
    """A run folder with checkpoints of nothing but their row."""
    for step, row in rows.items():
        path = checkpoint(folder, step) / "meta" / "metadata"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"row": row}))
    return folder


def test_a_rollback_that_was_done_is_recognised(tmp_path):
    """Said again by a launcher, as often as it likes, also when `keep` has removed the checkpoint long since."""
    run = fake_run(tmp_path / "run", {8: 128, 10: 160})
    back = rollback.roll_back(run, 8, 20, 8, 1000)  # any number of rows, not whole microbatches
    assert "skipping rows 128 to 148; set aside 1 newer" in back
    noted = rollback.read_stretches(run)
    assert (noted[0]["first"], noted[0]["stop"]) == (128, 148)
    shutil.rmtree(checkpoint(run, 8))
    fake_run(run, {30: 500})
    assert "went back to step 8 before" in rollback.roll_back(run, 8, 20, 8, 1000)
    assert rollback.read_stretches(run) == noted
    with pytest.raises(UserError, match="no checkpoint at step 8 to go back to"):
        rollback.roll_back(run, 8, 24, 8, 1000)  # another request
    # Asked for after the run has gone back further, it is a new one.
    fake_run(run, {4: 64})
    rollback.roll_back(run, 4, 0, 8, 1000)
    fake_run(run, {8: 130})
    assert "skipping rows 130 to 150" in rollback.roll_back(run, 8, 20, 8, 1000)
    assert len(rollback.read_stretches(run)) == 3


def test_a_rollback_of_an_older_version_is_recognised(tmp_path):
    """It rounded the rows up to whole microbatches, and did not note what it had been asked for."""
    run = fake_run(tmp_path / "run", {30: 500})
    old = {"step": 8, "first": 128, "stop": 152, "reason": "by hand"}
    (run / SKIPPED_ROWS).write_text(json.dumps([old]))
    assert "went back to step 8 before" in rollback.roll_back(run, 8, 20, 8, 1000)
    with pytest.raises(UserError, match="no checkpoint at step 8 to go back to"):
        rollback.roll_back(run, 8, 30, 8, 1000)


# A row of every step from row 64 on.
HOPELESS = range(64, 10**4, 16)


def test_it_gives_up(run):
    for tries in range(1, rollback.MAX_TRIES + 1):
        assert run(HOPELESS) == RESTART
        assert len(rollback.read_stretches(run.folder)) == tries
    with pytest.raises(UserError, match="skipped rows 3 times without getting to a new checkpoint"):
        run(HOPELESS)
    assert list_checkpoints(run.folder)[-1].name == "4"


def test_no_checkpoint_to_go_back_to(run):
    with pytest.raises(UserError, match="there is no checkpoint from before"):
        run(HOPELESS, every_steps=100)


@pytest.mark.parametrize(("row", "after"), [(0, 0), (7, 7), (8, 24), (15, 24), (23, 24), (24, 24)])
def test_next_row(row, after):
    stretches = [{"first": 16, "stop": 24}, {"first": 8, "stop": 17}]
    assert rollback.next_row(row, stretches) == after


def test_damaged_list_is_named(tmp_path):
    (tmp_path / SKIPPED_ROWS).write_text(json.dumps([{"first": 1}])[:-1])
    with pytest.raises(UserError, match=r"skipped_rows\.json: damaged"):
        rollback.read_stretches(tmp_path)
