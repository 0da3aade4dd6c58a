"""The command lines between checkpoints and Hugging Face folders: what they write, and what they refuse."""

import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from small_tokenizer import write_small_tokenizer

from mmbert_jax.checkpoint import restore_params, save_params
from mmbert_jax.data.tokenizer import load_tokenizer
from mmbert_jax.errors import UserError
from mmbert_jax.hf.config import HfConfig, from_hf, to_hf
from mmbert_jax.hf.export import MARKER, export_hf
from mmbert_jax.hf.load import HfModel, load_hf, load_model
from mmbert_jax.hf.tokenizer import copied_tokenizer
from mmbert_jax.hf.verify import compare_with_transformers
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.model.heads import HeadConfig, init_params, outputs

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ModelConfig(
    vocab_size=340,
    hidden_size=64,
    num_layers=4,
    num_heads=1,
    intermediate_size=48,
    global_rope_theta=9_000.0,
    local_rope_theta=800.0,
)


def run_tool(name: str, *arguments: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        check=False,
    )


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    return write_small_tokenizer(tmp_path_factory.mktemp("corpus") / "tokenizer")


@pytest.fixture(scope="module")
def params():
    """Random values in every tensor, also in those that start as ones or zeros."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: (np.asarray(x) + 0.1 * rng.normal(size=x.shape)).astype(np.float32),
        init_params(CONFIG, 0),
    )


@pytest.fixture(scope="module")
def meta(tokenizer_folder):
    """What a training run records, as far as exporting looks at it."""
    model = {field: getattr(CONFIG, field) for field in CONFIG.__dataclass_fields__}
    return {
        "phase": "decay_all",
        "step": 12,
        "row": 48,
        "tokens": 12_288,
        "languages": ["eng", "kin", "swa"],
        "history": [{"phase": "phase1", "step": 3000, "tokens": 4_000_000}],
        "tokenizer": {"sha256": load_tokenizer(tokenizer_folder).sha256, "vocab_size": 332},
        "held_out_groups": {"added last": {"loss": 4.5678, "accuracy": 0.3456, "languages": 2}},
        "config": {
            "model": model,
            "data": {
                "corpus": str(tokenizer_folder.parent),
                "row_length": 256,
                "temperature": 0.3,
                "sources": {},
            },
            "train": {"batch_rows": 4},
            "mask": {"ratio": 0.05},
            "optimizer": {"peak_lr": 8e-4, "schedule": "one_minus_sqrt", "weight_decay": 8e-5},
            "dtype": "bfloat16",
            "seed": 21,
        },
    }


@pytest.fixture(scope="module")
def run(params, meta, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "decay_all"
    save_params(folder, params, meta)
    return folder


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """The folder that the command line writes."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    result = run_tool("export_hf", "--checkpoint", run, "--output", folder)
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model"]
    return folder


def test_transformers_loads_model_and_tokenizer(exported, params, tokenizer_folder):
    """The two lines that everybody types give our logits and our ids."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForMaskedLM.from_pretrained(exported)
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    assert type(model).__name__ == "ModernBertForMaskedLM"
    assert not model.training
    assert model.dtype == torch.float32

    text = "the cat is <mask> and the dög 東 a"
    ids = tokenizer(text)["input_ids"]
    assert ids == [2, *load_tokenizer(tokenizer_folder).encode(text), 1]
    assert tokenizer.mask_token_id == 4
    assert ids.count(4) == 1
    assert tokenizer.model_max_length == model.config.max_position_embeddings == 256

    with torch.no_grad():
        theirs = model(torch.tensor([ids])).logits.numpy()
    tokens = np.array([ids], np.int32)
    ours = outputs(
        params, CONFIG, tokens, np.ones_like(tokens), np.arange(len(ids), dtype=np.int32)[None]
    )
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=1e-4)


def test_import_of_an_export_gives_every_bit_back(exported, params, tmp_path):
    result = run_tool("import_hf", "--model", exported, "--output", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    back, meta = restore_params(tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, back, params)
    assert (
        ModelConfig.from_config(meta["config"]["model"] | {"attention_output_dropout": 0.1})
        == CONFIG
    )
    assert meta["config"]["data"]["row_length"] == 256
    assert meta["tokenizer"]["path"] == str(exported)
    # ... and it can be exported again without naming a tokeniser.
    again = tmp_path / "again"
    result = run_tool("export_hf", "--checkpoint", tmp_path / "run", "--output", again)
    assert result.returncode == 0, result.stderr
    for file in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (again / file).read_bytes() == (exported / file).read_bytes(), file


def test_config_has_both_generations_of_rope_fields(exported):
    fields = json.loads((exported / "config.json").read_text())
    assert (fields["global_rope_theta"], fields["local_rope_theta"]) == (9_000.0, 800.0)
    assert fields["rope_parameters"]["full_attention"]["rope_theta"] == 9_000.0
    assert fields["rope_parameters"]["sliding_attention"]["rope_theta"] == 800.0
    assert fields["layer_types"] == [
        "full_attention",
        "sliding_attention",
        "sliding_attention",
        "full_attention",
    ]
    assert [fields[f"{name}_token_id"] for name in ("pad", "eos", "bos", "cls", "sep")] == [
        0,
        1,
        2,
        2,
        1,
    ]
    assert isinstance(fields["norm_eps"], float)


@pytest.mark.parametrize(
    "change",
    [
        {"layer_types": None, "rope_parameters": None},
        {"global_rope_theta": None, "local_rope_theta": None, "global_attn_every_n_layers": None},
        {"rope_parameters": None, "global_attn_every_n_layers": None},
    ],
    ids=["old fields only", "new fields only", "old thetas, new layer types"],
)
def test_either_generation_of_rope_fields_is_read(change):
    fields = {k: v for k, v in (to_hf(CONFIG, 256, "float32") | change).items() if v is not None}
    config, _ = from_hf(fields)
    assert (config.global_rope_theta, config.local_rope_theta, config.global_every) == (
        9_000.0,
        800.0,
        3,
    )


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"global_rope_theta": 5.0, "local_rope_theta": None},
            (5.0, 5.0),
        ),  # null: like the global layers
        ({"global_rope_theta": 5.0}, (5.0, 10_000.0)),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 7}}, "local_rope_theta": 3.0},
            (7.0, 3.0),
        ),
        ({}, (160_000.0, 10_000.0)),
    ],
)
def test_thetas_that_are_left_out_are_those_of_transformers(fields, expected):
    rest = to_hf(CONFIG, 256, "float32")
    for name in ("global_rope_theta", "local_rope_theta", "rope_parameters"):
        del rest[name]
    config, _ = from_hf(rest | fields)
    assert (config.global_rope_theta, config.local_rope_theta) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["ModernBertForMultipleChoice"]}, "architectures"),
        (
            {"architectures": ["ModernBertForSequenceClassification"]},
            "classifier.weight is missing",
        ),
        ({"architectures": ["BertForMaskedLM"], "model_type": "bert"}, "architectures"),
        ({"norm_bias": True}, "norm_bias is True"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"classifier_bias": True}, "classifier_bias is True"),
        ({"decoder_bias": False}, "decoder_bias is False"),
        ({"hidden_activation": "silu"}, "hidden_activation is 'silu'"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ({"pad_token_id": 50283}, "pad_token_id is 50283"),
        ({"pad_token_id": None}, "pad_token_id is None"),
        ({"hidden_size": "64"}, "hidden_size is '64'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"norm_eps": True}, "norm_eps is True"),
        ({"pad_token_id": 7}, "pad_token_id is 7; only 0"),
        ({"num_attention_heads": 7}, "not a multiple"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling"),
        ({"local_rope_theta": 801.0}, "rope_parameters.sliding_attention.rope_theta is 800.0"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "rope_type is 'yarn'"),
        ({"layer_types": ["full_attention"] * 4}, "layer_types"),
        ({"layer_types": ["sliding_attention"] * 4}, "layer_types"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_refuses_another_architecture(exported, tmp_path, change, message):
    folder = shutil.copytree(exported, tmp_path / "model")
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | change))
    with pytest.raises(UserError, match=message):
        load_hf(folder)


def test_special_ids_of_another_tokenizer_go_through(exported, params, meta, tmp_path):
    """A folder like ModernBERT's: ids at the end of the vocabulary, tokeniser files that are copied as they are."""
    folder = shutil.copytree(exported, tmp_path / "model")
    fields = json.loads((folder / "config.json").read_text())
    ids = {
        f"{name}_token_id": i
        for name, i in zip("pad eos bos cls sep".split(), (3, 2, 1, 1, 2), strict=True)
    }
    (folder / "config.json").write_text(json.dumps(fields | ids))
    description = json.loads((folder / "tokenizer.json").read_text())
    description["added_tokens"][0]["content"] = "[PAD]"
    (folder / "tokenizer.json").write_text(json.dumps(description))
    result = run_tool("import_hf", "--model", folder, "--output", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    back, meta = restore_params(tmp_path / "run")
    again = tmp_path / "again"
    export_hf(again, back, meta, copied_tokenizer(meta))
    for file in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        assert (again / file).read_bytes() == (folder / file).read_bytes(), file
    assert json.loads((again / "config.json").read_text()) == fields | ids
    # Written otherwise it is still the same one; with another piece it is not.
    (folder / "tokenizer.json").write_text(json.dumps(description) + " ")
    assert copied_tokenizer(meta).sha256 != meta["tokenizer"]["sha256"]
    description["added_tokens"][0]["content"] = "[pad]"
    (folder / "tokenizer.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match="is not the one that was imported"):
        copied_tokenizer(meta)


def test_what_transformers_reads_otherwise_is_not_written(
    params, meta, tokenizer_folder, tmp_path, monkeypatch
):
    """An export from which `transformers` computes something else than this project fails and leaves nothing."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    wrong = HfConfig(
        dataclasses.replace(CONFIG, local_rope_theta=50_000.0), HeadConfig(), {}, max_positions=256
    )
    monkeypatch.setattr("mmbert_jax.hf.verify.load_model", lambda _: HfModel(params, wrong))
    with pytest.raises(RuntimeError, match="computes something else"):
        export_hf(tmp_path / "model", params, meta, load_tokenizer(tokenizer_folder))
    assert list(tmp_path.iterdir()) == []


def test_says_when_logits_cannot_be_compared(exported, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "torch" else real(name)
    )
    assert "logits not, which needs torch" in compare_with_transformers(exported)


def drop(tensors):
    del tensors["model.layers.2.mlp.Wi.weight"]


def add(tensors):
    tensors["model.layers.0.attn_norm.weight"] = np.ones(64, np.float32)


def reshape(tensors):
    tensors["model.layers.1.attn.Wo.weight"] = np.ones((64, 63), np.float32)


def untie(tensors):
    tensors["decoder.weight"] = tensors["model.embeddings.tok_embeddings.weight"] + 1


def to_integers(tensors):
    tensors["head.norm.weight"] = np.ones(64, np.int32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, "model.layers.2.mlp.Wi.weight is missing"),
        (add, "model.layers.0.attn_norm.weight is not part of the model"),
        (reshape, r"model.layers.1.attn.Wo.weight has shape \(64, 63\) instead of \(64, 64\)"),
        (untie, "decoder.weight differs"),
        (to_integers, "head.norm.weight is stored as int32"),
    ],
)
def test_refuses_tensors_that_do_not_fit(exported, tmp_path, change, message):
    folder = shutil.copytree(exported, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=message):
        load_hf(folder)


def test_a_stored_copy_of_the_tied_decoder_is_accepted(exported, params, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["decoder.weight"] = tensors["model.embeddings.tok_embeddings.weight"].copy()
    save_file(tensors, folder / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, load_hf(folder)[0], params)


def test_refuses_pickled_truncated_and_absent_weights(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
        load_hf(folder)
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin.*save_pretrained"):
        load_hf(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match="neither"):
        load_hf(folder)
    result = run_tool("import_hf", "--model", tmp_path / "nowhere", "--output", tmp_path / "run")
    assert result.returncode == 2
    assert "nowhere/config.json does not exist" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"weight_map": {"a": "../model.safetensors"}}', r"names '\.\./model\.safetensors'"),
        ('{"weight_map": {"a": "pytorch_model.bin"}}', r"names 'pytorch_model\.bin'"),
        ('{"weight_map": {"a": 3}}', "names 3"),
        ('{"weight_map": 3}', "is damaged"),
        ("{", "is damaged"),
    ],
)
def test_refuses_an_index_that_leads_elsewhere(exported, tmp_path, text, message):
    folder = shutil.copytree(exported, tmp_path / "model")
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UserError, match=message):
        load_hf(folder)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("SequenceClassification", {"classifier_pooling": "max"}, "classifier_pooling is 'max'"),
        ("TokenClassification", {"classifier_activation": "swish"}, "classifier_activation is"),
        ("TokenClassification", {"id2label": {"0": "a", "2": "b"}}, "id2label is"),
        ("TokenClassification", {"id2label": ["a"]}, "id2label is"),
        ("QuestionAnswering", {"id2label": {"0": "a"}}, "id2label has 1 entries"),
        ("TokenClassification", {"classifier_bias": True}, "head.dense.bias is missing"),
        ("TokenClassification", {}, "decoder.bias is not part of the model"),
    ],
)
def test_refuses_heads_that_do_not_fit(exported, tmp_path, kind, change, message):
    folder = shutil.copytree(exported, tmp_path / "model")
    fields = json.loads((folder / "config.json").read_text())
    fields |= {"architectures": [f"ModernBertFor{kind}"]} | change
    (folder / "config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=message):
        load_model(folder)


def test_shards_and_their_index(run, params, tmp_path):
    result = run_tool(
        "export_hf",
        "--checkpoint",
        run,
        "--output",
        tmp_path / "model",
        "--max_shard_size",
        "0.0001",
    )
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "model"
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(4 * x.size for x in jax.tree.leaves(params))
    for shard in shards:
        with safe_open(shard, "np") as opened:
            assert all(index["weight_map"][name] == shard.name for name in opened.keys())  # noqa: SIM118
    jax.tree.map(np.testing.assert_array_equal, load_hf(folder)[0], params)
    shards[1].unlink()
    with pytest.raises(UserError, match=shards[1].name):
        load_hf(folder)


def test_bfloat16_is_rounded_to_nearest(params, meta, tokenizer_folder, tmp_path):
    export_hf(tmp_path / "model", params, meta, load_tokenizer(tokenizer_folder), dtype="bfloat16")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    back, _, _ = load_hf(tmp_path / "model")
    rounded = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float32), params)
    jax.tree.map(np.testing.assert_array_equal, back, rounded)
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "model", dtype="auto")
    assert model.dtype == torch.bfloat16


def test_model_card_has_the_runs_own_numbers(exported, params):
    card = (exported / "README.md").read_text()
    total = sum(x.size for x in jax.tree.leaves(params))
    outside = total - CONFIG.vocab_size * CONFIG.hidden_size
    assert f"{total:,} parameters" in card
    assert f"{outside:,} of them outside" in card
    for line in (
        "| phase1 | 3,000 | 4,000,000 |",
        "| decay_all | 12 | 12,288 |",
        "| added last | 2 | 4.568 | 0.346 |",
        "| Tokens masked | 5% |",
        "eng, kin, swa",
    ):
        assert line in card
    assert 'from_pretrained("model")' in card


def test_model_card_of_a_merged_checkpoint_takes_figures_from_a_file(run, params, meta, tmp_path):
    parent = {"path": "runs/x", "phase": "phase2", "step": 7, "tokens": 9}
    recipe = {
        "method": "ties",
        "density": 0.5,
        "lambda": 1.0,
        "weights": [2.0],
        "base": parent,
        "models": [parent],
    }
    save_params(
        tmp_path / "merged",
        params,
        meta | {"phase": "merged", "step": 0, "held_out_groups": {}, "merge": recipe},
    )
    figures = tmp_path / "held_out.json"
    figures.write_text(
        json.dumps({"held_out_groups": {"all": {"loss": 1.25, "accuracy": 0.5, "languages": 9}}})
    )
    arguments = (
        "--checkpoint",
        tmp_path / "merged",
        "--output",
        tmp_path / "model",
        "--held_out",
        figures,
    )
    result = run_tool("export_hf", *arguments)
    assert result.returncode == 0, result.stderr
    card = (tmp_path / "model" / "README.md").read_text()
    assert "Merged by TIES (density 0.5, lambda 1.0)" in card
    assert "| weight 2.0 | phase2 | 7 | 9 |" in card
    assert "| all | 9 | 1.250 | 0.500 |" in card


def test_replaces_its_own_folder_and_no_other(params, meta, tokenizer_folder, tmp_path):
    tokenizer, folder = load_tokenizer(tokenizer_folder), tmp_path / "model"
    export_hf(folder, params, meta, tokenizer)
    export_hf(folder, params, meta | {"step": 13}, tokenizer)
    assert json.loads((folder / MARKER).read_text())["step"] == 13
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes\.txt"):
        export_hf(folder, params, meta, tokenizer)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="no export wrote"):
        export_hf(tmp_path / "other", params, meta, tokenizer)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "other"]


def test_a_failure_leaves_nothing_behind(params, meta, tokenizer_folder, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("mmbert_jax.hf.export.to_hf_files", fail)
    with pytest.raises(OSError, match="no space"):
        export_hf(tmp_path / "model", params, meta, load_tokenizer(tokenizer_folder))
    assert list(tmp_path.iterdir()) == []


def test_refuses_another_tokenizer_than_the_runs(run, meta, tokenizer_folder, tmp_path):
    other = shutil.copytree(tokenizer_folder, tmp_path / "tokenizer")
    file = other / "tokenizer.json"
    file.write_text(file.read_text() + "\n")
    arguments = ("--checkpoint", run, "--output", tmp_path / "model", "--tokenizer", other)
    result = run_tool("export_hf", *arguments)
    assert result.returncode == 2
    assert "is not the one that the checkpoint was trained with" in result.stderr
    assert not (tmp_path / "model").exists()


def test_help_shows_an_example():
    for tool in ("export_hf", "import_hf", "merge"):
        result = run_tool(tool, "--help")
        assert result.returncode == 0, result.stderr
        assert f"python tools/{tool}.py" in result.stdout
