"""Published weights go on training: an imported folder of another shape, vocabulary and tokeniser starts a phase."""

import json

import jax
import numpy as np
import pytest
from data.tiny_corpus import write_corpus
from small_tokenizer import write_small_tokenizer
from tiny import tiny_config

from mmbert_jax.checkpoint import read_meta, restore_params, save_params
from mmbert_jax.checksums import sha256
from mmbert_jax.data.tokenizer import load_tokenizer
from mmbert_jax.data.tokenizer_identity import describe_tokenizer
from mmbert_jax.errors import UserError
from mmbert_jax.hf.export import export_hf
from mmbert_jax.hf.imported import import_meta
from mmbert_jax.hf.load import load_model
from mmbert_jax.inference.checkpoint_tokenizer import checkpoint_tokenizer
from mmbert_jax.merge.merge import merge
from mmbert_jax.merge.models import open_model
from mmbert_jax.merge.output import write_merged
from mmbert_jax.merge.recipe import make_recipe
from mmbert_jax.metrics import read_metrics
from mmbert_jax.run import SUMS, checkpoint
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


def test_a_run_meets_its_own_export_again(tmp_path):
    """Exported, its tokenizer.json is another file; imported, it is merged with the run and trained on all the same."""
    corpus = tmp_path / "corpus" / "text"
    write_corpus(corpus, {"aaa": 60, "bbb": 60}, row_length=64)
    tokenizer = load_tokenizer(write_small_tokenizer(corpus / "tokenizer"))
    manifest = json.loads((corpus / "manifest.json").read_text())
    manifest["tokenizer"] = describe_tokenizer(tokenizer)
    (corpus / "manifest.json").write_text(json.dumps(manifest))

    def settings(**overrides):
        return tiny_config(
            data__corpus=str(corpus),
            train__tokens=64 * 16 * 2,
            train__batch_warmup_tokens=0,
            optimizer__warmup_tokens=0,
            mesh__data=-1,
            **overrides,
        )

    train(settings(), tmp_path / "run")
    params, meta = restore_params(tmp_path / "run")
    export_hf(tmp_path / "hf", params, meta, checkpoint_tokenizer(meta), verify=False)
    assert (tmp_path / "hf" / "tokenizer.json").read_bytes() != tokenizer.path.read_bytes()
    model = load_model(tmp_path / "hf")
    save_params(tmp_path / "imported", model.params, import_meta(tmp_path / "hf", model.config))

    models = [open_model(tmp_path / name) for name in ("run", "imported")]
    recipe = make_recipe("linear", 2, None, {})
    write_merged(tmp_path / "merged", recipe, None, models, merge(recipe, None, models))
    merged, _ = restore_params(tmp_path / "merged")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), merged, params)

    train(settings(init_from=str(tmp_path / "imported")), tmp_path / "further")
    [past] = read_meta(tmp_path / "further")["history"]
    assert (past["phase"], past["run"]) == ("imported", str(tmp_path / "imported"))
    assert past["sums"] == sha256(checkpoint(tmp_path / "imported", 0) / SUMS)
    # And what was imported with it is exported with what it became.
    params, meta = restore_params(tmp_path / "further")
    export_hf(tmp_path / "again", params, meta, checkpoint_tokenizer(meta), verify=False)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        before, after = (tmp_path / folder / name for folder in ("hf", "again"))
        assert json.loads(before.read_text()) == json.loads(after.read_text()), name


def test_another_tokenizers_corpus_is_refused(imported, tmp_path):
    corpus = corpus_of({"sha256": "b" * 64, "vocab_size": 324}, tmp_path / "corpus" / "text")
    with pytest.raises(UserError, match="another tokeniser"):
        train(phase(imported, corpus), tmp_path / "run")
    assert not (tmp_path / "run").exists()
