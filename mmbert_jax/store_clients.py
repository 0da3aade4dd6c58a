"""What gcsfs and s3fs, through which small files go, do not do of themselves: wait as long as tensorstore, and write
every byte."""

import functools
from typing import Any

# With the waits of gcsfs, 1, 2, 4, 8, 16, then 32 s, a minute and a half; s3fs waits less, and each of its tries is
# five of botocore's. Of six, which is gcsfs' own number, all fail once in 16,000 requests where one answer in five is a
# failure: a few times in a long run.
TRIES = 8
_FOR_A_MOMENT = (408, 429, 500, 502, 503, 504)


@functools.cache
def mend_gcsfs() -> None:
    """Replaces three methods of gcsfs, in which it has the number of tries, and its way of writing an object at once.

    gcsfs puts a line feed between the data and the boundary of a multipart body: where the data end with a carriage
    return, the two are the line break that belongs to the boundary (RFC 2046, section 5.1.1), and a store writes one
    byte less. One small binary object in 256 ends so.

    Raises:
      AttributeError: this version of gcsfs has none of these.
    """
    from gcsfs import core  # not what programs that see no bucket have to wait for
    from gcsfs.retry import retry_request

    for name in ("_request", "_get_file_request", "_get_file_concurrent"):
        once = getattr(core.GCSFileSystem, name).__wrapped__
        setattr(core.GCSFileSystem, name, retry_request(retries=TRIES)(once))
    if not hasattr(core, "simple_upload"):
        raise AttributeError("gcsfs.core has no simple_upload")
    core.simple_upload = _upload


async def _upload(
    fs: Any,
    bucket: str,
    key: str,
    datain: bytes,
    metadatain: dict | None = None,
    consistency: str | None = None,
    content_type: str = "application/octet-stream",
    fixed_key_metadata: dict | None = None,
    mode: str = "overwrite",
    kms_key_name: str | None = None,
) -> None:
    """gcsfs' `simple_upload` with a body that is the data and nothing else; the store has to say that it got them all.

    Raises:
      NotImplementedError: for metadata, which go with a multipart body alone; nothing here writes any.
      OSError: the object is not as long as what was sent.
    """
    from gcsfs.core import quote

    if metadatain or fixed_key_metadata:
        raise NotImplementedError(f"gs://{bucket}/{key}: metadata of objects are not written")
    only_if = {"ifGenerationMatch": "0"} if mode == "create" else {}
    encrypted = {"kmsKeyName": kms_key_name} if kms_key_name else {}
    stored = await fs._call(
        "POST",
        f"{fs._location}/upload/storage/v1/b/{quote(bucket)}/o",
        uploadType="media",
        name=key,
        headers={"Content-Type": content_type},
        data=datain,
        json_out=True,
        **only_if,
        **encrypted,
    )
    if int(stored["size"]) != len(datain):
        raise OSError(
            f"gs://{bucket}/{key}: {len(datain):,} bytes were sent, {stored['size']} written"
        )


@functools.cache
def mend_s3fs() -> None:
    """Of itself s3fs tries again after "SlowDown" alone, not after 429, an answer without a body, or a reset."""
    from botocore.exceptions import ClientError, HTTPClientError
    from botocore.exceptions import ConnectionError as NoConnection
    from s3fs.core import S3FileSystem, set_custom_error_handler

    def is_momentary(error: Exception) -> bool:
        if isinstance(error, ClientError):
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return status in _FOR_A_MOMENT
        return isinstance(error, NoConnection | HTTPClientError)

    S3FileSystem.retries = TRIES
    set_custom_error_handler(is_momentary)
