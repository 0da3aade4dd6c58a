"""Files and folders of other stores, through fsspec: hf://, https:// and whatever else has a package for it. They are
read, never written."""

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import fsspec

from mmbert_jax.errors import UserError, brief
from mmbert_jax.patience import Interrupted, patiently

if TYPE_CHECKING:
    from mmbert_jax import http_files

WEB = ("http", "https")
# A file's bytes come so many at a time, at first and at most: what is read on and on comes in larger requests.
_FIRST, _LARGEST = 1 << 16, 1 << 22
_BUFFER = 1 << 17
# Before anything is read a name that is wrong is likelier than a server that is about to come back.
_ASKING = (1, 2)
# What changes with a file's content, in the words of several stores; the first that is there.
_VERSIONS = (
    "blob_id",
    "etag",
    "ETag",
    "content_md5",
    "checksum",
    "mtime",
    "modified",
    "LastModified",
    "last_modified",
)


class Facts(NamedTuple):
    """What a store says of a file or a folder.

    Attributes:
      length: bytes; 0 where it does not say.
      version: what changes with the content, "" where nothing does.
      ranges: whether it gives parts of the file.
      is_dir: whether it is a folder.
    """

    length: int
    version: str = ""
    ranges: bool = True
    is_dir: bool = False


@dataclass(frozen=True)
class Url:
    """A file or folder that a URL names, with what reading needs of pathlib's methods.

    Attributes:
      url: of hf:// with the commit that is read.
      label: the same as the user has named it.
    """

    url: str
    label: str

    def __str__(self) -> str:
        return self.url

    @property
    def scheme(self) -> str:
        return self.url.partition("://")[0]

    @property
    def name(self) -> str:
        path = self.url.split("?")[0].split("#")[0] if self._is_http else self.url
        return path.rstrip("/").rpartition("/")[2]

    @property
    def suffix(self) -> str:
        return self.suffixes[-1] if self.suffixes else ""

    @property
    def suffixes(self) -> list[str]:
        return [f".{part}" for part in self.name.lstrip(".").split(".")[1:]]

    @property
    def parent(self) -> "Url":
        return Url(self.url.rpartition("/")[0], self.label.rpartition("/")[0])

    def __truediv__(self, name: str) -> "Url":
        return Url(f"{self.url.rstrip('/')}/{name}", f"{self.label.rstrip('/')}/{name}")

    def joinpath(self, *names: str) -> "Url":
        found = self
        for name in names:
            found /= name
        return found

    def exists(self) -> bool:
        return self._facts() is not None

    def is_dir(self) -> bool:
        if self._is_http:
            return False
        facts = self._facts()
        return facts is not None and facts.is_dir

    def is_file(self) -> bool:
        facts = self._facts()
        return facts is not None and not facts.is_dir

    def stat(self) -> Facts:
        """Raises:
        UserError: nothing is there, or the store does not answer.
        """
        facts = self._facts()
        if facts is None:
            raise UserError(f"{self}: no such file or folder")
        return facts

    def open(self, mode: str = "rb") -> BinaryIO:
        """A stream of its bytes; where the server gives no ranges, one that can only go ahead."""
        if mode != "rb":
            raise ValueError(f"{self}: cannot be opened as {mode!r}")
        facts = self.stat()
        size, fetch = facts.length, _Handle(self).read
        if self._is_http:
            http = _http_files()
            fetch = lambda start, stop: http.read_range(self.url, start, stop, size)  # noqa: E731
        raw = _File(self, size, fetch) if facts.ranges else _Stream(self)
        return io.BufferedReader(raw, _BUFFER)

    def read_bytes(self) -> bytes:
        with self.open() as stream:
            return stream.read()

    def files_below(self) -> dict[str, int]:
        """Name below this folder -> bytes, of all files."""
        files, root = self.filesystem()
        root = root.rstrip("/")
        found = self._asking(lambda: files.find(root, detail=True))
        return {
            name.removeprefix(root).strip("/"): info["size"] or 0
            for name, info in found.items()
            if info["type"] == "file"
        }

    def filesystem(self) -> tuple[fsspec.AbstractFileSystem, str]:
        """What reads it, and how that calls it.

        Raises:
          UserError: no package reads such URLs, or it lacks something.
        """
        try:
            return fsspec.core.url_to_fs(self.url)
        except ImportError as error:
            raise UserError(
                f"{self}: {self.scheme}:// needs another package: {brief(error)}"
            ) from None
        except Exception as error:
            raise UserError(f"{self}: cannot be read ({brief(error)})") from None

    @property
    def _is_http(self) -> bool:
        return self.scheme in WEB

    def _facts(self) -> Facts | None:
        if self._is_http:
            answer = self._asking(lambda: _http_files().ask(self.url))
            return answer and Facts(answer.size or 0, answer.version, answer.ranges)
        files, path = self.filesystem()
        info = self._asking(lambda: files.info(path))
        if info is None:
            return None
        version = next((info[key] for key in _VERSIONS if info.get(key) is not None), "")
        return Facts(info.get("size") or 0, str(version), True, info["type"] == "directory")

    def _asking(self, ask: Callable[[], Any]) -> Any:
        """What the store answers; None where it says that there is nothing, UserError where it does not answer."""
        try:
            return patiently(ask, _ASKING)
        except FileNotFoundError:
            return None
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{self}: cannot be read ({brief(error)})") from error


def _http_files() -> Any:
    from mmbert_jax import http_files  # not what programs that see no web server have to wait for

    return http_files


def url(text: str) -> Url:
    """What a URL names, from now on: of the Hugging Face hub at the commit that is the newest one now.

    Raises:
      UserError: no package reads such URLs; there is no such repository or revision; it is no file.
    """
    found = Url(text, text)
    if found.scheme in WEB:
        if not found.name or text.endswith("/"):
            raise UserError(f"{text}: web servers have no folders; name each file")
        return found
    found.filesystem()
    return _pinned(found) if found.scheme == "hf" else found


def _pinned(found: Url) -> Url:
    """All processes, and all days of a long preparation, read one commit."""
    files, path = found.filesystem()
    from huggingface_hub import HfApi, constants  # fsspec has found it

    try:
        at = patiently(lambda: files.resolve_path(path), _ASKING)
        if not hasattr(at, "repo_id"):  # a bucket of the hub has no commits
            return found
        info = patiently(
            lambda: HfApi(files.endpoint, token=files.token).repo_info(
                at.repo_id, revision=at.revision, repo_type=at.repo_type
            ),
            _ASKING,
        )
    except Exception as error:
        raise UserError(
            f"{found}: cannot be read ({brief(error)}); see to the name, and whether it may be read (`hf auth login`)"
        ) from None
    prefix = constants.REPO_TYPES_URL_PREFIXES.get(at.repo_type, "")
    return Url(
        f"hf://{prefix}{at.repo_id}@{info.sha}/{at.path_in_repo}".rstrip("/"),
        found.label.rstrip("/"),
    )


class _Handle:
    """A file as its store's own package reads it, opened again where the connection was lost."""

    def __init__(self, of: Url):
        self._of = of
        self._file: Any = None

    def read(self, start: int, stop: int) -> bytes:
        try:
            if self._file is None:
                files, path = self._of.filesystem()
                self._file = files.open(path, "rb")
            self._file.seek(start)
            parts: list[bytes] = []
            while (left := stop - start - sum(map(len, parts))) and (data := self._file.read(left)):
                parts.append(data)
        except Exception:
            self._forget()
            raise
        if left:
            self._forget()
            raise Interrupted(f"{stop - start - left} bytes came instead of {stop - start}")
        return b"".join(parts)

    def _forget(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(Exception):  # it is broken
                file.close()


class _File(io.RawIOBase):
    """A file of which parts can be had."""

    def __init__(self, of: Url, size: int, fetch: Callable[[int, int], bytes]):
        self._of, self._size, self._fetch = of, size, fetch
        self._at = 0
        self._block, self._begin, self._step = b"", 0, _FIRST

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer) -> int:
        if self._at >= self._size:
            return 0
        end = self._begin + len(self._block)
        if not self._begin <= self._at < end:
            self._step = min(2 * self._step, _LARGEST) if self._at == end else _FIRST
            stop = min(self._at + max(self._step, len(buffer)), self._size)
            start = self._at
            self._block = _reading(self._of, lambda: self._fetch(start, stop))
            self._begin = start
        start = self._at - self._begin
        data = self._block[start : start + len(buffer)]
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


class _Stream(io.RawIOBase):
    """A file of a server that gives no parts; where the connection was lost, from the beginning to that place again."""

    def __init__(self, of: Url):
        self._of = of
        self._stream: http_files.Stream | None = None
        self._at = 0

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        if self._stream:
            self._stream.close()
        super().close()

    def readinto(self, buffer) -> int:
        data = _reading(self._of, lambda: self._read(len(buffer)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _read(self, n: int) -> bytes:
        try:
            if self._stream is None:
                self._stream = _http_files().Stream(self._of.url)
            while self._stream.at < self._at:
                if not self._stream.read(min(self._at - self._stream.at, _LARGEST)):
                    raise Interrupted(f"it ends after {self._stream.at} bytes")
            return self._stream.read(n)
        except Exception:
            if self._stream:
                self._stream.close()
            self._stream = None
            raise


def _reading(of: Url, act: Callable[[], bytes]) -> bytes:
    try:
        return patiently(act)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{of}: cannot be read ({brief(error)}); try again later") from error
