"""Files on web servers, http:// and https://, by ranges where the server gives them, and else from their beginning.

fsspec's own reader of them believes what a server says of itself: one that answers a range with the whole file would
give wrong text, and one that breaks off the end of it.
"""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import aiohttp
import fsspec
from fsspec.asyn import sync

from mmbert_jax.errors import UserError
from mmbert_jax.patience import Interrupted

# No limit on the whole of an answer, which may be a corpus; of silence a minute.
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=60, sock_read=60)


class Answer(NamedTuple):
    """What a server says of a file.

    Attributes:
      size: in bytes; None where it does not say.
      version: what changes with the file's content, as far as it says.
      ranges: whether it gives parts of the file.
    """

    size: int | None
    version: str
    ranges: bool


@cache
def _files(scheme: str) -> Any:
    """fsspec's file system: its loop, its session, and what the user has configured for it (headers, a login)."""
    client = fsspec.config.conf.get(scheme, {}).get("client_kwargs", {})
    # Bytes as they are stored, or ranges would be of something else; and the environment's proxies.
    ours = {"auto_decompress": False, "trust_env": True, "timeout": _TIMEOUT}
    return fsspec.filesystem(scheme, client_kwargs=ours | client)


def ask(url: str) -> Answer | None:
    """Asks for a file's first byte, since many servers do not answer truly what they are able to; None: no such file.

    Raises:
      aiohttp.ClientError: the server does not answer, or refuses.
    """
    files = _files(url.partition("://")[0])
    return sync(files.loop, _ask, files, url)


async def _ask(files: Any, url: str) -> Answer | None:
    async with await _get(files, url, "bytes=0-0") as answer:
        if answer.status in (404, 410):
            return None
        version = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
        ranges = answer.status == 206 or answer.status == 416
        if not ranges:
            answer.raise_for_status()
            return Answer(answer.content_length, version, False)
        return Answer(_whole_size(answer.headers), version, True)


def read_range(url: str, start: int, stop: int, size: int) -> bytes:
    """Bytes `start` to `stop` of a file of `size`.

    Raises:
      UserError: the server answers with something else, or the file has another size than before.
      Interrupted: fewer bytes came than were promised.
      aiohttp.ClientError: it does not answer, or refuses.
    """
    files = _files(url.partition("://")[0])
    return sync(files.loop, _read_range, files, url, start, stop, size)


async def _read_range(files: Any, url: str, start: int, stop: int, size: int) -> bytes:
    async with await _get(files, url, f"bytes={start}-{stop - 1}") as answer:
        answer.raise_for_status()
        given = re.match(
            rf"bytes {start}-{stop - 1}/(\d+|\*)", answer.headers.get("Content-Range", "")
        )
        if answer.status != 206 or not given or given[1] not in ("*", str(size)):
            said = answer.headers.get("Content-Range", "the whole file")
            raise UserError(
                f"{url}: the server was asked for bytes {start}-{stop - 1} of {size} and answers with {said}; it may"
                " have changed meanwhile: start again, or download the file"
            )
        data = await answer.read()
    if len(data) != stop - start:
        raise Interrupted(f"{len(data)} bytes came instead of {stop - start}")
    return data


class Stream:
    """A file of a server that gives no ranges: what comes, from its beginning."""

    def __init__(self, url: str):
        self._files = _files(url.partition("://")[0])
        self._answer = sync(self._files.loop, _get, self._files, url, None)
        self.at = 0
        self._answer.raise_for_status()

    def read(self, n: int) -> bytes:
        """Up to so many bytes; none at the end.

        Raises:
          aiohttp.ClientError: the connection is lost, or it ends before what was promised.
        """
        data = sync(self._files.loop, self._answer.content.read, n)
        self.at += len(data)
        return data

    def close(self) -> None:
        self._answer.close()


async def _get(files: Any, url: str, part: str | None) -> aiohttp.ClientResponse:
    session = await files.set_session()
    headers = {**files.kwargs.get("headers", {}), "Accept-Encoding": "identity"}
    if part:
        headers["Range"] = part
    return await session.get(files.encode_url(url), **files.kwargs | {"headers": headers})


def _whole_size(headers: Mapping[str, str]) -> int | None:
    size = headers.get("Content-Range", "").rpartition("/")[2]
    return int(size) if size.isdigit() else None
