"""Object stores without a network: emulators of gs:// and s3:// in processes of their own, on free loopback ports.

What says where they are stands in the environment, so programs that tests start find them, too.
"""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import pytest

# The emulator takes no notice of conditions, does not say which generation of an object it has read out, and keeps no
# more than five connections waiting.
_GS = """
import socketserver, sys, threading
from http import HTTPStatus
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects

lock = threading.RLock()

def generation(storage, request, name):
    try:
        return storage.get_file_obj(request.params["bucket_name"], name)["generation"]
    except NotFound:
        return "0"

def conditional(handler):
    def handle(request, response, storage, *args, **kwargs):
        with lock:
            wanted = request.query.get("ifGenerationMatch")
            name = request.params.get("object_id") or request.query.get("name", [None])[0]
            if wanted and name and wanted[0] != generation(storage, request, name):
                response.status = HTTPStatus.PRECONDITION_FAILED
                return
            return handler(request, response, storage, *args, **kwargs)
    return handle

def download(request, response, storage, *args, _handler=objects.download, **kwargs):
    response["x-goog-generation"] = generation(storage, request, request.params["object_id"])
    return _handler(request, response, storage, *args, **kwargs)

objects.insert, objects.delete = conditional(objects.insert), conditional(objects.delete)
objects.download = download
from gcp_storage_emulator.server import create_server
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


@pytest.fixture(params=["disk", "gs", "s3"])
def anywhere(request, tmp_path) -> str:
    """A folder on a disk, and then one in each kind of bucket."""
    if request.param == "disk":
        return str(tmp_path)
    return request.getfixturevalue(f"{request.param}_bucket")


def _name(request) -> str:
    return f"{os.getpid()}-{abs(hash(request.node.nodeid))}"
