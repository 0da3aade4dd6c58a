"""Checkpoints: exact, readable on another mesh, and what happens to leftovers and damage."""

import jax
import numpy as np
import pytest
from tiny import tiny_config

from mmbert_jax import checkpoint
from mmbert_jax.errors import UserError
from mmbert_jax.parallel.mesh import make_mesh
from mmbert_jax.step import abstract_state, init_state


def mesh_of(data, fsdp, tensor):
    return make_mesh(
        {"data": data, "fsdp": fsdp, "tensor": tensor}, jax.devices()[: data * fsdp * tensor]
    )


def assert_equal(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


@pytest.fixture
def run(tmp_path):
    """A run with checkpoints at steps 1 and 2, and the state of the second."""
    config, mesh = tiny_config(), mesh_of(1, 1, 1)
    with checkpoint.open_manager(tmp_path, keep=3) as manager:
        for step in (1, 2):
            config.seed = step
            state = init_state(config, mesh)
            checkpoint.save(manager, step, state, {"step": step, "row": 16 * step, "phase": "tiny"})
    return tmp_path, config, state


def test_restores_exactly_on_another_mesh(run):
    folder, config, state = run
    abstract = abstract_state(config, mesh_of(2, 2, 2))
    with checkpoint.open_manager(folder, keep=3) as manager:
        restored, meta = checkpoint.restore_latest(manager, abstract)
    assert_equal(restored, state)
    assert meta == {"step": 2, "row": 32, "phase": "tiny"}
    tokens = restored["params"]["embeddings"]["tokens"]
    assert tuple(tokens.sharding.spec) == ("tensor", "fsdp")
    assert tokens.addressable_shards[0].data.shape == (256, 16)


def test_parameters_alone(run, tmp_path):
    folder, config, state = run
    params, meta = checkpoint.restore_params(folder / "checkpoints" / "2")
    assert_equal(params, state["params"])
    output = tmp_path / "merged"
    checkpoint.save_params(output, params, meta)
    start, _ = checkpoint.restore_for_phase(output, abstract_state(config, mesh_of(1, 1, 1)))
    assert list(start) == ["params"]
    assert_equal(start["params"], state["params"])
    with pytest.raises(UserError, match="not empty"):
        checkpoint.save_params(output, params, meta)


# The read that fails leaves callbacks of orbax behind, which find their event loop closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_newest_checkpoint_is_set_aside(run, capsys):
    folder, config, _ = run
    for path in (folder / "checkpoints" / "2" / "params").rglob("manifest.ocdbt"):
        path.write_bytes(path.read_bytes()[:-10])
    with checkpoint.open_manager(folder, keep=3) as manager:
        _, meta = checkpoint.restore_latest(manager, abstract_state(config, mesh_of(1, 1, 1)))
    assert meta["step"] == 1
    assert "checkpoints/2 cannot be read" in capsys.readouterr().out
    assert (folder / "checkpoints" / "damaged-2").is_dir()


def test_leftovers_of_a_killed_save_are_cleared(run):
    folder, _, _ = run
    leftover = folder / "checkpoints" / "3.orbax-checkpoint-tmp"
    leftover.mkdir()
    with checkpoint.open_manager(folder, keep=3) as manager:
        assert sorted(manager.all_steps()) == [1, 2]
    assert not leftover.exists()


def test_errors_name_the_place(run, tmp_path):
    folder, _, _ = run
    with pytest.raises(UserError, match=r"no complete checkpoint at .*7; there are \[1, 2\]"):
        checkpoint.restore_params(folder / "checkpoints" / "7")
    with pytest.raises(UserError, match="no checkpoint at .*nowhere"):
        checkpoint.restore_params(tmp_path / "nowhere")
    other = tiny_config(model__intermediate_size=64)
    with pytest.raises(
        UserError, match=r"\['mlp'\]\['wi'\] has shape \(32, 2, 48\) there and \(32, 2, 64\) here"
    ):
        checkpoint.check_fits(folder, abstract_state(other, mesh_of(1, 1, 1))["params"])
