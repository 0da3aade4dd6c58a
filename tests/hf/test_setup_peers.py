"""tools/setup_peers.sh, with an interpreter that only notes down what it is asked to install."""

import os
import shutil
import subprocess

import pytest
from peers import ROOT

NAMES = ["transformers-4.48", "transformers-4.57", "sentence-transformers", "pylate", "mergekit"]
NAMES += ["streaming"]
FAKE = """#!/bin/bash
if [ "$1" = --version ]; then echo Python 3.12.1; exit; fi
echo "$@" >>"$CALLS"
[ -z "$FAIL" ] || exit 1
while [ "$1" != --target ]; do shift; done
mkdir -p "$2"
"""


@pytest.fixture
def setup(tmp_path):
    """Runs the script in a tree of its own; gives (exit status, stderr, the calls of pip)."""
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "setup_peers.sh", tmp_path / "tools")
    python, calls = tmp_path / "python", tmp_path / "calls"
    python.write_text(FAKE)
    python.chmod(0o755)

    def run(*names, fail=""):
        calls.write_text("")
        result = subprocess.run(
            ["bash", "tools/setup_peers.sh", *names],
            cwd=tmp_path,
            env=os.environ | {"PYTHON": str(python), "CALLS": str(calls), "FAIL": fail},
            capture_output=True,
            text=True,
            check=False,
        )
        return result.returncode, result.stderr, calls.read_text().splitlines()

    return run


def test_everything_is_pinned_and_nothing_brings_torch(setup):
    status, _, calls = setup()
    assert status == 0
    assert len(calls) == len(NAMES)
    for name, call in zip(NAMES, calls, strict=True):
        words = call.split()
        assert words[:3] == ["-m", "pip", "install"]
        assert "--no-deps" in words
        at = words.index("--target")
        assert words[at + 1] == f".peers/{name}/site-packages"
        packages = words[at + 2 :]
        assert packages
        assert all("==" in package for package in packages)
        assert not [package for package in packages if package.split("==")[0] in ("torch", "numpy")]


def test_does_nothing_twice_and_mends_what_was_interrupted(setup):
    assert setup("pylate")[2]
    assert setup("pylate") == (0, "", [])
    status, _, calls = setup("mergekit", fail="yes")
    assert (status, len(calls)) == (1, 1)
    assert len(setup("pylate", "mergekit")[2]) == 1
    assert setup("pylate", "mergekit") == (0, "", [])


def test_an_unknown_name_is_refused(setup):
    status, stderr, calls = setup("transformers-3")
    assert (status, calls) == (1, [])
    assert "no peer is called transformers-3" in stderr
