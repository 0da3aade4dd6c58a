"""Reading safetensors, on a disk and in buckets, against the library; and files that are damaged."""

import json
from collections.abc import Callable
from pathlib import Path

import ml_dtypes  # noqa: F401  for NumPy's bfloat16
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from mmbert_jax.errors import UserError
from mmbert_jax.hf.weights import open_weights
from mmbert_jax.places import place


@pytest.fixture(scope="module")
def all_dtypes(tmp_path_factory) -> tuple[Path, dict[str, np.ndarray]]:
    """A safetensors file with a tensor of every dtype, one of them empty, one a scalar; and these."""
    rng = np.random.default_rng(0)
    dtypes = (
        "bool int8 uint8 int16 uint16 int32 uint32 int64 uint64 float16 bfloat16 float32 float64"
    )
    tensors = {name: rng.integers(0, 2, (3, 5)).astype(name) for name in dtypes.split()}
    tensors |= {"empty": np.zeros((0, 4), np.float32), "scalar": np.array(2.5, np.float32)}
    folder = tmp_path_factory.mktemp("dtypes")
    save_file(tensors, folder / "model.safetensors")
    return folder, tensors


def test_tensors_are_read_as_the_library_reads_them(all_dtypes, anywhere):
    made, tensors = all_dtypes
    folder = place(anywhere) / "model"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes((made / "model.safetensors").read_bytes())
    shapes, read = open_weights(folder)
    with safe_open(made / "model.safetensors", "np") as expected:
        assert set(shapes) == set(expected.keys()) == set(tensors)
        for name in shapes:
            theirs = expected.get_tensor(name)
            assert (read(name).dtype, shapes[name]) == (theirs.dtype, theirs.shape)
            np.testing.assert_array_equal(read(name), theirs)


def with_header(change) -> Callable[[bytes], bytes]:
    def changed(data: bytes) -> bytes:
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        change(header)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + size :]

    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-1], r"model\.safetensors cannot be read"),
        (lambda data: data[:100], "its header has"),
        (lambda data: b"", "it has 0 bytes"),
        (lambda data: b"\0" * 8, "cannot be read"),
        (lambda data: b"\xff" * len(data), "its header has"),
        (lambda data: data[:8] + b"[" + data[9:], "cannot be read"),
        (with_header(lambda x: x["int8"].update(shape=[3, 6])), "int8 has bytes"),
        (with_header(lambda x: x["int8"].update(shape=["3", 5])), "cannot be read"),
        (with_header(lambda x: x["int8"].pop("data_offsets")), "cannot be read"),
        (with_header(lambda x: x["int8"].update(data_offsets=[-20, -5])), "int8 has bytes"),
        (with_header(lambda x: x["int8"].update(dtype="F8_E4M3")), "int8 is stored as F8_E4M3"),
    ],
    ids=[str(i) for i in range(11)],
)
def test_a_damaged_file_is_named(all_dtypes, tmp_path, change, message):
    data = (all_dtypes[0] / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(change(data))
    with pytest.raises(UserError, match=message) as raised:
        open_weights(tmp_path)
    assert str(tmp_path / "model.safetensors") in str(raised.value)
