"""Shrinking: what is sampled, that variances stay, that training goes faster from there, what the tool writes."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

from mmbert_jax.checkpoint import restore_params, save_params
from mmbert_jax.data.cldr_text import documents
from mmbert_jax.errors import UserError
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.model.heads import init_params
from mmbert_jax.model.row_keys import in_words
from mmbert_jax.parallel.mesh import make_mesh
from mmbert_jax.step import (
    abstract_state,
    init_optimizer,
    make_eval_step,
    make_train_step,
)
from mmbert_jax.surgery.shrink import pick_layers, picks, shrink, smaller_config

TOOL = Path(__file__).resolve().parents[2] / "tools" / "shrink.py"
BASE = ModelConfig()
SMALL = ModelConfig(hidden_size=384, num_heads=6)
TINY = ModelConfig(vocab_size=60, hidden_size=32, num_layers=7, num_heads=4, intermediate_size=12)


def test_picks_are_evenly_spread():
    assert picks(768, 384).tolist() == list(range(0, 768, 2))
    assert picks(7, 3).tolist() == [0, 2, 4]
    assert picks(5, 5).tolist() == list(range(5))
    for count, wanted in ((1152, 1000), (22, 21), (12, 7)):
        steps = np.diff([*picks(count, wanted), count])
        assert set(steps) <= {count // wanted, count // wanted + 1}


def test_base_to_small_has_the_shapes_of_small():
    """The published sizes, with arrays that take no memory."""
    assert smaller_config(BASE, hidden_size=384) == SMALL
    shapes = jax.eval_shape(lambda: init_params(BASE, 0))
    empty = jax.tree.map(lambda x: np.broadcast_to(np.float32(1), x.shape), shapes)
    # All but the embedding, whose 100M entries would be made for nothing.
    empty["embeddings"]["tokens"] = empty["embeddings"]["tokens"][:100]
    result = shrink(empty, BASE, SMALL)
    wanted = jax.eval_shape(lambda: init_params(dataclasses.replace(SMALL), 0))
    assert result["embeddings"]["tokens"].shape == (100, 384)
    result["embeddings"]["tokens"] = np.broadcast_to(np.float32(1), (256_000, 384))
    assert jax.tree.map(np.shape, result) == jax.tree.map(lambda x: x.shape, wanted)
    assert result["layers"]["3"]["attn"]["wqkv"].dtype == np.float32
    assert result["layers"]["3"]["attn"]["wqkv"][0, 0, 0, 0] == pytest.approx(2**0.5)


@pytest.mark.parametrize(("layers", "expected"), [
    (22, list(range(22))),
    (11, [0, 1, 4, 6, 7, 10, 12, 13, 16, 18, 19]),
    (2, [0, 1]),
    (1, [0]),
])  # fmt: skip
def test_layers_keep_their_kind(layers, expected):
    smaller = smaller_config(
        dataclasses.replace(BASE, vocab_size=99), num_layers=layers, hidden_size=384
    )
    found = pick_layers(BASE, smaller)
    assert found == expected
    assert [BASE.is_global(i) for i in found] == [smaller.is_global(i) for i in range(layers)]
    assert len(set(found)) == layers


def numbered(config):
    """Parameters whose every entry is another whole number."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: rng.permutation(x.size).reshape(x.shape).astype(np.float32),
        init_params(config, 0),
    )


def test_whole_heads_and_both_halves_alike():
    """Entry by entry, with plain indices: from 4 heads of 8 to 2, and from 12 GLU dimensions to 9."""
    smaller = smaller_config(TINY, hidden_size=16, num_layers=3, intermediate_size=9)
    params, (root2, over_f) = numbered(TINY), (2**0.5, (12 / 9) ** 0.5)
    result = shrink(params, TINY, smaller)
    dims, heads, glu = range(0, 32, 2), (0, 2), (0, 1, 2, 4, 5, 6, 8, 9, 10)
    layers = (0, 1, 4)
    for i, source in enumerate(layers):
        old, new = params["layers"][str(source)], result["layers"][str(i)]
        assert ("attn_norm" in new) == (i > 0)
        for a, d in enumerate(dims):
            assert new["mlp_norm"][a] == old["mlp_norm"][d]
            for b, head in enumerate(heads):
                np.testing.assert_allclose(
                    new["attn"]["wqkv"][a, :, b], old["attn"]["wqkv"][d, :, head] * root2, rtol=1e-6
                )
                np.testing.assert_allclose(
                    new["attn"]["wo"][b, :, a], old["attn"]["wo"][head, :, d] * root2, rtol=1e-6
                )
            for c, f in enumerate(glu):
                np.testing.assert_allclose(
                    new["mlp"]["wi"][a, :, c], old["mlp"]["wi"][d, :, f] * root2, rtol=1e-6
                )
                np.testing.assert_allclose(
                    new["mlp"]["wo"][c, a], old["mlp"]["wo"][f, d] * over_f, rtol=1e-6
                )
    np.testing.assert_allclose(
        result["embeddings"]["tokens"], params["embeddings"]["tokens"][:, ::2] * root2, rtol=1e-6
    )
    np.testing.assert_allclose(
        result["head"]["dense"], params["head"]["dense"][::2, ::2] * root2, rtol=1e-6
    )
    np.testing.assert_array_equal(result["head"]["bias"], params["head"]["bias"])


def test_refuses_what_does_not_fit():
    for sizes, message in (
        ({"hidden_size": 400}, "multiple of 64"),
        ({"hidden_size": 1536}, "the larger model has 768"),
        ({"num_layers": 23}, "the larger model has 22"),
        ({"intermediate_size": 0}, "the larger model has 1152"),
        ({"hidden_size": 768}, "give a smaller one"),
    ):
        with pytest.raises(UserError, match=message):
            smaller_config(BASE, **sizes)


# --- a real, if small, experiment: a base learns from text, and a model of half its width starts from it ---

LENGTH, ROWS = 64, 16


def byte_rows(by_language):
    """Rows of text as UTF-8 bytes, ids 5 to 260."""
    rows = []
    for of_language in by_language:
        text = "\n".join(of_language).encode()
        ids = np.frombuffer(text, np.uint8)[: len(text) // LENGTH * LENGTH].astype(np.int32) + 5
        rows.append(ids.reshape(-1, LENGTH))
    tokens = np.random.default_rng(0).permutation(np.concatenate(rows))
    tokens = tokens[: len(tokens) // ROWS * ROWS]
    return {
        "tokens": tokens,
        "segment_ids": np.ones_like(tokens),
        "positions": np.broadcast_to(np.arange(LENGTH, dtype=np.int32), tokens.shape),
    }


def byte_config(**sizes):
    config = tiny_config(train__batch_rows=ROWS, train__microbatch_rows=ROWS)
    config.model.vocab_size = 261
    config.model.num_layers = 3
    config.model.intermediate_size = 96
    config.model.attention_output_dropout = 0.0
    config.optimizer.peak_lr = 3e-3
    config.train.loss_chunk = 261
    config.model.update(sizes)
    return config


def train(config, mesh, step, text, start, stops):
    """Trains from `start`; yields the parameters after so many steps each. Copies, since a step donates its state."""
    start = jax.tree.map(jnp.array, start)
    state = {"params": start, "optimizer": init_optimizer(config, start)}
    state = jax.device_put(state, jax.tree.map(lambda x: x.sharding, abstract_state(config, mesh)))
    batches = len(text["tokens"]) // ROWS
    for i in range(max(stops)):
        part = slice(i % batches * ROWS, (i % batches + 1) * ROWS)
        batch = {name: x[None, part] for name, x in text.items()}
        rate = np.float32(config.optimizer.peak_lr * min(1, (i + 1) / 10))
        state, _ = step(state, batch, np.int32(1), in_words(i * ROWS), rate)
        if i + 1 in stops:
            yield jax.tree.map(np.array, state["params"])


def held_out_losses(config, mesh, several, text):
    """The held-out loss of each of several models of one shape."""
    shape = ModelConfig.from_config(config.model)
    evaluate = make_eval_step(shape, mesh, mask_ratio=0.15, dtype="float32", loss_chunk=261)
    losses = []
    for params in several:
        sums = []
        for at in range(0, len(text["tokens"]), ROWS):
            rows = {name: x[at : at + ROWS] for name, x in text.items()}
            sums.append(evaluate(params, rows, in_words(at), np.uint32(0)))
        losses.append(
            float(sum(s["loss"].sum() for s in sums) / sum(s["targets"].sum() for s in sums))
        )
    return losses


LANGUAGES = ("en", "de", "fi", "sw")


@pytest.fixture(scope="module")
def learnt():
    """A base that learnt from four languages' text for 200 steps: its config, parameters, and text of both kinds."""
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    texts = [list(documents(language, 170)) for language in LANGUAGES]
    text, held_out = byte_rows(x[:150] for x in texts), byte_rows(x[150:] for x in texts)
    config = byte_config(hidden_size=64, num_heads=4)
    start = init_params(ModelConfig.from_config(config.model), 0)
    (params,) = train(config, mesh, make_train_step(config, mesh), text, start, stops=[200])
    return mesh, config, params, text, held_out


def test_a_shrunk_model_learns_faster_than_a_new_one(learnt):
    mesh, config, params, text, held_out = learnt
    small = byte_config(hidden_size=32, num_heads=2)
    shape = ModelConfig.from_config(small.model)
    starts = {
        "shrunk": shrink(params, ModelConfig.from_config(config.model), shape),
        "new": init_params(shape, 0),
    }
    step, losses = make_train_step(small, mesh), {}
    for name, start in starts.items():
        trained = train(small, mesh, step, text, start, stops=[20, 60])
        losses[name] = held_out_losses(small, mesh, [start, *trained], held_out)
    print("held-out loss after 0, 20 and 60 steps:", losses)
    assert losses["new"][0] > np.log(261) - 0.1  # knows nothing
    for after in (1, 2):
        assert losses["shrunk"][after] < losses["new"][after] - 0.05, losses


def test_variances_stay_where_inputs_are_independent():
    """Of what Wqkv, Wi and the decoder make, in a model of random weights; unscaled they would halve."""
    config = dataclasses.replace(BASE, vocab_size=400, num_layers=1, intermediate_size=600)
    smaller = smaller_config(config, hidden_size=384, intermediate_size=300)
    params = jax.tree.map(np.asarray, init_params(config, 0))

    def variances(params):
        embedding, layer = params["embeddings"]["tokens"], params["layers"]["0"]
        x = (embedding - embedding.mean(-1, keepdims=True)) / embedding.std(-1, keepdims=True)
        rng = np.random.default_rng(0)
        wide = rng.normal(size=(400, layer["mlp"]["wo"].shape[0]))
        hidden = rng.normal(size=(400, embedding.shape[1]))
        return {
            "queries": np.einsum("nd,dhk->nhk", x, layer["attn"]["wqkv"][:, 0]).var(),
            "GLU": np.einsum("nd,df->nf", x, layer["mlp"]["wi"][:, 0]).var(),
            "MLP": (wide @ layer["mlp"]["wo"]).var(),
            "logits": (hidden @ embedding.T).var(),
        }

    before, after = variances(params), variances(shrink(params, config, smaller))
    for name in before:
        assert after[name] == pytest.approx(before[name], rel=0.05), name


def test_the_tool_writes_a_checkpoint_to_start_from(tmp_path):
    config = tiny_config(model__num_layers=4)
    shape = ModelConfig.from_config(config.model)
    meta = {
        "phase": "phase1",
        "step": 7,
        "tokens": 70,
        "config": config.to_dict(),
        "tokenizer": {"sha256": "a", "vocab_size": 512},
    }
    save_params(tmp_path / "base", jax.tree.map(np.asarray, init_params(shape, 0)), meta)

    def run(*arguments):
        return subprocess.run(
            [sys.executable, str(TOOL), *map(str, arguments)],
            capture_output=True,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            check=False,
        )

    arguments = ("--checkpoint", tmp_path / "base", "--output", tmp_path / "small")
    result = run(*arguments, "--hidden_size", 16, "--num_layers", 2)
    assert result.returncode == 0, result.stderr
    assert "layers from 0 1" in result.stdout
    params, found = restore_params(tmp_path / "small")
    wanted = ModelConfig.from_config(found["config"]["model"])
    assert (wanted.hidden_size, wanted.num_layers, wanted.num_heads) == (16, 2, 1)
    shapes = jax.tree.map(lambda x: x.shape, jax.eval_shape(lambda: init_params(wanted, 0)))
    assert jax.tree.map(np.shape, params) == shapes
    assert found["history"] == [{"phase": "phase1", "step": 7, "tokens": 70}]
    assert found["tokenizer"] == meta["tokenizer"]
    assert (found["phase"], found["step"]) == ("shrunk", 0)

    result = run(*arguments, "--hidden_size", 16)
    assert result.returncode == 2
    assert "is not empty" in result.stderr
