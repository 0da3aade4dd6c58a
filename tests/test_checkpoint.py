"""Checkpoints: exact, readable on another mesh, and what happens to leftovers and damage."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny import tiny_config

from mmbert_jax import checkpoint
from mmbert_jax.errors import UserError
from mmbert_jax.parallel.mesh import make_mesh
from mmbert_jax.run import SUMS
from mmbert_jax.run import checkpoint as checkpoint_folder
from mmbert_jax.step import abstract_state, init_state


def mesh_of(data, fsdp, tensor):
    return make_mesh(
        {"data": data, "fsdp": fsdp, "tensor": tensor}, jax.devices()[: data * fsdp * tensor]
    )


def assert_equal(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def resume(folder, abstract):
    """What training does, in a single process: (state, meta) of the newest intact checkpoint, None without one."""
    checkpoint.clear(folder)
    newest = checkpoint.newest_intact(folder)
    return (
        None if newest is None else checkpoint.restore(checkpoint_folder(folder, newest), abstract)
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with checkpoints at steps 1 and 2, and the state of the second."""
    folder, config, mesh = tmp_path_factory.mktemp("saved"), tiny_config(), mesh_of(1, 1, 1)
    with checkpoint.open_manager(folder, keep=3) as manager:
        for step in (1, 2):
            config.seed = step
            state = init_state(config, mesh)
            checkpoint.save(manager, step, state, {"step": step, "row": 16 * step, "phase": "tiny"})
    return folder, config, state


@pytest.fixture
def run(saved, tmp_path):
    """A copy of that run, in another place, to be harmed."""
    folder, config, state = saved
    shutil.copytree(folder / "checkpoints", tmp_path / "checkpoints")
    return tmp_path, config, state


def test_restores_exactly_on_another_mesh(run):
    folder, config, state = run
    abstract = abstract_state(config, mesh_of(2, 2, 2))
    restored, meta = resume(folder, abstract)
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


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("harm", [flip_a_bit, cut_in_half, type(Path()).unlink])
def test_damage_to_any_file_is_named_and_the_checkpoint_before_is_used(run, tmp_path, capsys, harm):
    folder, config, _ = run
    abstract = abstract_state(config, mesh_of(1, 1, 1))
    newest = folder / "checkpoints" / "2"
    files = [path.relative_to(newest) for path in newest.rglob("*") if path.stat().st_size]
    assert {SUMS, "commit_success.txt"} < {str(path) for path in files if len(path.parts) == 1}
    for file in (path for path in files if (newest / path).is_file()):
        copy = tmp_path / "copy"
        shutil.copytree(folder / "checkpoints", copy / "checkpoints")
        harm(copy / "checkpoints" / "2" / file)
        with pytest.raises(UserError, match="is damaged"):
            checkpoint.restore_params(copy)
        _, meta = resume(copy, abstract)
        assert meta["step"] == 1
        with checkpoint.open_manager(copy, keep=3) as manager:
            assert manager.all_steps() == [1]
        printed = capsys.readouterr().out
        assert "checkpoints/2 is damaged" in printed
        # A harmed list of sums may show as a file that is not in it.
        assert str(file) in printed or file.name == SUMS
        assert (copy / "checkpoints" / "damaged-2").is_dir()
        shutil.rmtree(copy)


def test_sums_are_those_of_sha256sum(run):
    folder, _, _ = run
    subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet", SUMS],
        cwd=folder / "checkpoints" / "2",
        check=True,
    )


def test_no_undamaged_checkpoint(run):
    folder, config, _ = run
    for step in (1, 2):
        (folder / "checkpoints" / str(step) / SUMS).unlink()
    with pytest.raises(UserError, match=r"all checkpoints, \[2, 1\], are damaged"):
        resume(folder, abstract_state(config, mesh_of(1, 1, 1)))
    with checkpoint.open_manager(folder, keep=3) as manager:
        # The run can still be looked at, and its next save is not in the way of what was set aside.
        assert not manager.all_steps()


def test_leftovers_of_a_killed_save_are_cleared(run):
    folder, _, _ = run
    leftover = folder / "checkpoints" / "3.orbax-checkpoint-tmp"
    leftover.mkdir()
    checkpoint.clear(folder)
    with checkpoint.open_manager(folder, keep=3) as manager:
        assert sorted(manager.all_steps()) == [1, 2]
    assert not leftover.exists()


@pytest.mark.parametrize("kept", [[], ["1"]])
def test_a_save_that_is_killed_before_it_has_sums_was_never_complete(run, kept):
    """SIGKILL between the folder's final name and its sums: nothing is damaged, and a first save is none."""
    folder, config, _ = run
    saved = folder / "checkpoints"
    for step in {"1", "2"} - set(kept):
        shutil.rmtree(saved / step)
    save = f"""
import os, signal
import jax, numpy as np
from pathlib import Path
from mmbert_jax import checkpoint

checkpoint.write_sums = lambda folder: os.kill(os.getpid(), signal.SIGKILL)
with checkpoint.open_manager(Path({str(folder)!r}), keep=3) as manager:
    checkpoint.save(manager, 3, {{"params": {{"w": np.ones(3)}}}}, {{"step": 3}})
"""
    assert subprocess.run([sys.executable, "-c", save]).returncode == -signal.SIGKILL
    assert (saved / "3").is_dir()
    with pytest.raises(UserError, match="no (complete )?checkpoint at"):
        checkpoint.restore_params(saved / "3")  # by one that reads while it is written
    restored = resume(folder, abstract_state(config, mesh_of(1, 1, 1)))
    with checkpoint.open_manager(folder, keep=3) as manager:
        assert [str(step) for step in manager.all_steps()] == kept
    assert (restored[1]["step"] if restored else None) == (1 if kept else None)
    assert sorted(path.name for path in saved.iterdir()) == kept


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
