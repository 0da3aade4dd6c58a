"""Folders as published models have them: loaded with every head and as `transformers` computes, and nothing is lost."""

import dataclasses
import json

import numpy as np
import pytest
from published_configs import CONFIGS
from small_tokenizer import write_small_tokenizer

from mmbert_jax.errors import UserError
from mmbert_jax.hf.export import export_hf
from mmbert_jax.hf.imported import import_meta
from mmbert_jax.hf.load import load_model
from mmbert_jax.hf.tokenizer import copied_tokenizer
from mmbert_jax.inference.checkpoint_tokenizer import checkpoint_tokenizer
from mmbert_jax.model.heads import ENCODER, SEQUENCES, SPANS, HeadConfig, bind, encode, outputs

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from random_modernbert import randomise  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

COMPILED_AS_USERS_DO = True  # 8192 tokens take six times as long otherwise

TOLERANCE = 1e-4
SHORT, LONG = (5, 128, 129, 1000), 8192
LABELS = {"id2label": {"0": "neg", "1": "neither", "2": "好"}, "problem_type": None}
LABELS |= {"label2id": {label: int(i) for i, label in LABELS["id2label"].items()}}
# Architecture, and what a model with this head says besides.
HEADS = {
    "masked LM": ("MaskedLM", {"sparse_prediction": True}),
    "classes by mean": ("SequenceClassification", LABELS | {"classifier_dropout": 0.1}),
    "classes by cls": (
        "SequenceClassification",
        LABELS | {"classifier_pooling": "cls", "classifier_bias": True},
    ),
    "classes of tokens": (
        "TokenClassification",
        LABELS | {"classifier_bias": True, "classifier_activation": "silu"},
    ),
    "two classes without names": ("TokenClassification", {}),
    "spans": ("QuestionAnswering", {"classifier_activation": "relu"}),
    "encoder": ("Model", {"classifier_pooling": "cls", "initializer_range": 0.03}),
}


def name_of(head: str) -> str:
    kind = HEADS[head][0]
    return "ModernBertModel" if kind == "Model" else f"ModernBertFor{kind}"


def write_model(folder, fields, seed=0):
    """A model of random weights in the dtype that config.json names, as `transformers` saves it; returns it.

    With some tokeniser: here it only has to go through.
    """
    write_small_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(fields))
    config = transformers.AutoConfig.from_pretrained(folder)
    (architecture,) = fields["architectures"]
    model = randomise(getattr(transformers, architecture)(config), seed)
    model = model.to(getattr(torch, fields.get("torch_dtype", "float32")))
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder, dtype=torch.float32).eval()


def rows(documents, length):
    """Packed into one row: tokens, segment ids, positions [1, L]."""
    tokens, segments, positions = np.zeros((3, 1, length), np.int32)
    start = 0
    for number, document in enumerate(documents, 1):
        stop = start + len(document)
        tokens[0, start:stop], segments[0, start:stop] = document, number
        positions[0, start:stop] = np.arange(len(document))
        start = stop
    return tokens, segments, positions


def theirs(model, document):
    """Hidden states [n, D] and outputs of one document alone."""
    seen = []
    encoder = getattr(model, "model", model)
    hook = encoder.register_forward_hook(lambda *call: seen.append(call[-1].last_hidden_state))
    with torch.no_grad():
        out = model(input_ids=torch.from_numpy(document)[None].long())
    hook.remove()
    if "start_logits" in out:
        return seen[0][0], torch.stack((out.start_logits, out.end_logits), dim=-1)[0]
    return seen[0][0], out[0][0]


def compare(model, read, lengths, row_length):
    config, head = read.config.model, read.config.head
    rng = np.random.default_rng(1)
    documents = [rng.integers(5, 280, n).astype(np.int32) for n in lengths]
    row = rows(documents, row_length)
    hidden = encode(read.params, config, *row)
    if lengths == [LONG]:  # the head alone, on what took long enough
        given = bind(config, read.params, head).logits(hidden)
    else:
        given = outputs(read.params, config, *row, head, len(documents))
    hidden, given = np.asarray(hidden)[0], np.asarray(given)[0]
    start = 0
    for i, document in enumerate(documents):
        part = slice(start, start + len(document))
        start = part.stop
        states, out = theirs(model, document)
        assert np.abs(states).max() > 1, "too flat to compare"
        np.testing.assert_allclose(hidden[part], states, rtol=0, atol=TOLERANCE)
        mine = given[i] if head.kind == SEQUENCES else given[part]
        np.testing.assert_allclose(mine, out, rtol=0, atol=TOLERANCE)


def round_trip(folder, output):
    """Import and export; the checkpoint's meta by way of JSON, as a checkpoint keeps it."""
    model = load_model(folder)
    meta = json.loads(json.dumps(import_meta(folder, model.config)))
    own = "special_ids" in meta["config"]
    tokenizer = (copied_tokenizer if own else checkpoint_tokenizer)(meta)
    export_hf(output, model.params, meta, tokenizer, verify=False)


@pytest.fixture(scope="module", params=CONFIGS)
def published(request):
    return request.param


@pytest.mark.parametrize("head", HEADS)
def test_computes_as_transformers_and_comes_back(published, head, tmp_path):
    fields = CONFIGS[published] | {"architectures": [name_of(head)]} | HEADS[head][1]
    model = write_model(tmp_path / "model", fields)
    path = tmp_path / "model" / "config.json"
    saved = json.loads(path.read_text())
    reads = []
    for form in (saved, fields):  # as this version saves it, and as its authors published it
        path.write_text(json.dumps(form))
        reads.append(load_model(tmp_path / "model"))
        output = tmp_path / ("again" if form is saved else "published")
        round_trip(tmp_path / "model", output)
        assert json.loads((output / "config.json").read_text()) == form
        assert same_tensors(tmp_path / "model", output)
    assert reads[0].config.head == reads[1].config.head
    assert dataclasses.replace(reads[0].config, fields={}) == dataclasses.replace(
        reads[1].config, fields={}
    )
    compare(model, reads[0], SHORT, 1280)
    if head == "masked LM":
        compare(model, reads[0], [LONG], LONG)


def same_tensors(before, after) -> bool:
    a, b = (load_file(folder / "model.safetensors") for folder in (before, after))
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a
    )


@pytest.mark.parametrize(
    ("head", "change"),
    [
        ("masked LM", {"norm_bias": True}),
        ("encoder", {"attention_bias": True}),
        ("spans", {"mlp_bias": True}),
        ("masked LM", {"classifier_bias": True}),
        ("masked LM", {"decoder_bias": False}),
        ("masked LM", {"tie_word_embeddings": False}),
        ("masked LM", {"classifier_activation": "relu"}),
        ("encoder", {"hidden_activation": "silu"}),
        ("encoder", {"is_causal": True}),
        ("encoder", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
        ("encoder", {"layer_types": ["full_attention", "full_attention", "sliding_attention"] * 2}),
    ],
    ids=str,
)
def test_what_it_is_not_is_refused_by_the_fields_name(head, change, tmp_path):
    """Folders that `transformers` makes without a word."""
    fields = CONFIGS["Ettin"] | {"architectures": [name_of(head)], "num_hidden_layers": 6}
    write_model(tmp_path / "model", fields | change)
    # `save_pretrained` writes some of them under other names.
    told = json.loads((tmp_path / "model" / "config.json").read_text()) | change
    (tmp_path / "model" / "config.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match=next(iter(change))) as error:
        load_model(tmp_path / "model")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 8e4}}, "rope_parameters is"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_parameters is"),
        ({"rope_parameters": [1]}, "rope_parameters is"),
        ({"rope_parameters": {"full_attention": {"type": "linear"}}}, "rope_type is 'linear'"),
        (
            {
                "rope_parameters": {"full_attention": {"rope_theta": "1e5"}},
                "global_rope_theta": "1e5",
            },
            "full_attention.rope_theta is '1e5'",
        ),
        ({"layer_types": 4}, "layer_types"),
        ({"num_labels": 0}, "num_labels is 0"),
        ({"num_labels": "3"}, "num_labels is '3'"),
        ({"num_labels": True}, "num_labels is True"),
        ({"num_labels": 3, "id2label": {"0": "a", "1": "b"}}, "num_labels is 3"),
        ({"head_dim": 32}, "head_dim is 32"),
        ({"sliding_window": 32}, "sliding_window is 32"),
        ({"quantization_config": {"load_in_8bit": True}}, "quantization_config"),
    ],
    ids=str,
)
def test_what_transformers_refuses_or_takes_for_something_else_is_refused(
    change, message, tmp_path
):
    fields = CONFIGS["Ettin"] | {"architectures": ["ModernBertForTokenClassification"]} | change
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=message):
        load_model(tmp_path)


def test_what_changed_since_the_import_is_written_and_nothing_else(tmp_path):
    """Of a checkpoint whose rows became shorter and whose labels have other names, unlike the imported one's."""
    fields = CONFIGS["Ettin"] | {"architectures": [name_of("spans")], "mine": {"a": [1, None]}}
    write_model(tmp_path / "model", fields)
    (tmp_path / "model" / "config.json").write_text(json.dumps(fields))
    model = load_model(tmp_path / "model")
    assert model.config.head == HeadConfig(SPANS, ("LABEL_0", "LABEL_1"))
    meta = import_meta(tmp_path / "model", model.config)
    meta["config"]["data"]["row_length"] = 4096
    meta["config"]["head"]["labels"] = ("start", "end")
    meta["phase"] = "trained on"
    export_hf(tmp_path / "out", model.params, meta, copied_tokenizer(meta), verify=False)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == fields | {
        "max_position_embeddings": 4096,
        "id2label": {"0": "start", "1": "end"},
        "label2id": {"start": 0, "end": 1},
    }
    export_hf(
        tmp_path / "half", model.params, meta, copied_tokenizer(meta), dtype="float16", verify=False
    )
    written = json.loads((tmp_path / "half" / "config.json").read_text())
    assert written["torch_dtype"] == "float16"
    assert load_model(tmp_path / "half").config.stored == "float16"


def test_what_half_precision_cannot_hold_is_not_written(tmp_path):
    fields = CONFIGS["mmBERT"] | {"architectures": ["ModernBertModel"]}
    write_model(tmp_path / "model", fields)
    model = load_model(tmp_path / "model")
    assert model.config.head == HeadConfig(ENCODER)
    meta = import_meta(tmp_path / "model", model.config)
    for value, message in ((1e5, "reaches 1e[+]05, beyond float16"), (np.nan, "no numbers")):
        model.params["final_norm"][3] = value
        with pytest.raises(UserError, match=f"final_norm.weight.* {message}"):
            export_hf(
                tmp_path / "out", model.params, meta, checkpoint_tokenizer(meta), dtype="float16"
            )
    assert not (tmp_path / "out").exists()
