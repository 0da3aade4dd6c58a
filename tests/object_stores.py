"""Object stores without a network: emulators of gs:// and s3:// in processes of their own, on free loopback ports.

What says where they are stands in the environment, so programs that tests start find them, too.
"""

import contextlib
import http.client
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pytest
from etils.epath import backend

# The emulator takes no notice of conditions, does not say which generation of an object it has read out, breaks off an
# upload of nothing and of JSON, and keeps no more than five connections waiting. It once broke off every listing of a
# folder, not so since it serves one by one.
_GS = """
import socketserver, sys, threading
from http import HTTPStatus
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects

lock = threading.Lock()

def generation(storage, request, name):
    try:
        return storage.get_file_obj(request.params["bucket_name"], name)["generation"]
    except NotFound:
        return "0"

def conditional(handler):
    def handle(request, response, storage, *args, **kwargs):
        wanted = request.query.get("ifGenerationMatch")
        name = request.params.get("object_id") or request.query.get("name", [None])[0]
        if wanted and name and wanted[0] != generation(storage, request, name):
            response.status = HTTPStatus.PRECONDITION_FAILED
            return
        if request.query.get("uploadType") == ["media"]:
            request._data = _read_raw_data(request._request_handler) or b""
        return handler(request, response, storage, *args, **kwargs)
    return handle

def download(request, response, storage, *args, _handler=objects.download, **kwargs):
    response["x-goog-generation"] = generation(storage, request, request.params["object_id"])
    return _handler(request, response, storage, *args, **kwargs)

objects.insert, objects.delete = conditional(objects.insert), conditional(objects.delete)
objects.download = download
from gcp_storage_emulator.server import Router, _read_raw_data, create_server

route = Router.handle

def one_by_one(*arguments):
    with lock:
        return route(*arguments)

Router.handle = one_by_one
socketserver.TCPServer.request_queue_size = 256
create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket="bucket").run()
"""
_S3 = """
import sys
from moto.server import main
main(["-H", "127.0.0.1", "-p", sys.argv[1]])
"""
_KEYS = {
    "AWS_ACCESS_KEY_ID": "x",
    "AWS_SECRET_ACCESS_KEY": "x",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextlib.contextmanager
def gs_store() -> Iterator[dict[str, str]]:
    """Runs a store with the bucket gs://bucket; the environment that leads to it."""
    with _server(_GS) as url:
        yield {
            "STORAGE_EMULATOR_HOST": url,
            "TENSORSTORE_GCS_HTTP_URL": url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x",
            # gcsfs asks, for minutes, a service that the emulator has not.
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }


@contextlib.contextmanager
def s3_store() -> Iterator[dict[str, str]]:
    """Runs a store with the bucket s3://bucket; the environment that leads to it."""
    with _server(_S3) as url:
        region = {"AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1"}
        _request("PUT", f"{url}/bucket")
        yield {"AWS_ENDPOINT_URL": url, **region, **_KEYS}


@contextlib.contextmanager
def _server(program: str) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program, str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(300):
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port)).close()
                break
            assert server.poll() is None, "the object store's emulator has ended"
            time.sleep(0.1)
        yield url
    finally:
        server.kill()
        server.wait()


def _request(method: str, url: str) -> None:
    with urllib.request.urlopen(urllib.request.Request(url, method=method)) as answer:
        answer.read()


# --- stores that misbehave ---

# The request is carried out, and its connection reset instead of an answer.
RESET = -1
_FAILURES = {
    "gs": '{{"error": {{"code": {0}, "message": "the injected fault"}}}}',
    "s3": "<Error><Code>{1}</Code><Message>the injected fault</Message></Error>",
}
_CODES = {403: "AccessDenied", 429: "TooManyRequests", 503: "SlowDown"}


class Faulty(ThreadingHTTPServer):
    """Stands between programs and a store, and fails as it is told to.

    Attributes:
      fault: takes a request's method and its path, the query included, unquoted; gives the status to answer with,
        `RESET`, or None for the store's own answer, which may take a while.
    """

    request_queue_size = 256
    daemon_threads = True
    block_on_close = False

    def __init__(self, scheme: str, store: str):
        self.scheme, self.store = scheme, store.removeprefix("http://")
        self.fault: Callable[[str, str], int | None] = lambda method, path: None
        super().__init__(("127.0.0.1", 0), _Passing)

    def handle_error(self, *_) -> None:
        """Clients that go away need not be told of."""


class _Passing(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _pass(self) -> None:
        body = self._body()
        fault = self.server.fault(self.command, urllib.parse.unquote(self.path))
        # A store would know of an upload in parts that it has ended; the emulator does not.
        if fault == RESET and "upload_id=" in self.path:
            return self._reset()
        if fault and fault != RESET:
            text = _FAILURES[self.server.scheme].format(fault, _CODES[fault]).encode()
            return self._answer(fault, {"Content-Length": str(len(text))}, text)
        there = http.client.HTTPConnection(self.server.store)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _OF_A_CONNECTION}
        there.request(self.command, self.path, body, headers)
        answer = there.getresponse()
        content = answer.read()
        there.close()
        if fault == RESET:
            return self._reset()
        headers = {k: v for k, v in answer.getheaders() if k.lower() not in _OF_A_CONNECTION}
        if self.command != "HEAD":
            headers["Content-Length"] = str(len(content))
        self._answer(answer.status, headers, content)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_PATCH = _pass

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_) -> None:
        pass


_OF_A_CONNECTION = ("transfer-encoding", "connection", "keep-alive", "expect", "server", "date")


@contextlib.contextmanager
def faulty(scheme: str) -> Iterator[Faulty]:
    """A store that misbehaves before the one of the environment, which leads to it meanwhile."""
    names = (
        ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL")
        if scheme == "gs"
        else ("AWS_ENDPOINT_URL",)
    )
    store = Faulty(scheme, os.environ[names[0]])
    thread = threading.Thread(target=store.serve_forever, daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setenv(name, f"http://127.0.0.1:{store.server_port}")
        _forget_clients(scheme)
        yield store
    _forget_clients(scheme)
    store.shutdown()
    store.server_close()


def _forget_clients(scheme: str) -> None:
    """Those that are open go on with the store that they were opened for."""
    fsspec.get_filesystem_class(scheme).clear_instance_cache()
    backend._FileSystemSpecBackend._get_filesystem.cache_clear()


@pytest.fixture(scope="session")
def _gs_store() -> Iterator[None]:
    yield from _in_environment(gs_store())


@pytest.fixture(scope="session")
def _s3_store() -> Iterator[None]:
    yield from _in_environment(s3_store())


def _in_environment(store: contextlib.AbstractContextManager[dict[str, str]]) -> Iterator[None]:
    with store as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield


@pytest.fixture
def gs_bucket(_gs_store, request) -> str:
    """A folder in a bucket that no other test uses."""
    return f"gs://bucket/{_name(request)}"


@pytest.fixture
def s3_bucket(_s3_store, request) -> str:
    """A folder in a bucket that no other test uses."""
    return f"s3://bucket/{_name(request)}"


@pytest.fixture(params=["gs", "s3"])
def faulty_bucket(request) -> Iterator[tuple[str, Faulty]]:
    """A folder in a bucket, and the store to be told how to fail."""
    bucket = request.getfixturevalue(f"{request.param}_bucket")
    with faulty(request.param) as store:
        yield bucket, store


@pytest.fixture(params=["disk", "gs", "s3"])
def anywhere(request, tmp_path) -> str:
    """A folder on a disk, and then one in each kind of bucket."""
    if request.param == "disk":
        return str(tmp_path)
    return request.getfixturevalue(f"{request.param}_bucket")


def _name(request) -> str:
    return f"{os.getpid()}-{abs(hash(request.node.nodeid))}"
