"""Lets gcsfs and s3fs, through which small files go, be as patient as tensorstore, through which large ones do."""

import functools

# With the waits of gcsfs, 1, 2, 4, 8, 16, then 32 s, a minute and a half; s3fs waits less, and each of its tries is
# five of botocore's. Of six, which is gcsfs' own number, all fail once in 16,000 requests where one answer in five is a
# failure: a few times in a long run.
TRIES = 8
_FOR_A_MOMENT = (408, 429, 500, 502, 503, 504)


@functools.cache
def let_gcsfs_try_again() -> None:
    """Replaces the three methods in which gcsfs has the number of tries; it has no option for that.

    Raises:
      AttributeError: this version of gcsfs has no such methods.
    """
    from gcsfs.core import GCSFileSystem  # not what programs that see no bucket have to wait for
    from gcsfs.retry import retry_request

    for name in ("_request", "_get_file_request", "_get_file_concurrent"):
        once = getattr(GCSFileSystem, name).__wrapped__
        setattr(GCSFileSystem, name, retry_request(retries=TRIES)(once))


@functools.cache
def let_s3fs_try_again() -> None:
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
