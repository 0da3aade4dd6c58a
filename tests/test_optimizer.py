"""Muon and NorMuon in a training step: their work shared out over any mesh, resumed on any mesh, for any phase."""

import re

import jax
import numpy as np
import pytest
from tiny import random_rows, tiny_config

from mmbert_jax import checkpoint
from mmbert_jax.ahead import bytes_on_a_chip
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.model.row_keys import in_words
from mmbert_jax.optimizer import hidden_matrices, matrix_flops, why_new_moments
from mmbert_jax.parallel.collectives import collectives
from mmbert_jax.parallel.hlo import parse
from mmbert_jax.parallel.mesh import make_mesh
from mmbert_jax.run import checkpoint as checkpoint_folder
from mmbert_jax.step import abstract_state, compile_train_step, init_state

ONE = (1, 1, 1)
MESHES = {"muon": [(2, 2, 2)], "normuon": [(8, 1, 1), (1, 4, 2)]}


def mesh_of(shape):
    sizes = dict(zip(("data", "fsdp", "tensor"), shape, strict=True))
    return make_mesh(sizes, jax.devices()[: np.prod(shape)])


class Trainer:
    """Steps of 8 rows with one optimiser, on several meshes; each is compiled once."""

    def __init__(self, name):
        self.config = tiny_config(optimizer__name=name, train__batch_rows=8)
        self.rows = random_rows(1, 8)
        self.programs = {}

    def program(self, shape):
        if shape not in self.programs:
            self.programs[shape] = compile_train_step(self.config, mesh_of(shape))
        return self.programs[shape]

    def new(self, shape):
        return init_state(self.config, mesh_of(shape))

    def take(self, shape, state, first, last):
        """State after the steps first, ..., last - 1, and their losses."""
        losses = []
        for i in range(first, last):
            rate = np.float32(2e-3)
            state, metrics = self.program(shape)(
                state, self.rows, np.int32(1), in_words(8 * i), rate, np.uint32(1)
            )
            losses.append(float(metrics["loss"]))
        return state, losses


@pytest.fixture(scope="module", params=["muon", "normuon"])
def trainer(request):
    return Trainer(request.param)


@pytest.fixture(scope="module")
def half_way(trainer, tmp_path_factory):
    """A run of one device, saved after three steps; its state then, and its state and losses after six."""
    folder = tmp_path_factory.mktemp("run")
    state, losses = trainer.take(ONE, trainer.new(ONE), 0, 3)
    saved = jax.tree.map(np.array, state)
    with checkpoint.open_manager(folder, keep=1) as manager:
        checkpoint.save(manager, 3, state, {"step": 3, "row": 24, "phase": "tiny"})
    state, more = trainer.take(ONE, state, 3, 6)
    return checkpoint_folder(folder, 3), saved, jax.tree.map(np.array, state), losses + more


def restored(trainer, folder, shape):
    return checkpoint.restore(folder, abstract_state(trainer.config, mesh_of(shape)))[0]


def test_a_resumed_run_is_the_same_bit_for_bit(trainer, half_way):
    folder, saved, whole, losses = half_way
    state = restored(trainer, folder, ONE)
    jax.tree.map(np.testing.assert_array_equal, state, saved)
    state, more = trainer.take(ONE, state, 3, 6)
    assert more == losses[3:]
    jax.tree.map(np.testing.assert_array_equal, state, whole)


def test_every_mesh_goes_on_as_one_device_does(trainer, half_way):
    """From the checkpoint of one device, and from the start: data, fsdp and tensor axes, alone and together."""
    folder, saved, whole, losses = half_way
    for shape in MESHES[trainer.config.optimizer.name]:
        state = restored(trainer, folder, shape)
        jax.tree.map(np.testing.assert_array_equal, state, saved)
        state, more = trainer.take(shape, state, 3, 6)
        np.testing.assert_allclose(more, losses[3:], rtol=2e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), state, whole)
        _, all_of_them = trainer.take(shape, trainer.new(shape), 0, 6)
        np.testing.assert_allclose(all_of_them, losses, rtol=2e-6)


def test_devices_exchange_matrices_and_no_more(trainer):
    """Between those that have parts of a matrix, all-to-all, there and back; between copies, the results alone."""
    shape = MESHES[trainer.config.optimizer.name][0]
    mesh = mesh_of(shape)
    found = collectives(parse(trainer.program(shape).as_text()), mesh.shape)
    ours = [c for c in found if "/muon/" in c.where]
    kinds = {
        (c.kind, c.axes) for c in ours if c.bytes > 8 * 48 * 3 * 4
    }  # but for NorMuon's vectors
    if shape == (8, 1, 1):
        assert kinds == {("all-gather", ("data",))}
        # 9 matrices of 32 x 32, 4 of 32 x 48, 2 of 48 x 32, each number filled up to the devices.
        matrices = 16 * 32 * 32 + 8 * 32 * 48 + 8 * 48 * 32
        vectors = 16 * 32 + 8 * 48 + 8 * 32
        assert sum(c.bytes * c.times for c in ours) == 4 * (matrices + vectors)
    else:
        assert {("all-to-all", ("fsdp",)), ("all-to-all", ("tensor",))} <= kinds
        assert {c for kind, axes in kinds if kind == "all-gather" for c in axes} <= {
            "data",
            "tensor",
        }


def test_products_of_the_published_model_are_shared_evenly():
    """155 matrices of base on 8 devices: 67 + 22 of 768 x 768 and 44 + 22 of 768 x 1152."""
    config = tiny_config(optimizer__name="muon")
    config.model.update(
        {"hidden_size": 768, "num_heads": 12, "num_layers": 22, "intermediate_size": 1152}
    )
    square, wide = 5 * 6 * 768**3, 5 * (4 * 768**2 * 1152 + 2 * 768**3)
    assert matrix_flops(config, mesh_of(ONE)) == 89 * square + 66 * wide
    assert matrix_flops(config, mesh_of((8, 1, 1))) == 12 * square + (6 + 3) * wide
    assert matrix_flops(tiny_config(), mesh_of(ONE)) == 0


def test_momentum_lies_like_its_parameters(trainer):
    state = abstract_state(trainer.config, mesh_of((2, 2, 2)))
    moments = state["optimizer"]
    for layer in ("0", "1"):
        ours, theirs = (tree["layers"][layer] for tree in (moments.mu, state["params"]))
        for block, name in (("attn", "wqkv"), ("attn", "wo"), ("mlp", "wi"), ("mlp", "wo")):
            assert ours[block][name].sharding == theirs[block][name].sharding
    adamw = moments.rest.mu["embeddings"]["tokens"]
    assert adamw.sharding == state["params"]["embeddings"]["tokens"].sharding
    # One moment of a matrix instead of two: less state than StableAdamW's.
    other = abstract_state(tiny_config(), mesh_of((2, 2, 2)))["optimizer"]
    assert bytes_on_a_chip(moments) < bytes_on_a_chip(other)


def test_which_parameters_are_matrices_of_hidden_layers():
    """By name, for the published model: all dense layers, and neither the embedding nor any vector."""
    found = hidden_matrices(ModelConfig())
    kinds = {re.sub(r"/\d+/", "/N/", path) for path in found}
    layer = {f"layers/N/{name}" for name in ("attn/wqkv", "attn/wo", "mlp/wi", "mlp/wo")}
    assert kinds == {*layer, "head/dense"}
    assert len(found) == 4 * 22 + 1
    sides = {
        "attn/wqkv": ((0,), (2, 3)),  # [D, 3, H, K]
        "attn/wo": ((0, 1), (2,)),  # [H, K, D]
        "mlp/wi": ((0,), (2,)),  # [D, 2, F]
        "mlp/wo": ((0,), (1,)),
    }
    for name, expected in sides.items():
        assert found[f"layers/7/{name}"][:2] == expected


def test_moments_of_another_optimiser_are_left():
    config = tiny_config(optimizer__name="muon")

    def why(**fields):
        return why_new_moments(config, {"config": fields})

    assert why(optimizer={"name": "muon"}) == ""
    assert why(optimizer={"name": "normuon"}) == "was trained by normuon, not by muon"
    # Before there was a choice, and a model that this was not trained with.
    assert why(optimizer={"peak_lr": 1.0}) == "was trained by stable_adamw, not by muon"
    assert why() == ""
    config.init_moments = False
    assert why(optimizer={"name": "muon"}) == "gives its parameters alone"
