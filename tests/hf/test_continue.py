"""Published weights go on training: an imported folder of another shape, vocabulary and tokeniser starts a phase."""

import json

import jax
import numpy as np
import pytest
from data.tiny_corpus import write_corpus
from small_tokenizer import write_small_tokenizer
from tiny import tiny_config

from mmbert_jax.checkpoint import read_meta, restore_params, save_params
from mmbert_jax.errors import UserError
from mmbert_jax.hf.imported import import_meta
from mmbert_jax.hf.load import load_model
from mmbert_jax.metrics import read_metrics
from mmbert_jax.train import train

pytest.importorskip("torch")
pytest.importorskip("transformers")

from random_modernbert import random_model, save


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A model that `transformers` made and saved, with a tokeniser of fewer entries, imported."""
    folder = save(random_model("like_mmbert"), tmp_path_factory.mktemp("published") / "model")
    written = write_small_tokenizer(folder.parent / "tokenizer") / "tokenizer.json"
    written.rename(folder / "tokenizer.json")
    model = load_model(folder)
    meta = import_meta(folder, model.config)
    save_params(folder.parent / "imported", model.params, meta)
    return folder.parent / "imported"


def phase(imported, corpus, **overrides):
    model = read_meta(imported)["config"]["model"]
    config = tiny_config(
        data__corpus=str(corpus),
        init_from=str(imported),
        train__tokens=64 * 16 * 2,
        train__batch_warmup_tokens=0,
        optimizer__warmup_tokens=0,
        optimizer__peak_lr=1e-5,
        mesh__data=-1,
        train__loss_chunk=512,
        **overrides,
    )
    config.model.update(model)
    return config


def corpus_of(tokenizer: dict, folder):
    write_corpus(folder, {"aaa": 60, "bbb": 60}, row_length=64)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["tokenizer"] |= tokenizer
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_phase_starts_from_an_imported_folder(imported, tmp_path):
    tokenizer = read_meta(imported)["tokenizer"]
    assert tokenizer["vocab_size"] < 499
    corpus = corpus_of(
        {"sha256": tokenizer["sha256"], "vocab_size": 324}, tmp_path / "corpus" / "text"
    )
    train(phase(imported, corpus), tmp_path / "run")
    before, _ = restore_params(imported)
    after, meta = restore_params(tmp_path / "run")
    assert meta["config"]["model"]["vocab_size"] == 499
    assert [past["phase"] for past in meta["history"]] == ["imported"]
    steps = [record for record in read_metrics(tmp_path / "run") if "loss" in record]
    assert len(steps) == 2
    assert all(np.isfinite(record["loss"]) for record in steps)
    # Two steps of 1e-5 from where the published weights stand, and from nowhere else.
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before, after)
    assert all(0 < x < 1e-4 for x in jax.tree.leaves(moved)), moved


def test_another_tokenizers_corpus_is_refused(imported, tmp_path):
    corpus = corpus_of({"sha256": "b" * 64, "vocab_size": 324}, tmp_path / "corpus" / "text")
    with pytest.raises(UserError, match="another tokeniser"):
        train(phase(imported, corpus), tmp_path / "run")
    assert not (tmp_path / "run").exists()
