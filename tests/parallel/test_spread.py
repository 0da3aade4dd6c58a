"""Matrices shared out over devices: each whole on one of them, and the result as if one device had done all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mmbert_jax.parallel.mesh import make_mesh
from mmbert_jax.parallel.spread import spread


@pytest.mark.parametrize("count", [3, 8, 19])
@pytest.mark.parametrize(
    ("mesh_shape", "rows", "columns"),
    [
        ((8, 1, 1), "fsdp", "tensor"),
        ((2, 4, 1), None, "fsdp"),
        ((1, 4, 2), "tensor", "fsdp"),
        ((2, 2, 2), "fsdp", None),
        ((2, 2, 2), "tensor", "fsdp"),
    ],
)
def test_each_device_has_its_share_of_whole_matrices(mesh_shape, rows, columns, count):
    mesh = make_mesh(dict(zip(("data", "fsdp", "tensor"), mesh_shape, strict=True)))
    seen = []

    def inverted(x, v):
        """What no part of a matrix could tell."""
        seen.append(x.shape)
        return jnp.linalg.inv(x + 10 * jnp.eye(8)), v + x[:, 0]

    rng = np.random.default_rng(0)
    x, v = (rng.normal(size=shape).astype(np.float32) for shape in ((count, 8, 8), (count, 8)))
    placed = jax.device_put(x, NamedSharding(mesh, PartitionSpec(None, rows, columns)))
    got, summed = jax.jit(spread(inverted, mesh, rows, columns))(placed, v)
    np.testing.assert_allclose(got, np.linalg.inv(x + 10 * np.eye(8)), atol=1e-6)
    np.testing.assert_array_equal(summed, v + x[:, 0])
    assert seen == [(-(-count // 8), 8, 8)]
