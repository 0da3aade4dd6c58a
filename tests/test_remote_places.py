"""What a path names, and what a bucket says of it."""

import aiohttp
import botocore.exceptions
import gcsfs.retry
import pytest

from mmbert_jax import buckets, places
from mmbert_jax.errors import UserError
from mmbert_jax.places import is_remote, place
from mmbert_jax.run import complete_steps


def test_files_and_folders_of_a_bucket(anywhere):
    folder = place(anywhere) / "folder"
    assert not folder.exists()
    (place(anywhere) / "folder").mkdir(parents=True, exist_ok=True)
    (folder / "file").write_bytes(b"x")
    assert (folder.exists(), folder.is_dir(), folder.is_file()) == (True, True, False)
    file = folder / "file"
    assert (file.exists(), file.is_dir(), file.is_file()) == (True, False, True)
    assert place(str(file)) == file
    assert [found.is_file() for found in folder.iterdir()] == [True]


@pytest.mark.parametrize(
    "error",
    [
        PermissionError("Forbidden: b/bucket/o"),
        OSError("Rate limit"),
        gcsfs.retry.HttpError({"code": 503, "message": "unavailable"}),
        botocore.exceptions.EndpointConnectionError(endpoint_url="there"),
        botocore.exceptions.NoCredentialsError(),
        aiohttp.ServerDisconnectedError(),
    ],
)
@pytest.mark.parametrize("folder", ["gs://bucket/run", "s3://bucket/run"])
def test_a_store_that_does_not_answer_is_no_empty_one(folder, error, monkeypatch):
    """A run would begin anew beside its checkpoints."""

    class Store:
        def info(self, path):
            raise error

    monkeypatch.setattr(places, "filesystem", lambda path: Store())
    for ask in (
        lambda: place(folder).exists(),
        lambda: place(folder).is_dir(),
        lambda: place(folder).is_file(),
        lambda: complete_steps(place(folder)),
    ):
        with pytest.raises(UserError, match=f"^{folder}.*: "):
            ask()


@pytest.mark.parametrize(
    "end", [b"", b"\r", b"\n", b"\r\n", b"\n\r", b"\r\r", b" ", b"\0", b"--==0==--"]
)
def test_every_byte_of_an_object_is_written(end, anywhere, tmp_path):
    """gcsfs writes a line feed and its boundary after the data, and stores take "\\r\\n" for a part of the boundary."""
    local, file = tmp_path / "local", place(anywhere) / "file"
    local.write_bytes(b"data" + end)
    file.write_bytes(b"data" + end)
    assert file.read_bytes() == b"data" + end
    if is_remote(file):
        buckets.write(file, end)
        assert file.read_bytes() == end
        buckets.upload(local, file)
        assert file.read_bytes() == b"data" + end
