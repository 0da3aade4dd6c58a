"""What a run may do later than planned: go on for longer, start from another run, be evaluated at last."""

import signal
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from data.tiny_corpus import write_corpus
from tiny import tiny_config

from mmbert_jax.checkpoint import read_meta, restore_params
from mmbert_jax.metrics import read_metrics
from mmbert_jax.parallel.mesh import make_mesh
from mmbert_jax.report.runs import checkpoint_groups, mixture_of, step_groups
from mmbert_jax.run import complete_steps, locate
from mmbert_jax.step import abstract_state, compile_train_step
from mmbert_jax.train import restore_or_start, train

# Tokens of a step of 16 rows, and of a run of four such steps, which goes on for eight.
STEP = 16 * 64
SHORT, LONG = 4 * STEP, 8 * STEP


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Two languages, one of which max_passes holds back."""
    folder = tmp_path_factory.mktemp("corpus") / "text"
    return write_corpus(folder, {"l0": 300, "l1": 8}, row_length=64, held_out={"l0": 1, "l1": 1})


@pytest.fixture(scope="module")
def go(corpus):
    """Trains in this process; programs are compiled once, and signals are caught no longer than a run lasts."""
    compiled = []

    def compile_once(*arguments):
        compiled.append(compiled[0] if compiled else compile_train_step(*arguments))
        return compiled[0]

    def go(workdir, **overrides):
        config = make_config(corpus, **overrides)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("mmbert_jax.train.compile_train_step", compile_once)
            try:
                train(config, workdir)
            finally:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                signal.signal(signal.SIGINT, signal.default_int_handler)

    return go


def make_config(corpus, **overrides):
    config = tiny_config(
        data__corpus=str(corpus),
        data__max_passes=1.0,
        model__vocab_size=2048,
        mesh__data=8,
        train__batch_warmup_tokens=0,
        **overrides,
    )
    if "data__mixture_tokens" not in overrides:
        del config.data.mixture_tokens  # as in a config file, which leaves it out
    return config


@pytest.fixture(scope="module")
def long_run(go, tmp_path_factory):
    """A run of LONG tokens, whose mixture is that of a run of SHORT ones."""
    run = tmp_path_factory.mktemp("runs") / "long"
    often = {"checkpoint__every_steps": 1, "checkpoint__keep": 1, "checkpoint__keep_every_steps": 3}
    go(run, train__tokens=LONG, data__mixture_tokens=SHORT, **often)
    return run


def losses(run):
    return {r["step"]: (r["loss"], r["grad_norm"]) for r in read_metrics(run) if "loss" in r}


def test_checkpoints_are_kept_for_good(long_run):
    assert complete_steps(long_run) == [8, 6, 3]


# What an evaluation that raises leaves open in this process, in which a user's would end.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_extended_run_is_one_that_was_long_from_the_start(
    go, corpus, long_run, tmp_path, capsys, monkeypatch
):
    """Also when its evaluations fail: each is done at the next start, and no save waits for one."""

    def broken(params):
        raise OSError("the held-out rows are on a disk that is broken")

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("mmbert_jax.train.evaluate", lambda config, mesh: broken)
        with pytest.raises(OSError, match="broken"):
            go(run, train__tokens=SHORT)
        end = time.monotonic() + 30
        while complete_steps(run) != [4] and time.monotonic() < end:  # saved in the background
            time.sleep(0.05)
    assert complete_steps(run) == [4]
    assert step_groups(run, 4) is None
    go(run, train__tokens=SHORT)
    assert "complete but for the evaluation after its last step" in capsys.readouterr().out
    assert step_groups(run, 4)["all"]["languages"] == 2
    go(run, train__tokens=SHORT)
    assert "complete already" in capsys.readouterr().out

    go(run, train__tokens=LONG)
    printed = capsys.readouterr().out
    assert f"extended from {SHORT:,} to {LONG:,} tokens" in printed
    assert f"shares are those of a phase of {SHORT:,} tokens" in printed
    assert "more often than config.data.max_passes=1 are read: l1 2.0" in printed
    assert losses(run) == losses(long_run)
    for ours, theirs in zip(
        *(jax.tree.leaves(restore_params(r)[0]) for r in (run, long_run)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    # With the mixture of its own length the rows would have been others.
    short, own = (
        mixture_of(make_config(corpus, train__tokens=LONG, data__mixture_tokens=tokens))
        for tokens in (SHORT, LONG)
    )
    assert [e.share for e in short.entries] != [e.share for e in own.entries]


def test_a_checkpoint_goes_with_the_figures_of_its_own_step(long_run):
    last = [r for r in read_metrics(long_run) if "held_out" in r][-1]
    meta = read_meta(long_run)
    assert last["step"] == meta["step"] == 8
    assert meta["held_out_groups"] == {}  # it was saved before
    assert checkpoint_groups(long_run, meta) == last["held_out_groups"]
    assert checkpoint_groups("elsewhere/run", meta | {"held_out_groups": {"all": 1}}) == {"all": 1}


@pytest.mark.parametrize("moments", [True, False])
def test_a_phase_starts_with_or_without_moments(corpus, long_run, moments):
    """The optimiser's state, count and all, is that of the checkpoint, read here by orbax alone; or there is none."""
    config = make_config(corpus, phase="next", init_from=str(long_run), init_moments=moments)
    mesh = make_mesh(config.mesh)
    state, start = restore_or_start(config, mesh, None, abstract_state(config, mesh))
    assert (start["step"], start["row"]) == (0, 0)
    with ocp.StandardCheckpointer() as checkpointer:
        stored = jax.tree.leaves(checkpointer.restore(locate(long_run) / "optimizer"))
    ours = jax.tree.leaves(state["optimizer"])
    assert len(ours) == len(stored)
    assert sum(np.abs(x).sum() > 0 for x in stored) > len(stored) / 2
    if moments:
        by_sum = [sorted((x.shape, float(np.abs(x).sum())) for x in xs) for xs in (ours, stored)]
        assert by_sum[0] == by_sum[1]
        assert [int(x) for x in ours if np.ndim(x) == 0] == [8]
    else:
        assert all(not np.any(x) for x in ours)
