"""Files that lie beside a checkout, in ../shared/data, and not in the repository; tests that want them skip without."""

from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def shared_file(name: str) -> Path:
    """The path of a shared file; skips the test where it is absent."""
    path = SHARED_DATA / name
    if not path.exists():
        pytest.skip(f"{name} is not beside this checkout (../shared/data)")
    return path
