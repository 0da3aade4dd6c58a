"""Web servers and a hub of Hugging Face's kind on the loopback, with and without ranges, that fail as they are told."""

import contextlib
import hashlib
import json
import re
import socket
import struct
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

# Half of the answer's body, then a closed connection; a connection that is reset instead of an answer.
CUT, RESET = -1, -2


class WebServer(ThreadingHTTPServer):
    """Serves what is in `files`.

    Attributes:
      files: path -> content.
      ranges: "yes"; "no" (the whole file, whatever is asked for, as Python's own); "lies" (says that it gives them, and
        answers the first byte, but else with the whole file).
      sizes: whether it says how long a file is.
      fault: takes a request's method and path and its range; gives a status, CUT, RESET or None.
      seen: requests, as `fault` gets them.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.ranges, self.sizes = "yes", True
        self.fault: Callable[[str, str, str | None], int | None] = lambda *_: None
        self.seen: list[tuple[str, str, str | None]] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, handler: "_Handler", path: str, query: str, body: bytes) -> None:
        content = self.files.get(path)
        if content is None:
            handler.say(404, b"no such file")
        else:
            handler.send_content(content)

    def handle_error(self, *_) -> None:
        """Clients that go away need not be told of."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _do(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path, _, query = self.path.partition("?")
        path = urllib.parse.unquote(path)
        asked = (self.command, path, self.headers.get("Range"))
        self.server.seen.append(asked)
        self.fault = self.server.fault(*asked)
        if self.fault == RESET:
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.close_connection = True
            self.connection.close()
        elif self.fault and self.fault > 0:
            self.say(self.fault, b"the injected fault")
        else:
            self.server.answer(self, path, query, body)

    do_GET = do_HEAD = do_POST = _do

    def send_content(self, content: bytes) -> None:
        """The range that is asked for, or all."""
        headers = {"ETag": f'"{hashlib.md5(content).hexdigest()}"'}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        ranges = self.server.ranges
        if ranges != "no":
            headers["Accept-Ranges"] = "bytes"
        if not asked or ranges == "no" or (ranges == "lies" and asked[2] != "0"):
            self.say(200, content, headers)
            return
        start = int(asked[1])
        part = content[start : int(asked[2] or len(content)) + 1]
        if not part:
            self.say(416, b"", headers | {"Content-Range": f"bytes */{len(content)}"})
            return
        headers["Content-Range"] = f"bytes {start}-{start + len(part) - 1}/{len(content)}"
        self.say(206, part, headers)

    def say(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if self.server.sizes:
            self.send_header("Content-Length", str(len(content)))
        else:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault == CUT:
            content = content[: len(content) // 2]
            self.close_connection = True
        self.wfile.write(content)

    def log_message(self, *_) -> None:
        pass


class Hub(WebServer):
    """The part of the hub's interface that reading a data set's files needs.

    Attributes:
      commits: hash -> path -> content, the newest one last, which `main` is.
    """

    name = "org/texts"

    def __init__(self):
        self.commits: dict[str, dict[str, bytes]] = {}
        super().__init__()

    def commit(self, files: dict[str, bytes]) -> str:
        sha = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits.pop(sha, None)
        self.commits[sha] = files
        return sha

    def answer(self, handler: _Handler, path: str, query: str, body: bytes) -> None:
        api = f"/api/datasets/{self.name}"
        if found := re.fullmatch(rf"{api}(?:/revision/([^/]+))?", path):
            sha = self._sha(found[1] or "main")
            known = {"id": self.name, "sha": sha, "siblings": [], "private": False, "tags": []}
            self._json(handler, known | {"disabled": False, "downloads": 0, "likes": 0}, sha)
        elif found := re.fullmatch(rf"{api}/tree/([^/]+)(?:/(.*))?", path):
            recursive = urllib.parse.parse_qs(query).get("recursive", [""])[0].lower() == "true"
            self._json(handler, self._tree(found[1], found[2] or "", recursive), found[1])
        elif found := re.fullmatch(rf"{api}/paths-info/([^/]+)", path):
            asked = urllib.parse.parse_qs(body.decode())["paths"] if body[:1] != b"{" else None
            asked = asked or json.loads(body)["paths"]
            tree = self._tree(found[1], "", True) or []
            self._json(handler, [entry for entry in tree if entry["path"] in asked], found[1])
        elif found := re.fullmatch(rf"/datasets/{self.name}/resolve/([^/]+)/(.*)", path):
            content = self.commits.get(self._sha(found[1]), {}).get(found[2])
            if content is None:
                handler.say(404, b"", {"X-Error-Code": "EntryNotFound"})
            else:
                handler.send_content(content)
        else:
            handler.say(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _sha(self, revision: str) -> str:
        return list(self.commits)[-1] if revision == "main" else revision

    def _tree(self, revision: str, folder: str, recursive: bool) -> list[dict] | None:
        files = self.commits.get(self._sha(revision), {})
        prefix = f"{folder}/" if folder else ""
        found = {}
        for path, content in files.items():
            if not path.startswith(prefix):
                continue
            below = path.removeprefix(prefix).split("/")
            for i in range(1, len(below)):
                above = prefix + "/".join(below[:i])
                found[above] = {"type": "directory", "path": above, "oid": "0" * 40, "size": 0}
            oid = hashlib.sha1(content).hexdigest()
            found[path] = {"type": "file", "path": path, "oid": oid, "size": len(content)}
        if not recursive:
            found = {k: v for k, v in found.items() if "/" not in k.removeprefix(prefix)}
        return list(found.values()) or None

    def _json(self, handler: _Handler, value: object, revision: str) -> None:
        if value is None:
            handler.say(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        elif self._sha(revision) not in self.commits:
            handler.say(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        else:
            handler.say(200, json.dumps(value).encode(), {"Content-Type": "application/json"})


@contextlib.contextmanager
def _running(server: WebServer) -> Iterator[WebServer]:
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def web() -> Iterator[WebServer]:
    with _running(WebServer()) as server:
        yield server


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A hub; who shall see it needs its address as HF_ENDPOINT from its start."""
    with _running(Hub()) as server:
        yield server
