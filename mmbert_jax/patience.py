"""Requests to servers that are not ours, made again where a failure may pass: too many requests, a lost connection."""

import time
from collections.abc import Callable
from typing import Any

# Seconds between tries: a minute and a half, as gcsfs waits for a bucket.
WAITS = (1, 2, 4, 8, 16, 32, 32)
_FOR_A_MOMENT = (408, 429, 500, 502, 503, 504)
# By name: of aiohttp, httpx and requests there may be none. None of them is about what was asked for.
_LOST = ("ClientConnectionError", "ClientPayloadError", "TransportError", "RequestException")


class Interrupted(Exception):
    """An answer that ended early."""


def patiently[T](act: Callable[[], T], waits: tuple[float, ...] | None = None) -> T:
    """What `act` returns; it is called again after a failure that may pass, and raises what the last one raised.

    Args:
      waits: seconds before each try but the first; None: WAITS.
    """
    for wait in WAITS if waits is None else waits:
        try:
            return act()
        except Exception as error:
            if not may_pass(error):
                raise
        time.sleep(wait)
    return act()


def may_pass(error: Exception) -> bool:
    """Whether the same request may be answered later."""
    status = _status(error)
    if status is not None:
        return status in _FOR_A_MOMENT
    lost = (Interrupted, TimeoutError, ConnectionResetError, ConnectionAbortedError, EOFError)
    return isinstance(error, lost) or any(kind.__name__ in _LOST for kind in type(error).__mro__)


def _status(error: Exception) -> int | None:
    """Of an HTTP client's error: aiohttp's has it itself, of others the response."""
    found: Any = getattr(error, "status", None)
    if found is None:
        found = getattr(getattr(error, "response", None), "status_code", None)
    return found if isinstance(found, int) else None
