"""Which implementation `attention` takes, and that a mesh changes nothing but where it is computed."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_attention import segments

from mmbert_jax.kernels.attention import attention, describe, implementation_for
from mmbert_jax.kernels.ranges import ranges
from mmbert_jax.parallel.mesh import make_mesh

SHAPE = (8, 1024, 12, 64)


def device(platform, kind):
    return types.SimpleNamespace(platform=platform, device_kind=kind)


@pytest.mark.parametrize("machine", [device("cpu", "cpu"), device("gpu", "NVIDIA A100-SXM4-80GB")])
def test_machines_without_kernels_of_their_own_take_xla(machine):
    name, reason = implementation_for(machine, SHAPE, jnp.bfloat16, 64)
    assert name == "xla"
    assert machine.device_kind in reason


@pytest.mark.parametrize(
    ("machine", "own", "refused"),
    [
        (device("gpu", "NVIDIA H100 80GB HBM3"), "hopper", "float32"),
        (device("tpu", "TPU v5 lite"), "tpu", "float16"),
    ],
)
def test_machines_with_kernels_take_them_where_these_can(machine, own, refused):
    assert implementation_for(machine, SHAPE, jnp.bfloat16, 64)[0] == own
    heads_of_128 = ((8, 1024, 6, 128), jnp.bfloat16)
    for (shape, dtype), named in [((SHAPE, refused), refused), (heads_of_128, "128")]:
        name, reason = implementation_for(machine, shape, dtype, None)
        assert name == "xla"
        assert named in reason


def test_falling_back_is_announced():
    """A mesh of devices that are not there: the choice is made when tracing."""
    mesh = jax.sharding.AbstractMesh(
        (1, 1, 1),
        ("data", "fsdp", "tensor"),
        axis_types=(jax.sharding.AxisType.Auto,) * 3,
        abstract_device=jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", 132, "gpu"),
    )
    q = jax.ShapeDtypeStruct((2, 256, 2, 64), jnp.float32)
    r = ranges(jnp.ones((2, 256), jnp.int32))
    with (
        jax.sharding.use_abstract_mesh(mesh),
        pytest.warns(UserWarning, match="attention by xla: .*float32"),
    ):
        jax.eval_shape(attention, q, q, q, r)


def test_what_cannot_be_computed_is_refused():
    q = jnp.zeros((1, 8, 1, 8))
    r = ranges(jnp.ones((1, 8), jnp.int32))
    with pytest.raises(
        ValueError, match="unknown attention implementation 'flash'; known: 'hopper', 'tpu', 'xla'"
    ):
        attention(q, q, q, r, implementation="flash")
    with pytest.raises(ValueError, match="written for head dim 64, not 8"):
        attention(q, q, q, r, implementation="hopper")
    with pytest.raises(ValueError, match=r"one shape \[B, L, H, D\]"):
        attention(q, q[:, :4], q, r)
    with pytest.raises(ValueError, match=r"ranges \[B, L\]"):
        attention(q, q, q, ranges(jnp.ones((1, 4), jnp.int32)))


@pytest.mark.parametrize("window", [None, 64])
def test_a_mesh_spreads_rows_and_heads_and_changes_no_number(window):
    rng = np.random.default_rng(0)
    q, k, v, cotangent = rng.normal(size=(4, 4, 320, 2, 8)).astype(np.float32)
    segment_ids = np.stack([segments(x, 320) for x in ([320], [100, 200], [], [1, 64, 65, 190])])

    def gradients(q, k, v):
        def loss(q, k, v):
            return (attention(q, k, v, ranges(segment_ids, window)) * cotangent).sum()

        return jax.value_and_grad(loss, (0, 1, 2))(q, k, v)

    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    sharding = jax.NamedSharding(mesh, jax.P(("data", "fsdp"), None, "tensor"))
    with jax.set_mesh(mesh):
        spread = jax.jit(gradients)(*(jax.device_put(x, sharding) for x in (q, k, v)))
    assert spread[1][0].sharding.is_equivalent_to(sharding, 4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        spread,
        jax.jit(gradients)(q, k, v),
    )


def test_the_choice_is_described_once_for_layers_alike():
    mesh = make_mesh({"data": 4, "fsdp": 2, "tensor": 1})
    line = describe(mesh, SHAPE, jnp.float32, (None, 64))
    assert line == "global and local layers by xla (there are no kernels of its own for cpu)"
