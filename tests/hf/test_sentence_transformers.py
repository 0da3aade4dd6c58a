"""Models of Sentence Transformers: read, applied and written so that both sides compute the same vectors."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from peers import ROOT, run_under
from small_tokenizer import write_small_tokenizer
from test_versions import CONFIG, LONGEST, random_params

import mmbert_jax
from mmbert_jax.checkpoint import read_meta, restore_params, save_params
from mmbert_jax.data.sources import Fields, find_inputs
from mmbert_jax.data.tokenizer import load_tokenizer
from mmbert_jax.errors import UserError
from mmbert_jax.hf.config import to_hf
from mmbert_jax.hf.export import export_hf
from mmbert_jax.hf.imported import import_meta
from mmbert_jax.hf.load import load_model
from mmbert_jax.hf.names import to_theirs
from mmbert_jax.hf.sentence_transformers import (
    MODULES,
    apply_modules,
    module_files,
    read_modules,
    recorded_files,
    recorded_modules,
)
from mmbert_jax.hf.tokenizer import to_hf_files
from mmbert_jax.hf.weights import save_weights
from mmbert_jax.merge.checks import check_alike
from mmbert_jax.merge.merge import merge
from mmbert_jax.merge.models import open_model
from mmbert_jax.merge.output import write_merged
from mmbert_jax.merge.recipe import make_recipe
from mmbert_jax.model.heads import ENCODER, HeadConfig
from mmbert_jax.surgery.shrink import shrink
from mmbert_jax.surgery.trim import trim_vocabulary

pytest.importorskip("torch")
pytest.importorskip("transformers")

SCRIPT = ROOT / "tests/hf/scripts/sentence_models.py"
TOLERANCE = 1e-5
WORDS = "the cat and a dog is in this house that he and she have seen there".split()
READ = ("cls", "dense", "lasttoken", "mean", "normalised", "prompts", "short", "weightedmean")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A bare encoder, texts, and what Sentence Transformers makes of them with modules of many kinds."""
    folder = tmp_path_factory.mktemp("sentences")
    tokenizer = load_tokenizer(write_small_tokenizer(folder / "small"))
    head = HeadConfig(ENCODER)
    (folder / "encoder").mkdir()
    save_weights(folder / "encoder", to_theirs(random_params(head, 0), CONFIG, head), 10**9)
    fields = to_hf(CONFIG, LONGEST, "float32", head)
    (folder / "encoder" / "config.json").write_text(json.dumps(fields))
    to_hf_files(tokenizer, folder / "encoder", LONGEST)
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, n)) for n in (1, 7, 60, 150)]
    (folder / "texts.json").write_text(json.dumps([*texts, ""]))
    run_under("sentence-transformers", SCRIPT, "make", folder)
    return folder


@pytest.mark.parametrize("kind", ["folder", "run"])
@pytest.mark.parametrize("name", READ)
def test_vectors_are_those_of_the_library(work, exported, name, kind):
    """From the library's folder, and from a checkpoint that was imported from it."""
    folder = work / "models" / name
    model = mmbert_jax.load(
        folder if kind == "folder" else work / "runs" / name, devices=jax.devices()[:1]
    )
    texts = json.loads((work / "texts.json").read_text())
    theirs = np.load(folder.with_suffix(".npz"))
    np.testing.assert_allclose(model.encode(texts), theirs["plain"], rtol=0, atol=TOLERANCE)
    assert np.abs(theirs["plain"]).max() > 0.1, "too flat to compare"
    if "prompted" in theirs:
        ours = model.encode(texts, prompt_name="query")
        np.testing.assert_allclose(ours, theirs["prompted"], rtol=0, atol=TOLERANCE)
    assert model.encode(texts[0]).shape == theirs["plain"][0].shape
    with pytest.raises(UserError, match="prompt_name is 'question'"):
        model.encode(texts, prompt_name="question")


def test_a_trimmed_model_keeps_the_modules(work, tmp_path):
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": " ".join(WORDS), "language": "eng"}))
    inputs, _ = find_inputs([tmp_path / "text.jsonl"], None)
    source, trimmed = work / "models" / "dense", tmp_path / "trimmed"
    trim_vocabulary(source, trimmed, inputs, Fields(), languages=None)
    assert module_files(tmp_path / "trimmed") == module_files(work / "models" / "dense")
    texts = json.loads((work / "texts.json").read_text())[:2]
    before, after = (
        mmbert_jax.load(folder, devices=jax.devices()[:1]).encode(texts)
        for folder in (work / "models" / "dense", tmp_path / "trimmed")
    )
    np.testing.assert_array_equal(before, after)


def test_what_is_read(work):
    dense = read_modules(work / "models" / "dense")
    assert [layer.activation for layer in dense.dense] == ["Tanh", "GELU", "Identity"]
    assert [layer.bias is None for layer in dense.dense] == [False, True, False]
    assert (dense.normalise, dense.truncate_dim, dense.similarity) == (True, 20, "euclidean")
    assert dense.prompts == {"query": "the cat: ", "document": ""}
    assert dense.default_prompt is None
    assert read_modules(work / "models" / "prompts").default_prompt == "query"
    assert read_modules(work / "models" / "short").max_length == 12
    assert read_modules(work / "encoder") is None


@pytest.fixture(scope="module")
def exported(work):
    """Every model, imported into a checkpoint and exported again; and what the library computes with that."""
    for name in (*READ, "max"):
        folder = work / "models" / name
        model = load_model(folder)
        save_params(work / "runs" / name, model.params, import_meta(folder, model.config))
        params, meta = restore_params(work / "runs" / name)
        export_hf(work / "exported" / name, params, meta, load_tokenizer(folder), verify=False)
    run_under("sentence-transformers", SCRIPT, "read", work, work / "exported")
    return work / "exported"


@pytest.mark.parametrize("name", [*READ, "max"])
def test_modules_go_through_an_import_and_an_export(work, exported, name):
    """Those that are not computed with, too; and the library gives the same vectors as before."""
    assert module_files(exported / name) == module_files(work / "models" / name)
    before, after = (
        np.load((folder / name).with_suffix(".npz")) for folder in (work / "models", exported)
    )
    assert before.files == after.files
    for kind in before.files:
        np.testing.assert_allclose(after[kind], before[kind], rtol=0, atol=1e-6)


def test_a_checkpoint_has_the_modules_too(work, exported):
    _, meta = restore_params(work / "runs" / "dense")
    here, there = recorded_modules(meta), read_modules(work / "models" / "dense")
    for ours, theirs in zip(here.dense, there.dense, strict=True):
        np.testing.assert_array_equal(ours.weight, theirs.weight)
    assert here.prompts == there.prompts
    assert here.max_length == there.max_length


@pytest.mark.parametrize("kind", ["folders", "checkpoints"])
def test_a_merge_keeps_the_modules(work, exported, kind, tmp_path):
    """Those of the first model that has any; models whose modules compute something else are not merged."""
    parent = {"folders": work / "models", "checkpoints": work / "runs"}[kind]
    first, second = open_model(parent / "dense"), open_model(parent / "prompts")
    recipe = make_recipe("linear", 2, None, {})
    with pytest.raises(UserError, match="modules compute something else"):
        check_alike(first, [second])
    check_alike(first, [first])
    bare = open_model(work / "encoder" if kind == "folders" else bare_run(work, tmp_path))
    check_alike(bare, [first])
    merged = tmp_path / "merged"
    write_merged(merged, recipe, None, [bare, first], merge(recipe, None, [bare, first]))
    files = module_files(work / "models" / "dense")
    if kind == "folders":
        assert module_files(merged) == files
        assert "from sentence_transformers" in (merged / "README.md").read_text()
    else:
        assert recorded_files(read_meta(merged)) == files


def bare_run(work, tmp_path):
    model = load_model(work / "encoder")
    save_params(tmp_path / "bare", model.params, import_meta(work / "encoder", model.config))
    return tmp_path / "bare"


def test_modules_for_another_width_are_left_out_and_that_is_said(work, tmp_path):
    folder = work / "models" / "cls"
    model = load_model(folder)
    meta = import_meta(folder, model.config)
    smaller = dataclasses.replace(model.config.model, hidden_size=32, num_heads=1)
    meta["config"]["model"] = dataclasses.asdict(smaller)
    meta |= {"phase": "shrunk", "shrink": {"path": "x", "model": dataclasses.asdict(CONFIG)}}
    meta["shrink"]["layers"] = [0, 1, 2, 3]
    assert recorded_modules(meta) is None
    params = shrink(model.params, model.config.model, smaller, list(range(smaller.num_layers)))
    said = export_hf(tmp_path / "model", params, meta, load_tokenizer(folder), verify=False)
    assert "modules are left out: they are for vectors of 64 values" in said
    assert read_modules(tmp_path / "model") is None
    assert "sentence_transformers" not in (tmp_path / "model" / "README.md").read_text()


def test_vectors_of_another_width_are_refused(work):
    modules = read_modules(work / "models" / "dense")
    with pytest.raises(UserError, match="for vectors of 64 values; the model's have 32"):
        apply_modules(modules, np.zeros((2, 32), np.float32))


def set_in(name, **fields):
    def change(folder):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def add_module(kind, path):
    def change(folder):
        modules = json.loads((folder / MODULES).read_text())
        added = {
            "idx": 9,
            "name": "9",
            "path": path,
            "type": f"sentence_transformers.models.{kind}",
        }
        (folder / MODULES).write_text(json.dumps([*modules, added]))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_in("1_Pooling/config.json", pooling_mode="max"), "pooling_mode is max"),
        (set_in("1_Pooling/config.json", pooling_mode=["cls", "mean"]), "is cls and mean"),
        (set_in("1_Pooling/config.json", include_prompt=False), "include_prompt is false"),
        (set_in("2_Dense/config.json", use_residual=True), "2_Dense/config.json: use_residual"),
        (set_in("2_Dense/config.json", activation_function="torch.nn.Softmax"), "Softmax"),
        (set_in("2_Dense/config.json", activation_function="mine.Tanh"), "mine.Tanh"),
        (set_in("2_Dense/config.json", out_features=7), "2_Dense/model.safetensors has"),
        (set_in("sentence_bert_config.json", do_lower_case=True), "do_lower_case is True"),
        (set_in("sentence_bert_config.json", max_seq_length="12"), "max_seq_length is '12'"),
        (set_in("config_sentence_transformers.json", similarity_fn_name="x"), "similarity_fn_name"),
        (set_in("config_sentence_transformers.json", model_type="SparseEncoder"), "SparseEncoder"),
        (set_in("config_sentence_transformers.json", default_prompt_name="x"), "default_prompt"),
        (add_module("LayerNorm", "9_LayerNorm"), "has a LayerNorm"),
        (add_module("Dense", "../elsewhere"), "names '../elsewhere'"),
        (lambda folder: (folder / MODULES).write_text("["), "modules.json is not JSON"),
        (lambda folder: (folder / MODULES).write_text('["a"]'), "not a list of modules"),
        (lambda folder: (folder / "2_Dense/model.safetensors").unlink(), "pickled"),
    ],
    # Not by a function's address, in which two processes of a run differ.
    ids=lambda value: value if isinstance(value, str) else "changed",
)
def test_what_is_not_known_is_refused_by_name(work, tmp_path, change, message):
    folder = shutil.copytree(work / "models" / "dense", tmp_path / "model")
    change(folder)
    with pytest.raises(UserError, match=message):
        read_modules(folder)
