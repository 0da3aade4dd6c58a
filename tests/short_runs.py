"""Runs of a few steps, in this process, wherever their folder lies."""

import signal

import pytest
from data.tiny_corpus import write_corpus
from tiny import tiny_config

from mmbert_jax.metrics import read_metrics
from mmbert_jax.places import place


@pytest.fixture(scope="session")
def go(tmp_path_factory):
    """Trains for so many steps, with a checkpoint every second; the step is compiled once."""
    # Here, since every test process loads this file.
    from mmbert_jax.step import compile_train_step
    from mmbert_jax.train import train

    held_out = {"l0": 1, "l1": 1}
    folder = tmp_path_factory.mktemp("corpus") / "text"
    corpus = write_corpus(folder, {"l0": 300, "l1": 60}, row_length=64, held_out=held_out)
    compiled = []

    def compile_once(*arguments):
        compiled.append(compile_train_step(*arguments) if not compiled else compiled[0])
        return compiled[0]

    def go(workdir, steps):
        config = tiny_config(
            data__corpus=str(corpus),
            model__vocab_size=2048,
            mesh__data=8,
            train__batch_warmup_tokens=0,
            train__tokens=steps * 16 * 64,
            data__mixture_tokens=8 * 16 * 64,
            checkpoint__every_steps=2,
            checkpoint__keep=2,
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("mmbert_jax.train.compile_train_step", compile_once)
            try:
                train(config, place(workdir))
            finally:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                signal.signal(signal.SIGINT, signal.default_int_handler)
        return config

    return go


def losses(run):
    return [(r["step"], r["loss"], r["grad_norm"]) for r in read_metrics(run) if "loss" in r]
