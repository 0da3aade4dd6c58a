"""The same logits as `transformers`, in float32, from weights imported by name; and back again, bit for bit."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from mmbert_jax.hf.config import from_hf, read_config, to_hf
from mmbert_jax.hf.load import load_hf
from mmbert_jax.hf.names import table, their_shape, to_theirs
from mmbert_jax.hf.weights import save_weights
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.model.heads import abstract_model, outputs, param_dict

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from random_modernbert import SHAPES, documents, logits_alone, random_model, save  # noqa: E402
from safetensors import safe_open  # noqa: E402
from transformers import ModernBertConfig, ModernBertForMaskedLM  # noqa: E402

TOLERANCE = 1e-4
# One token, around half the window (64) and the whole one (129 keys), odd lengths, and well beyond it.
LENGTHS = [1, 2, 17, 63, 64, 65, 66, 128, 129, 130, 131, 193, 300]

SMALL = ModelConfig(hidden_size=384, num_heads=6)
BASE = ModelConfig()


@pytest.fixture(scope="module", params=SHAPES)
def pair(request, tmp_path_factory):
    """(model of `transformers`, our parameters and config) with the same weights, by way of its saved folder."""
    model = random_model(request.param)
    folder = save(model, tmp_path_factory.mktemp(request.param))
    params, config, _ = load_hf(folder)
    return model, params, config, folder


def pack(docs: list[np.ndarray], row_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One packed row, written here independently of the package: tokens, segment_ids, positions [1, L]."""
    tokens, segment_ids, positions = (np.zeros(row_length, np.int32) for _ in range(3))
    start = 0
    for number, doc in enumerate(docs, start=1):
        stop = start + len(doc)
        tokens[start:stop], segment_ids[start:stop], positions[start:stop] = (
            doc,
            number,
            np.arange(len(doc)),
        )
        start = stop
    return tokens[None], segment_ids[None], positions[None]


def split(logits: np.ndarray, docs: list[np.ndarray]) -> list[np.ndarray]:
    ends = np.cumsum([len(doc) for doc in docs])
    return np.split(logits[: ends[-1]], ends[:-1])


def test_padded_batch(pair):
    """Documents of all lengths under each other, padded to the longest, as `transformers` batches them."""
    model, params, config, _ = pair
    docs = documents(LENGTHS, config.vocab_size)
    rows = [pack([doc], max(LENGTHS)) for doc in docs]
    tokens, segment_ids, positions = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    with torch.no_grad():
        theirs = model(
            input_ids=torch.from_numpy(tokens).long(),
            attention_mask=torch.from_numpy(segment_ids).long(),
        ).logits.numpy()
    ours = np.asarray(outputs(params, config, tokens, segment_ids, positions))
    assert np.isfinite(ours).all()
    valid = segment_ids > 0
    assert np.abs(theirs[valid]).max() > 3, "the reference is too flat to compare with"
    difference = np.abs(ours - theirs)[valid].max()
    assert difference < TOLERANCE
    print(f"largest difference {difference:.1e} in logits up to {np.abs(theirs[valid]).max():.1f}")


def test_packed_row_equals_each_document_alone(pair):
    """Against `transformers`, which sees each document alone, and against ourselves."""
    model, params, config, _ = pair
    order = np.random.default_rng(0).permutation(len(LENGTHS))
    docs = documents([LENGTHS[i] for i in order], config.vocab_size)
    row = pack(docs, sum(LENGTHS) + 37)
    together = split(np.asarray(outputs(params, config, *row))[0], docs)
    rows = [pack([doc], max(LENGTHS)) for doc in docs]
    alone = np.asarray(outputs(params, config, *map(np.concatenate, zip(*rows, strict=True))))
    for doc, packed, ours in zip(docs, together, alone, strict=True):
        np.testing.assert_allclose(packed, logits_alone(model, doc), rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(packed, ours[: len(doc)], rtol=0, atol=3e-5)


def test_what_the_neighbours_say_does_not_matter(pair):
    """Bit for bit: other tokens in the other segments of a row leave a segment's logits as they are."""
    _, params, config, _ = pair
    docs = documents([70, 140, 90], config.vocab_size)
    others = documents([70, 140, 90], config.vocab_size, seed=2)
    before = np.asarray(outputs(params, config, *pack(docs, 320)))[0, 70:210]
    after = np.asarray(outputs(params, config, *pack([others[0], docs[1], others[2]], 320)))[
        0, 70:210
    ]
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    "change",
    [
        {"attention_window": 126},
        {"attention_window": 130},
        {"global_rope_theta": 24_000.0},
        {"local_rope_theta": 720.0},
        {"norm_eps": 1e-3},
        {"global_every": 5},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_comparison_would_notice(pair, change):
    """Each field of the config moves the logits by far more than the tolerance, so that the tests above have teeth."""
    model, params, config, _ = pair
    (document,) = documents([300], config.vocab_size)
    wrong = np.asarray(
        outputs(params, dataclasses.replace(config, **change), *pack([document], 300))
    )[0]
    if all(getattr(config, field) != value for field, value in change.items()):
        assert np.abs(wrong - logits_alone(model, document)).max() > 10 * TOLERANCE


def test_back_again_bit_for_bit(pair, tmp_path):
    """The bytes of every tensor as `transformers` saved it, and no other tensor."""
    _, params, config, folder = pair
    save_weights(tmp_path, to_theirs(params, config), max_shard_bytes=10**9)
    with (
        safe_open(folder / "model.safetensors", "np") as saved,
        safe_open(tmp_path / "model.safetensors", "np") as back,
    ):
        names = set(saved.keys())
        assert names == set(back.keys())
        assert saved.metadata()["format"] == back.metadata()["format"]
        for name in names:
            assert saved.get_tensor(name).dtype == back.get_tensor(name).dtype
            assert saved.get_tensor(name).tobytes() == back.get_tensor(name).tobytes(), name


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("shape", SHAPES)
def test_exported_folder_loads_into_the_same_model(shape, attention, tmp_path):
    """config.json and weights written here, read by `transformers`: its logits are ours, also from its own copy."""
    params, config, max_positions = load_hf(save(random_model(shape), tmp_path / "theirs"))
    ours = tmp_path / "ours"
    ours.mkdir()
    save_weights(ours, to_theirs(params, config), max_shard_bytes=100_000)  # several shards
    assert len(list(ours.glob("model-*.safetensors"))) > 1
    (ours / "config.json").write_text(json.dumps(to_hf(config, max_positions, "float32")))
    model = ModernBertForMaskedLM.from_pretrained(ours, attn_implementation=attention)
    assert model.dtype == torch.float32
    (document,) = documents([300], config.vocab_size)
    expected = np.asarray(outputs(params, config, *pack([document], 300)))[0]
    np.testing.assert_allclose(logits_alone(model, document), expected, rtol=0, atol=TOLERANCE)
    again, config_again, _ = load_hf(save(model, tmp_path / "again"))
    assert config_again == config
    for path, x in flatten_dict(again, sep="/").items():
        np.testing.assert_array_equal(x, flatten_dict(params, sep="/")[path])


@pytest.mark.parametrize(
    ("config", "total"), [(SMALL, 140_897_536), (BASE, 307_786_240)], ids=["small", "base"]
)
def test_full_size_has_the_same_tensors(config, total):
    """Names, shapes and count of the table, of our model and of `transformers`', which is built without memory."""
    fields = {
        k: v
        for k, v in to_hf(config, 8192, "float32").items()
        if k not in ("architectures", "torch_dtype")
    }
    with torch.device("meta"):
        model = ModernBertForMaskedLM(ModernBertConfig(**fields))
    theirs = {name: tuple(x.shape) for name, x in model.named_parameters()}
    rows = table(config)
    assert {name.theirs: their_shape(name, config) for name in rows} == theirs
    ours = flatten_dict(param_dict(abstract_model(config)[1]), sep="/")
    assert {name.ours: name.shape(config) for name in rows} == {
        path: x.shape for path, x in ours.items()
    }
    assert sum(math.prod(shape) for shape in theirs.values()) == total
    assert sum(x.size for x in jax.tree.leaves(ours)) == total


@pytest.mark.parametrize(
    ("fields", "thetas"),
    [({}, (160_000.0, 10_000.0)), ({"local_rope_theta": 160_000.0}, (160_000.0, 160_000.0))],
    ids=["ModernBERT", "Ettin"],
)
def test_reads_the_configs_of_relatives(fields, thetas, tmp_path):
    """`transformers`' defaults are ModernBERT-base: its vocabulary, its special ids, 10,000 for local layers."""
    config = ModernBertConfig(architectures=["ModernBertForMaskedLM"], **fields)
    config.save_pretrained(tmp_path)
    found = read_config(json.loads((tmp_path / "config.json").read_text()))
    assert (found.model.global_rope_theta, found.model.local_rope_theta) == thetas
    assert (found.model.vocab_size, found.model.num_layers, found.max_positions) == (
        50368,
        22,
        8192,
    )
    assert found.special_ids == {
        "pad_token_id": 50283,
        "eos_token_id": 50282,
        "bos_token_id": 50281,
        "cls_token_id": 50281,
        "sep_token_id": 50282,
    }


def test_config_round_trip():
    for config in (
        SMALL,
        BASE,
        ModelConfig(num_layers=7, global_every=2, local_rope_theta=10_000.0),
    ):
        back, max_positions = from_hf(to_hf(config, 4096, "float32"))
        assert (
            dataclasses.replace(back, attention_output_dropout=config.attention_output_dropout)
            == config
        )
        assert max_positions == 4096
