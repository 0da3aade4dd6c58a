"""Objects in buckets: written whole or not at all, and only if nobody else has written them meanwhile.

There is no rename there, and no appending; what takes their place is that an object is written by one request, and that
a store refuses a write whose condition does not hold.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmbert_jax.errors import UserError, brief
from mmbert_jax.places import Place, files_under, filesystem

if TYPE_CHECKING:
    import tensorstore

# In a folder that is being uploaded: what lies there was left by a killed program and may be written anew.
UPLOADING = ".uploading"
_AT_ONCE = 16
# Of tensorstore's requests: waits of 0.5, 1, 2, 4, then 8 s between tries, not quite two minutes. Where one answer in
# five is a failure, this many tries all fail once in 10^12 requests.
RETRIES = {"max_retries": 16, "initial_delay": "500ms", "max_delay": "8s"}


def kvstore_spec(path: Place | str) -> dict[str, Any]:
    """What begins with this path in a bucket, for tensorstore; of s3:// endpoint and region are the environment's."""
    scheme, _, rest = str(path).partition("://")
    bucket, _, folder = rest.partition("/")
    where = {"bucket": bucket, "path": folder}
    if scheme == "gs":
        return {"driver": "gcs", **where, "context": {"gcs_request_retries": RETRIES}}
    spec = {"driver": "s3", **where, "context": {"s3_request_retries": RETRIES}}
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        # A store that is not Amazon's need not know of regions; requests are signed for one all the same.
        spec["endpoint"], region = endpoint, region or "us-east-1"
    if region:
        spec["aws_region"] = region
    if (
        "AWS_ACCESS_KEY_ID" in os.environ
    ):  # the chain of all sources complains of each that is not there
        spec["aws_credentials"] = {"type": "environment"}
    return spec


def open_store(prefix: str, requests_at_once: int | None = None) -> "tensorstore.KvStore":
    """What begins with `prefix` in a bucket, through tensorstore.

    Args:
      requests_at_once: how many are under way, of all that this store is asked for; None: as many as is usual.
    """
    import tensorstore  # not what programs that see no bucket have to wait for

    spec = kvstore_spec(prefix)
    if requests_at_once:
        spec["context"][f"{spec['driver']}_request_concurrency"] = {"limit": requests_at_once}
    return tensorstore.KvStore.open(spec).result()


def read_version(path: Place) -> tuple[bytes | None, bytes]:
    """What an object holds, None where there is none, and its version for `write_if`."""
    with _saying_which(path):
        found = _store(path).read(path.name).result()
    return (found.value if found.state == "value" else None), found.stamp.generation


def write_if(path: Place, data: bytes | None, version: bytes) -> bool:
    """Writes an object, or removes it (None), if it is still as `read_version` found it; whether it was.

    A request whose answer was lost is sent again and then refused: True also where what is there is what was to be.
    """
    with _saying_which(path):
        if _store(path).write(path.name, data, if_equal=version).result().generation:
            return True
    return data is not None and read_version(path)[0] == data


def read_range(path: Place, start: int, stop: int) -> bytes:
    """Bytes `start` to `stop` of an object; fewer where it ends before."""
    if start == stop:
        return b""  # which no store takes for a range
    return filesystem(path).cat_file(str(path), start=start, end=stop)


def write(path: Place, data: bytes) -> None:
    """Writes an object, whatever was there."""
    with _saying_which(path):
        filesystem(path).pipe_file(str(path), data)


def upload(local: Path, path: Place) -> None:
    """Copies a file into a bucket; the object is there when all of it is."""
    with _saying_which(path):
        filesystem(path).put_file(str(local), str(path))


def upload_folder(local: Path, folder: Place, last: str | None) -> None:
    """Copies a folder's files into a bucket, in place of what is there.

    A mark, `UPLOADING`, is there from the first object to the last, and what bears the name `last` comes after all
    else: a reader that needs it, or looks for the mark, takes no folder whose upload was killed for a whole one.
    """
    names = [path.relative_to(local).as_posix() for path in local.rglob("*") if path.is_file()]
    _fill(folder, names, lambda name: upload(local / name, folder / name), last)


def move_into(source: Place, folder: Place, last: str | None) -> None:
    """Moves a folder within a bucket, in place of what is there, in the same order of things."""
    prefix, files = len(str(source)) + 1, filesystem(source)
    names = [str(path)[prefix:] for path in files_under(source)]
    _fill(folder, names, lambda name: files.cp_file(str(source / name), str(folder / name)), last)
    remove(source / name for name in names)


def _fill(folder: Place, names: list[str], put: Callable[[str], None], last: str | None) -> None:
    write(folder / UPLOADING, b"")
    before = [path for path in files_under(folder) if path.name != UPLOADING]
    remove(path for path in before if path.name == last)
    at_end = [name for name in names if name.rpartition("/")[2] == last]
    _for_each((name for name in names if name not in at_end), put)
    prefix = len(str(folder)) + 1
    remove(path for path in before if str(path)[prefix:] not in names)
    for name in at_end:
        put(name)
    (folder / UPLOADING).unlink(missing_ok=True)  # a lost answer is asked for again


def copy_folder(source: Place, target: Place) -> None:
    """Copies a folder within a bucket, object by object."""
    prefix, files = len(str(source)) + 1, filesystem(source)
    _for_each(
        files_under(source),
        lambda path: files.cp_file(str(path), str(target / str(path)[prefix:])),
    )


def remove(paths: Iterable[Place]) -> None:
    """Removes objects; some may be gone already."""
    _for_each(paths, lambda path: path.unlink(missing_ok=True))


def _for_each(items: Iterable[Any], act: Callable[[Any], None]) -> None:
    """Several at a time, since each waits for its answer; raises what the first that fails does."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(act, items))


@contextlib.contextmanager
def _saying_which(path: Place) -> Iterator[None]:
    """Names the object where tensorstore fails, or there is no bucket to write to."""
    try:
        yield
    except ValueError as error:  # what tensorstore raises of every kind
        raise UserError(f"{path}: {brief(error)}") from error
    except FileNotFoundError as error:
        raise UserError(f"{path}: {brief(error)}; see to the bucket's name") from error


def _store(path: Place) -> "tensorstore.KvStore":
    return open_store(f"{path.parent}/")
