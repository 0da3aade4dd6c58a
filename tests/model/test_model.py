"""The architecture's published sizes and its initialisation; values are compared in tests/hf/test_parity.py."""

import jax
import numpy as np
import pytest
from flax import nnx

from mmbert_jax.model.config import ModelConfig
from mmbert_jax.model.heads import MaskedLM, abstract_model, bind, encode, init_params, param_dict

COMPILED_AS_USERS_DO = True

SMALL = {"hidden_size": 384, "num_heads": 6}
TINY = ModelConfig(vocab_size=512, hidden_size=128, num_layers=4, num_heads=2, intermediate_size=96)


@pytest.mark.parametrize(
    ("sizes", "total", "without_embedding"),
    [(SMALL, 140_897_536, 42_593_536), ({}, 307_786_240, 111_178_240)],
)
def test_parameter_counts_are_the_published_ones(sizes, total, without_embedding):
    config = ModelConfig(**sizes)
    params = param_dict(abstract_model(config)[1])
    assert sum(x.size for x in jax.tree.leaves(params)) == total
    embedding = params["embeddings"]["tokens"].size
    # The published figure leaves the token embedding out and keeps the decoder's bias.
    assert total - embedding == without_embedding


def test_layers_follow_the_pattern():
    model = nnx.eval_shape(lambda: MaskedLM(ModelConfig(), rngs=nnx.Rngs(params=0)))
    assert [i for i, layer in enumerate(model.layers) if layer.attn.is_global] == [
        0,
        3,
        6,
        9,
        12,
        15,
        18,
        21,
    ]
    assert [i for i, layer in enumerate(model.layers) if layer.attn_norm is None] == [0]


def test_initialisation_is_full_megatron():
    params = init_params(TINY, seed=0)
    # A normal distribution cut off at two sigma keeps 0.8796 of its standard deviation.
    residual = 0.02 / np.sqrt(2 * TINY.num_layers)
    layer = params["layers"]["1"]
    for weight, sigma in [
        (params["embeddings"]["tokens"], 0.02),
        (layer["attn"]["wqkv"], 0.02),
        (layer["mlp"]["wi"], 0.02),
        (params["head"]["dense"], 0.02),
        (layer["attn"]["wo"], residual),
        (layer["mlp"]["wo"], residual),
    ]:
        assert np.std(weight) == pytest.approx(0.8796 * sigma, rel=0.03)
        assert np.abs(weight).max() <= 2 * sigma
    np.testing.assert_array_equal(params["final_norm"], 1)
    np.testing.assert_array_equal(params["head"]["bias"], 0)


def test_a_packed_row_gives_each_document_the_same_as_alone():
    params = init_params(TINY, seed=0)
    rng = np.random.default_rng(0)
    lengths = [1, 64, 65, 130, 200]
    documents = [rng.integers(5, 512, n).astype(np.int32) for n in lengths]
    row = np.concatenate([*documents, np.zeros(40, np.int32)])[None]
    segment_ids = np.concatenate([np.repeat(np.arange(1, 6), lengths), np.zeros(40)]).astype(
        np.int32
    )[None]
    positions = np.concatenate([*map(np.arange, lengths), np.zeros(40)]).astype(np.int32)[None]
    packed = encode(params, TINY, row, segment_ids, positions)
    assert np.isfinite(packed).all()
    for document, end in zip(documents, np.cumsum(lengths), strict=True):
        n = len(document)
        alone = encode(
            params,
            TINY,
            document[None],
            np.ones((1, n), np.int32),
            np.arange(n, dtype=np.int32)[None],
        )
        np.testing.assert_allclose(packed[:, end - n : end], alone, atol=2e-5)


def test_dropout_acts_in_training_only():
    params = init_params(TINY, seed=0)
    tokens = np.random.default_rng(0).integers(5, 512, (1, 32)).astype(np.int32)
    inputs = (tokens, np.ones_like(tokens), np.arange(32, dtype=np.int32)[None])
    model = bind(TINY, params)
    evaluated = model(*inputs)
    np.testing.assert_array_equal(evaluated, model(*inputs))
    keys = (jax.random.split(jax.random.key(k), 1) for k in (0, 0, 1))
    dropped = [np.asarray(model(*inputs, dropout_keys=k)) for k in keys]
    np.testing.assert_array_equal(dropped[0], dropped[1])
    assert np.abs(dropped[0] - dropped[2]).max() > 1e-3
    assert np.abs(dropped[0] - evaluated).max() > 1e-3
