"""Object stores on the loopback, as the programs see a real one: a bucket of Google's kind, and one of Amazon's."""

import socket
import time
from collections.abc import Iterator

import pytest

BUCKET = "bucket"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on port {port}")


@pytest.fixture(scope="session")
def gs_bucket() -> Iterator[str]:
    from gcp_storage_emulator.server import create_server

    port = _free_port()
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket=BUCKET)
    url = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TENSORSTORE_GCS_HTTP_URL", url)
        environment.setenv("STORAGE_EMULATOR_HOST", url)
        environment.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "x")
        server.start()
        _wait_for(port)
        yield f"gs://{BUCKET}"
        server.stop()


@pytest.fixture(scope="session")
def s3_bucket() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", url)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            environment.setenv(name, "x")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=port)
        server.start()
        _wait_for(port)
        import s3fs

        s3fs.S3FileSystem().mkdir(BUCKET)
        yield f"s3://{BUCKET}"
        server.stop()
