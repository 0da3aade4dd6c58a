"""The step: the same on every mesh and for every split into microbatches, and nothing recompiled as batches grow."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_rows, tiny_config

from mmbert_jax.model.config import ModelConfig
from mmbert_jax.model.heads import bind, encode
from mmbert_jax.model.masking import mask_tokens
from mmbert_jax.model.row_keys import count_rows, in_words
from mmbert_jax.parallel.mesh import make_mesh
from mmbert_jax.step import init_state, make_eval_step, make_train_step

COMPILED_AS_USERS_DO = True


def in_microbatches(batch, size):
    """The same rows in microbatches of another size, the last one filled up with padding, and how many those are."""
    rows = {name: x.reshape(-1, x.shape[-1]) for name, x in batch.items()}
    missing = -len(rows["tokens"]) % size
    filled = {name: np.pad(x, ((0, missing), (0, 0))) for name, x in rows.items()}
    cut = {name: x.reshape(-1, size, x.shape[-1]) for name, x in filled.items()}
    return cut, len(cut["tokens"])


SEED = np.uint32(2**31 + 5)


def run(config, mesh_shape, batch, count, steps=6, first_row=0):
    names = ("data", "fsdp", "tensor")
    mesh = make_mesh(
        dict(zip(names, mesh_shape, strict=True)), jax.devices()[: np.prod(mesh_shape)]
    )
    state, step = init_state(config, mesh), make_train_step(config, mesh)
    losses = []
    for i in range(steps):
        row = in_words(first_row + 16 * i)
        state, metrics = step(state, batch, np.int32(count), row, np.float32(2e-3), SEED)
        losses.append([float(metrics[name]) for name in ("loss", "masked_accuracy", "targets")])
    return np.array(losses), jax.tree.map(np.asarray, state["params"]), step


@pytest.fixture(scope="module")
def one_device():
    return run(tiny_config(), (1, 1, 1), random_rows(2, 8), 2)


@pytest.mark.parametrize(
    ("mesh_shape", "microbatch_rows"),
    [((8, 1, 1), 16), ((2, 1, 1), 8), ((2, 4, 1), 32), ((2, 2, 2), 12)],
)
def test_every_mesh_and_microbatch_give_what_one_device_gives(
    one_device, mesh_shape, microbatch_rows
):
    """The batch of 16 rows is one microbatch, two, half of one, or one and a third; masks and dropout are its rows'."""
    config = tiny_config(train__microbatch_rows=microbatch_rows)
    batch = in_microbatches(random_rows(2, 8), microbatch_rows)
    losses, params, _ = run(config, mesh_shape, *batch)
    np.testing.assert_allclose(losses, one_device[0], rtol=2e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), params, one_device[1])


def test_empty_slots_do_not_count_and_do_not_recompile(one_device):
    _, _, step = one_device
    config, mesh = tiny_config(), make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    batch = random_rows(2, 8)
    noise = {name: np.concatenate([x[:1], x[1:] * 0 + 7]) for name, x in batch.items()}
    results = []
    for b in (batch, noise):
        state, metrics = step(
            init_state(config, mesh), b, np.int32(1), in_words(0), np.float32(1e-3), SEED
        )
        results.append((float(metrics["loss"]), jax.tree.map(np.asarray, state["params"])))
    assert results[0][0] == results[1][0]
    jax.tree.map(np.testing.assert_array_equal, results[0][1], results[1][1])
    assert step._cache_size() == 1


def test_loss_and_accuracy_are_those_of_plain_cross_entropy():
    """The evaluation step against cross-entropy over all logits, written out in float64."""
    config = tiny_config()
    model_config = ModelConfig.from_config(config.model)
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    params = init_state(config, mesh)["params"]
    batch = {name: x[0] for name, x in random_rows(1, 8).items()}
    step = make_eval_step(model_config, mesh, mask_ratio=0.15, dtype="float32", loss_chunk=128)
    sums = step(params, batch, in_words(5), np.uint32(3))

    inputs, positions, labels, weights = mask_tokens(
        jax.random.fold_in(jax.random.key(0), 3),
        count_rows(in_words(5), 8),
        batch["tokens"],
        ratio=0.15,
        vocabulary=512,
        reserved=((0, 5),),
        mask_id=4,
    )
    hidden = encode(params, model_config, inputs, batch["segment_ids"], batch["positions"])
    logits = np.asarray(bind(model_config, params).logits(hidden), np.float64)
    logits = np.take_along_axis(logits, np.asarray(positions)[..., None], 1)
    losses = (
        np.log(np.exp(logits).sum(-1))
        - np.take_along_axis(logits, np.asarray(labels)[..., None], -1)[..., 0]
    )
    np.testing.assert_allclose(sums["loss"], (losses * weights).sum(1), rtol=1e-5)
    np.testing.assert_array_equal(sums["targets"], weights.sum(1))
    np.testing.assert_array_equal(sums["correct"], ((logits.argmax(-1) == labels) * weights).sum(1))


def test_the_step_needs_no_more_than_jax_flax_optax_and_numpy():
    """So it can be measured on a machine that has nothing else but what flax itself needs."""
    absent = ("array_record", "clu", "grain", "ml_collections", "tensorboardX", "tokenizers")
    code = f"import sys; sys.modules.update(dict.fromkeys({absent})); import mmbert_jax.step"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_step_without_finite_gradients_changes_nothing(monkeypatch):
    """The run goes on as one that never took that step, also where NaN or infinity is in one row's loss alone."""
    bad_rows = {3: np.nan, 19: np.inf}

    def poisoned(key, rows, *args, **options):
        inputs, positions, labels, weights = mask_tokens(key, rows, *args, **options)
        for row, value in bad_rows.items():
            weights = jnp.where((rows[:, 1] == row)[:, None], value, weights)
        return inputs, positions, labels, weights

    monkeypatch.setattr("mmbert_jax.step.mask_tokens", poisoned)
    config, mesh = tiny_config(), make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    step, batch = make_train_step(config, mesh), random_rows(1, 8)

    def take(first_rows):
        state, skipped = init_state(config, mesh), []
        for row in first_rows:
            state, metrics = step(state, batch, np.int32(1), in_words(row), np.float32(2e-3), SEED)
            skipped.append(float(metrics["skipped"]))
            assert np.isfinite(float(metrics["grad_norm"])) != metrics["skipped"]
        return jax.tree.map(np.asarray, state), skipped

    ours, skipped = take([0, 8, 16, 24])
    never, _ = take([8, 24])
    assert skipped == [1, 0, 1, 0]
    assert int(ours["optimizer"].count) == 2
    jax.tree.map(np.testing.assert_array_equal, ours, never)


def test_phases_that_differ_in_their_seed_share_a_program(one_device):
    """The seed is an argument: nothing is compiled anew for it, and it decides what is masked and dropped."""
    _, _, step = one_device
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    config, losses = tiny_config(), []
    for seed in (1, 2):
        state = init_state(config, mesh)
        batch = random_rows(2, 8)
        _, metrics = step(state, batch, np.int32(2), in_words(0), np.float32(1e-3), np.uint32(seed))
        losses.append(float(metrics["loss"]))
    assert step._cache_size() == 1
    assert losses[0] != losses[1]
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), init_state(config, mesh)
    )
    scalars = (np.int32(2), in_words(0), np.float32(1e-3), np.uint32(1))
    texts = [
        make_train_step(tiny_config(**other), mesh).lower(abstract, batch, *scalars).as_text()
        for other in ({"phase": "a"}, {"phase": "b", "seed": 5})
    ]
    assert texts[0] == texts[1]
