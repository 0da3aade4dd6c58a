"""Collectives of programs compiled for eight devices, whose bytes are known by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from mmbert_jax.parallel.collectives import by_axes, collectives, replica_groups
from mmbert_jax.parallel.hlo import Instruction, parse
from mmbert_jax.parallel.mesh import make_mesh

SHAPE = {"data": 2, "fsdp": 2, "tensor": 2}


def compiled(function, in_specs, out_specs, *arguments):
    function = jax.shard_map(
        function, mesh=make_mesh(SHAPE), in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
    return collectives(parse(jax.jit(function).lower(*arguments).compile().as_text()), SHAPE, 7)


def summary(found):
    return [(c.kind, c.axes, c.bytes, c.times, c.sent_bytes) for c in found]


X = jax.ShapeDtypeStruct((16, 1024), jnp.float32)  # 64 KiB


@pytest.mark.parametrize("axis", SHAPE)
def test_a_sum_over_an_axis(axis):
    found = compiled(lambda x: jax.lax.psum(x, axis), P(), P(), X)
    assert summary(found) == [("all-reduce", (axis,), 65536, 1, 65536)]  # 2 x (2 - 1) / 2 of it


def test_a_sum_over_two_axes():
    found = compiled(lambda x: jax.lax.psum(x, ("data", "fsdp")), P(), P(), X)
    assert summary(found) == [("all-reduce", ("data", "fsdp"), 65536, 1, 1.5 * 65536)]


def test_a_gather_counts_what_comes_out():
    found = compiled(lambda x: jax.lax.all_gather(x, "tensor", tiled=True), P("tensor"), P(), X)
    assert summary(found) == [("all-gather", ("tensor",), 65536, 1, 65536 / 2)]


def test_a_scatter_counts_what_goes_in():
    found = compiled(lambda x: jax.lax.psum_scatter(x, "fsdp", tiled=True), P(), P("fsdp"), X)
    assert summary(found) == [("reduce-scatter", ("fsdp",), 65536, 1, 65536 / 2)]


def test_an_exchange_and_a_shift():
    found = compiled(lambda x: jax.lax.all_to_all(x, "data", 0, 0, tiled=True), P(), P(), X)
    assert summary(found) == [("all-to-all", ("data",), 65536, 1, 65536 / 2)]
    shift = [(0, 1), (1, 0)]
    found = compiled(lambda x: jax.lax.ppermute(x, "tensor", shift), P(), P(), X)
    assert summary(found) == [("collective-permute", ("tensor",), 65536, 1, 65536)]


def test_loops_multiply_and_sums_are_by_axis():
    """Five times in a loop of known length, seven times in one whose length is an argument."""

    def function(x, n):
        x = jax.lax.fori_loop(0, 5, lambda i, x: jax.lax.psum(x, "data") * 0.5, x)
        return jax.lax.fori_loop(0, n, lambda i, x: jax.lax.psum(x, "fsdp") * 0.5, x)

    found = compiled(function, (P(), P()), P(), X, jax.ShapeDtypeStruct((), jnp.int32))
    rows = {tuple(row["axes"]): row for row in by_axes(found)}
    assert rows["data",]["executions"] == 5
    assert rows["data",]["bytes"] == 5 * 65536
    assert rows["fsdp",]["sent_bytes"] == 7 * 65536


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,2},{4,6},{1,3},{5,7}}", [[0, 2], [4, 6], [1, 3], [5, 7]]),
        ("replica_groups={}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ("replica_groups=[4,2]<=[8]", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("replica_groups=[4,2]<=[2,2,2]T(0,2,1)", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'b'}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
    ],
)
def test_groups(text, groups):
    x = Instruction(
        "x", "f32[]", "all-reduce", (), f", channel_id=1, {text}, to_apply=%add", "", False
    )
    assert replica_groups(x, SHAPE) == groups


def test_groups_in_an_unknown_form_are_refused():
    x = Instruction("x", "f32[]", "all-reduce", (), ", replica_groups=@other", "", False)
    with pytest.raises(ValueError, match="unknown way: , replica_groups=@other"):
        replica_groups(x, SHAPE)


def test_what_a_tpu_writes():
    """A reduce-scatter is a fusion of a sum and a slice; one gather stands in two fusions of a chain."""
    groups = "replica_groups=[4,2]<=[4,2]T(1,0), use_global_device_ids=true"
    gather = f'all-gather(%p), channel_id=9, {groups}, dimensions={{0}}, frontend_attributes={{chain_id="0"}}'
    text = f"""\
HloModule m

%all-reduce-scatter.1 (input: f32[8,4]) -> f32[8,2] {{
  %input = f32[8,4]{{1,0}} parameter(0)
  %sum = f32[8,4]{{1,0}} all-reduce(%input), channel_id=3, {groups}, to_apply=%add
  ROOT %part = f32[8,2]{{1,0}} slice(%sum), slice={{[0:8], [0:2]}}
}}

%async_collective_fusion.1 (p: bf16[4]) -> bf16[8] {{
  %p = bf16[4]{{0}} parameter(0)
  ROOT %first = bf16[8]{{0}} {gather}
}}

%async_collective_fusion.2 (p: bf16[4]) -> bf16[8] {{
  %p = bf16[4]{{0}} parameter(0)
  ROOT %second = bf16[8]{{0}} {gather}
}}

ENTRY %main (a: f32[8,4], b: bf16[4]) -> f32[8,2] {{
  %a = f32[8,4]{{1,0}} parameter(0)
  %b = bf16[4]{{0}} parameter(1)
  %g = bf16[8]{{0}} fusion(%b), kind=kOutput, calls=%async_collective_fusion.1
  %h = bf16[8]{{0}} fusion(%b), kind=kOutput, calls=%async_collective_fusion.2
  ROOT %r = f32[8,2]{{1,0}} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1
}}
"""
    found = collectives(parse(text), {"data": 4, "fsdp": 2, "tensor": 1})
    assert [(c.kind, c.axes, c.bytes) for c in found] == [
        ("reduce-scatter", ("data",), 8 * 4 * 4),
        ("all-gather", ("data",), 4 * 2 * 2),
    ]
