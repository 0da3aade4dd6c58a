"""Rows of shards in a bucket: a request for each row's slot, many at a time, through tensorstore.

tensorstore keeps connections, bounds how many requests are under way, and tries again what fails for a moment; it finds
credentials as it does for checkpoints. What is in memory is what was asked for, as Python asks for one batch at a time.
"""

import functools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from mmbert_jax import buckets
from mmbert_jax.data import shards
from mmbert_jax.errors import UserError, brief
from mmbert_jax.places import Place, objects_under

if TYPE_CHECKING:
    import tensorstore

# A store answers in some 30 ms, so this many bring 3,000 to 4,000 rows a second.
REQUESTS_AT_ONCE = 128

_FORBIDDEN, _BEYOND = (401, 403), 416


class Slot(Protocol):
    path: str
    rows: int
    size: int


def sizes(folder: Place) -> dict[str, int]:
    """Name -> bytes of the objects right in a folder."""
    try:
        return objects_under(folder, maxdepth=1)
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed: {brief(error)}") from None


def read(wanted: Sequence[tuple[Slot, int]]) -> list[bytes]:
    """The records of (shard, row), all requested at once; `REQUESTS_AT_ONCE` of a process are under way at a time.

    Raises:
      UserError: names the object that is gone, may not be read, is damaged, or keeps failing.
    """
    reads = []
    for shard, row in wanted:
        bucket, key = _split(shard.path)
        start, stop = shards.slot_range(shard.size, shard.rows, row)
        reads.append(_store(bucket).read(key, byte_range=slice(start, stop)))
    records = []
    for (shard, row), future in zip(wanted, reads, strict=True):
        try:
            answer = future.result()
        except ValueError as error:  # what tensorstore raises of every kind
            raise unreadable(shard.path, error) from None
        if answer.state == "missing":
            raise UserError(f"{shard.path}: shard is missing (404); {shards.COPY_AGAIN}")
        record = shards.record_of(answer.value, row)
        if record is None:
            raise shards.damaged(shard.path, row)
        records.append(record)
    return records


def unreadable(path: str, error: Exception) -> UserError:
    """What kept an object from being read, by the status of the last answer."""
    found = re.search(r"http_response_code='(\d+)'", str(error))
    status = int(found[1]) if found else 0
    if status in _FORBIDDEN:
        return UserError(
            f"{path}: shard may not be read ({status}): see to the credentials and the bucket's permissions"
        )
    if status == _BEYOND or "OUT_OF_RANGE" in str(error):
        return UserError(
            f"{path}: shard is shorter than it was written: truncated or changed; {shards.COPY_AGAIN}"
        )
    tries = buckets.RETRIES["max_retries"] + 1
    reason = f"({status})" if status else f"({brief(error)})"
    return UserError(
        f"{path}: the store does not answer {reason} in {tries} tries; run the same command again when it does"
    )


def _split(path: str) -> tuple[str, str]:
    """(scheme://bucket, key) of an object."""
    scheme, _, rest = path.partition("://")
    bucket, _, key = rest.partition("/")
    return f"{scheme}://{bucket}", key


@functools.cache
def _store(bucket: str) -> "tensorstore.KvStore":
    """A bucket, opened once in each process."""
    return buckets.open_store(f"{bucket}/", REQUESTS_AT_ONCE)
