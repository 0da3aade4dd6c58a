"""A checkpoint without a training config is evaluated as a config file says, and as a run of that config would be."""

import math

import pytest
from data.tiny_corpus import write_corpus
from programs import call, module
from tiny import tiny_config

from mmbert_jax.checkpoint import save_params
from mmbert_jax.files import read_json
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.model.heads import init_params


def test_config_of_a_file(tmp_path, monkeypatch, capsys):
    corpus = write_corpus(tmp_path / "corpus", {"eng": 2}, held_out={"eng": 3}, row_length=64)
    config = tiny_config(data__corpus=str(corpus), model__vocab_size=2048)
    params = init_params(ModelConfig.from_config(config.model), 0)
    model = {"model": config.model.to_dict(), "data": {"row_length": 512}}
    for name, known in (("imported", model), ("trained", config.to_dict())):
        save_params(tmp_path / name, params, {"phase": name, "step": 0, "config": known})
    (tmp_path / "like.py").write_text(
        "from tests.tiny import tiny_config\n\n\ndef get_config():\n"
        f"    return tiny_config(data__corpus={str(corpus)!r}, model__vocab_size=77)\n"
    )
    main = module("mmbert_jax.evaluate.heldout").main

    def evaluate(name, *words):
        words = [
            "--checkpoint",
            f"{tmp_path}/{name}",
            "--output",
            f"{tmp_path}/{name}.json",
            *words,
        ]
        return call(main, ["heldout", *words], monkeypatch)

    assert evaluate("imported") == 2
    assert "holds no training config" in capsys.readouterr().err
    assert evaluate("imported", "--config", f"{tmp_path}/like.py") == 0
    assert evaluate("trained") == 0
    found, expected = (read_json(tmp_path / f"{name}.json") for name in ("imported", "trained"))
    assert found == expected
    assert found["held_out"]["eng"]["loss"] == pytest.approx(math.log(2048), abs=0.5)
