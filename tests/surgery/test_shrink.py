"""Shrinking: what is sampled, that variances stay, that training goes faster from there, what the tool writes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import run_tool
from tiny import tiny_config

from mmbert_jax.checkpoint import restore_params, save_params
from mmbert_jax.data.cldr_text import documents
from mmbert_jax.errors import UserError
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.model.heads import ENCODER, KINDS, MASKED_LM, MLM, HeadConfig, init_params, outputs
from mmbert_jax.model.row_keys import in_words
from mmbert_jax.optimizer import init_optimizer
from mmbert_jax.parallel.mesh import make_mesh
from mmbert_jax.step import abstract_state, make_eval_step, make_train_step
from mmbert_jax.surgery.shrink import picks, shrink, smaller_config

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
    assert smaller_config(BASE, hidden_size=384) == (SMALL, list(range(22)))
    shapes = jax.eval_shape(lambda: init_params(BASE, 0))
    empty = jax.tree.map(lambda x: np.broadcast_to(np.float32(1), x.shape), shapes)
    # All but the embedding, whose 100M entries would be made for nothing.
    empty["embeddings"]["tokens"] = empty["embeddings"]["tokens"][:100]
    result = shrink(empty, BASE, SMALL, range(22))
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
    smaller, found = smaller_config(BASE, num_layers=layers, hidden_size=384)
    assert found == expected
    assert [BASE.is_global(i) for i in found] == [smaller.is_global(i) for i in range(layers)]
    assert len(set(found)) == layers


@pytest.mark.parametrize(("n", "period", "expected"), [
    (2, 3, [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20]),
    (3, 2, [0, 1, 3, 4, 6, 7, 9, 10, 12, 13, 15, 16, 18, 19, 21]),
    (22, 3, list(range(21))),
])  # fmt: skip
def test_every_nth_layer_can_be_dropped(n, period, expected):
    """Whatever stays keeps its kind, by a period that a config can name."""
    smaller, found = smaller_config(BASE, drop_every=n)
    assert found == expected
    assert (smaller.num_layers, smaller.global_every) == (len(expected), period)
    assert [i % period == 0 for i in range(len(found))] == [i % 3 == 0 for i in found]


def shapes(config, head=MASKED_LM):
    return jax.eval_shape(lambda: init_params(config, 0, head))


def numbered(config, head=MASKED_LM):
    """Parameters whose every entry is another whole number."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: rng.permutation(x.size).reshape(x.shape).astype(np.float32), shapes(config, head)
    )


def test_whole_heads_and_both_halves_alike():
    """Entry by entry, with plain indices: from 4 heads of 8 to 2, and from 12 GLU dimensions to 9."""
    smaller, layers = smaller_config(TINY, hidden_size=16, num_layers=3, intermediate_size=9)
    assert layers == [0, 1, 4]
    params, (root2, over_f) = numbered(TINY), (2**0.5, (12 / 9) ** 0.5)
    result = shrink(params, TINY, smaller, layers)
    dims, heads, glu = range(0, 32, 2), (0, 2), (0, 1, 2, 4, 5, 6, 8, 9, 10)
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


@pytest.mark.parametrize("kind", KINDS)
def test_every_head_is_sampled(kind):
    """With biases and without; trees and shapes are those of a new model, a task's classes stay in their order."""
    smaller, layers = smaller_config(TINY, hidden_size=16, drop_every=2)
    for dense_bias in (False, True) if kind not in (MLM, ENCODER) else (False,):
        head = HeadConfig(kind, labels=("a", "b", "c"), dense_bias=dense_bias)
        params = numbered(TINY, head)
        result = shrink(params, TINY, smaller, layers)
        wanted = shapes(smaller, head)
        assert jax.tree.map(np.shape, result) == jax.tree.map(lambda x: x.shape, wanted)
        if kind == ENCODER:
            assert "head" not in result
            continue
        old, new = params["head"], result["head"]
        np.testing.assert_allclose(new["dense"], old["dense"][::2, ::2] * 2**0.5, rtol=1e-6)
        np.testing.assert_array_equal(new["norm"], old["norm"][::2])
        if kind == MLM:
            continue
        np.testing.assert_allclose(new["classifier"], old["classifier"][::2] * 2**0.5, rtol=1e-6)
        np.testing.assert_array_equal(new["classifier_bias"], old["classifier_bias"])
        if dense_bias:
            np.testing.assert_array_equal(new["dense_bias"], old["dense_bias"][::2])


def test_refuses_what_does_not_fit():
    for sizes, message in (
        ({"hidden_size": 400}, "multiple of 64"),
        ({"hidden_size": 1536}, "the larger model has 768"),
        ({"num_layers": 23}, "the larger model has 22"),
        ({"intermediate_size": 0}, "the larger model has 1152"),
        ({"hidden_size": 768}, "give a smaller one"),
        ({"drop_every": 4}, "it can be 2, 3, 22; or give --num_layers"),
        ({"drop_every": 1}, "it can be 2, 3, 22"),
        ({"drop_every": 0}, "it can be 2, 3, 22"),
        ({"drop_every": 2, "num_layers": 3}, "give one"),
    ):
        with pytest.raises(UserError, match=message):
            smaller_config(BASE, **sizes)


# --- a real, if small, experiment: a base learns from text, and a model of half its width starts from it ---

LENGTH, ROWS = 64, 8


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
    config.model.num_layers = 2
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
        state, _ = step(state, batch, np.int32(1), in_words(i * ROWS), rate, np.uint32(1))
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
    """A base that learnt from four languages' text for 150 steps: its config, parameters, and text of both kinds."""
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    texts = [list(documents(language, 170)) for language in LANGUAGES]
    text, held_out = byte_rows(x[:150] for x in texts), byte_rows(x[150:160] for x in texts)
    config = byte_config(hidden_size=64, num_heads=4)
    start = init_params(ModelConfig.from_config(config.model), 0)
    (params,) = train(config, mesh, make_train_step(config, mesh), text, start, stops=[150])
    return mesh, config, params, text, held_out


@pytest.mark.slow
def test_a_shrunk_model_learns_faster_than_a_new_one(learnt):
    mesh, config, params, text, held_out = learnt
    small = byte_config(hidden_size=32, num_heads=2)
    shape = ModelConfig.from_config(small.model)
    starts = {
        "shrunk": shrink(params, ModelConfig.from_config(config.model), shape, range(2)),
        "new": init_params(shape, 0),
    }
    step, losses = make_train_step(small, mesh), {}
    for name, start in starts.items():
        trained = train(small, mesh, step, text, start, stops=[15, 45])
        losses[name] = held_out_losses(small, mesh, [start, *trained], held_out)
    print("held-out loss after 0, 15 and 45 steps:", losses)
    assert losses["new"][0] > np.log(261) - 0.1  # knows nothing
    for after in (1, 2):
        assert losses["shrunk"][after] < losses["new"][after] - 0.1, losses


def test_variances_stay_where_inputs_are_independent():
    """Of what Wqkv, Wi and the decoder make, in a model of random weights; unscaled they would halve."""
    config = dataclasses.replace(BASE, vocab_size=400, num_layers=1, intermediate_size=600)
    smaller, layers = smaller_config(config, hidden_size=384, intermediate_size=300)
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

    before, after = variances(params), variances(shrink(params, config, smaller, layers))
    for name in before:
        assert after[name] == pytest.approx(before[name], rel=0.05), name


def random_params(config, head=MASKED_LM):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes(config, head))


def test_the_tool_writes_a_checkpoint_to_start_from(tmp_path, monkeypatch, capsys):
    config = tiny_config(model__num_layers=4)
    shape = ModelConfig.from_config(config.model)
    meta = {
        "phase": "phase1",
        "step": 7,
        "tokens": 70,
        "config": config.to_dict(),
        "tokenizer": {"sha256": "a", "vocab_size": 512},
    }
    save_params(tmp_path / "base", random_params(shape), meta)
    arguments = ("--checkpoint", tmp_path / "base", "--output", tmp_path / "small")
    sizes = ("--hidden_size", 16, "--num_layers", 2)
    status, printed = run_tool("shrink", monkeypatch, capsys, *arguments, *sizes)
    assert status == 0, printed
    assert "layers from 0 1" in printed
    params, found = restore_params(tmp_path / "small")
    wanted = ModelConfig.from_config(found["config"]["model"])
    assert (wanted.hidden_size, wanted.num_layers, wanted.num_heads) == (16, 2, 1)
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda x: x.shape, shapes(wanted))
    assert found["history"] == [{"phase": "phase1", "step": 7, "tokens": 70}]
    assert found["tokenizer"] == meta["tokenizer"]
    assert (found["phase"], found["step"]) == ("shrunk", 0)

    status, printed = run_tool("shrink", monkeypatch, capsys, *arguments, *sizes)
    assert status == 2
    assert "is not empty" in printed


def test_half_of_a_classifiers_layers(tmp_path, monkeypatch, capsys):
    """A Hugging Face folder; `transformers`' own model with these layers alone gives the logits of the checkpoint."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    larger = dataclasses.replace(TINY, num_layers=6, attention_window=8)
    config = transformers.ModernBertConfig(
        vocab_size=60,
        hidden_size=32,
        num_attention_heads=4,
        num_hidden_layers=6,
        intermediate_size=12,
        local_attention=8,
        id2label={0: "bad", 1: "so", 2: "good"},
        label2id={"bad": 0, "so": 1, "good": 2},
        classifier_pooling="cls",
        **{f"{name}_token_id": 0 for name in ("pad", "bos", "eos", "cls", "sep")},
    )
    torch.manual_seed(0)
    model = transformers.ModernBertForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path / "hf")
    status, printed = run_tool(
        "shrink",
        monkeypatch,
        capsys,
        *("--checkpoint", tmp_path / "hf", "--drop_every", 2, "--output", tmp_path / "half"),
    )
    assert status == 0, printed
    params, meta = restore_params(tmp_path / "half")
    shape = ModelConfig.from_config(meta["config"]["model"])
    assert shape == dataclasses.replace(
        larger, num_layers=3, local_rope_theta=shape.local_rope_theta, attention_output_dropout=0.0
    )
    head = HeadConfig.from_config(meta["config"])
    assert (head.labels, head.pooling) == (("bad", "so", "good"), "cls")
    ids = np.random.default_rng(0).integers(0, 60, (2, 40))
    kept = [model.model.layers[i] for i in (0, 2, 4)]
    model.model.layers = torch.nn.ModuleList(kept)
    model.config.num_hidden_layers = 3
    with torch.no_grad():
        expected = model(torch.tensor(ids), attention_mask=torch.ones(2, 40)).logits.numpy()
    positions = np.broadcast_to(np.arange(40, dtype=np.int32), ids.shape)
    found = outputs(params, shape, ids, np.ones_like(positions), positions, head)[:, 0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
