"""What is read of folders that others wrote, and what is refused."""

import json
import shutil

import jax
import numpy as np
import pytest
from exported_model import CONFIG, run_tool
from safetensors.numpy import load_file, save_file

from mmbert_jax.errors import UserError
from mmbert_jax.hf.config import from_hf, to_hf
from mmbert_jax.hf.load import load_hf, load_model


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


def drop(tensors):
    del tensors["model.layers.2.mlp.Wi.weight"]


def add(tensors):
    tensors["model.layers.0.attn_norm.weight"] = np.ones(64, np.float32)


def reshape(tensors):
    tensors["model.layers.1.attn.Wo.weight"] = np.ones((64, 63), np.float32)


def untie(tensors):
    tensors["decoder.weight"] = tensors["model.embeddings.tok_embeddings.weight"] + 1


def spoil(tensors):
    tensors["head.norm.weight"][3] = np.inf


def to_integers(tensors):
    tensors["head.norm.weight"] = np.ones(64, np.int32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, "model.layers.2.mlp.Wi.weight is missing"),
        (add, "model.layers.0.attn_norm.weight is not part of the model"),
        (reshape, r"model.layers.1.attn.Wo.weight has shape \(64, 63\) instead of \(64, 64\)"),
        (untie, "decoder.weight differs"),
        (spoil, "1 of 64 entries of head.norm.weight are infinite or no numbers"),
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
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    weights.write_text(pointer)
    with pytest.raises(UserError, match=r"model\.safetensors is a pointer of Git LFS"):
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
