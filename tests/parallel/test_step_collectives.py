"""What the devices of a mesh exchange in a training step: no more than the sharding rules mean."""

import re

import jax
import pytest
from tiny import tiny_config

from mmbert_jax.parallel.collectives import collectives
from mmbert_jax.parallel.hlo import parse
from mmbert_jax.parallel.mesh import make_mesh
from mmbert_jax.step import abstract_state, compile_train_step

MICROBATCHES = 2
EMBEDDING = 512 * 32 * 4  # bytes


def compiled(data, fsdp, tensor, **overrides):
    """Collectives of the tiny model's step, two microbatches of eight rows."""
    mesh = make_mesh({"data": data, "fsdp": fsdp, "tensor": tensor})
    program = parse(compile_train_step(tiny_config(**overrides), mesh).as_text())
    return collectives(program, mesh.shape, MICROBATCHES)


def test_replicas_sum_their_gradients_once_a_microbatch():
    """All of them, the embedding's from the look-up and from the loss too, which has four chunks."""
    sums = [c for c in compiled(8, 1, 1) if c.kind == "all-reduce"]
    assert {c.times for c in sums} <= {1, MICROBATCHES}
    assert sum(c.bytes * c.times for c in sums) >= MICROBATCHES * 2 * EMBEDDING


@pytest.fixture(scope="module")
def all_axes():
    # With fewer classes than tokens the look-up would be cheapest from a table that is gathered.
    return compiled(2, 2, 2, model__vocab_size=8192, train__loss_chunk=2048)


def test_the_embedding_is_never_gathered_whole(all_axes):
    """Neither over the vocabulary nor over its columns: a chunk of a quarter at a time."""
    gathered = [c.types for c in all_axes if c.kind == "all-gather"]
    assert any(re.search(r"f32\[1024,(1,)?16\]", types) for types in gathered)
    assert not any("[4096," in types or "[8192," in types for types in gathered)


def test_products_of_activations_are_summed_over_tensor_alone(all_axes):
    """Over fsdp devices have different rows; the first layer once had the embedding's columns instead."""
    forward = [c for c in all_axes if "jvp(bl" in c.where and "transpose" not in c.where]
    sums = [c.axes for c in forward if c.kind in ("all-reduce", "reduce-scatter")]
    assert sums
    assert set(sums) == {("tensor",)}


def test_moments_lie_like_their_parameters():
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    state = abstract_state(tiny_config(), mesh)
    expected = [p.sharding for p in jax.tree.leaves(state["params"])]
    for moment in (state["optimizer"].mu, state["optimizer"].nu):
        assert [m.sharding for m in jax.tree.leaves(moment)] == expected
    shard = state["params"]["embeddings"]["tokens"].sharding.shard_shape((512, 32))
    assert shard == (256, 16)
