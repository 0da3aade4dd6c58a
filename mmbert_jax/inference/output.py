"""Output files that grow together, and can be gone on with after the process was killed at any moment."""

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from typing import Any

from mmbert_jax import buckets
from mmbert_jax.errors import UserError
from mmbert_jax.files import (
    check_file,
    naming,
    read_json,
    to_json,
    try_lock,
    write_json,
    write_whole,
)
from mmbert_jax.places import Place, can_rename

PARTIAL, STATE = ".partial", ".state.json"


class Output:
    """Files that are written as `NAME.partial`, beside `NAME.state.json`, and get their names when they are complete.

    For a bucket they are written on this machine and uploaded when they are complete: a killed program begins again.

    What is appended counts once it is committed: the state file says how long the files were then, and with which
    settings they are made. Opening them again cuts off what came behind the last commit.

    Attributes:
      state: "records" that are written, how many of their texts were "cut", the "sha256" of the input's records so far.
    """

    def __init__(self, paths: Sequence[Place], settings: dict[str, Any]):
        """Opens new files, or those of a run that was killed.

        Args:
          paths: the first one's name is also the state's.
          settings: everything that what is written depends on, but for the input.

        Raises:
          UserError: a file is there already, another process writes it, or it was begun with other settings.
        """
        for path in paths:
            check_file(path)
        self._targets, self._aside = list(paths), None
        if not can_rename(paths[0]):
            if there := [path for path in paths if path.exists()]:
                raise UserError(
                    f"{there[0]} exists already: choose another --output, or remove it first"
                )
            self._aside = tempfile.TemporaryDirectory(prefix="mmbert-jax-")
            paths = [Path(self._aside.name) / path.name for path in paths]
        self._paths = list(paths)
        self._state_path = _beside(paths[0], STATE)
        self._settings = settings
        self.state = {
            "settings": settings,
            "records": 0,
            "cut": 0,
            "sha256": hashlib.sha256().hexdigest(),
            "sizes": [0] * len(paths),
            "complete": False,
        }
        if self._state_path.exists():
            self._read_state()
        elif there := [path for path in paths if path.exists()]:
            raise UserError(
                f"{there[0]} exists already, complete: choose another --output, or remove it first"
            )
        self._files = [] if self.complete else self._open()
        if self.complete:
            self._rename()
            print(f"{paths[0]} is complete: nothing was left to do", file=sys.stderr)

    @property
    def complete(self) -> bool:
        """Whether everything was written before, and nothing is left to do."""
        return self.state["complete"]

    def append(self, parts: Sequence[bytes]) -> None:
        """Appends one part to each file."""
        for path, file, part in zip(self._paths, self._files, parts, strict=True):
            write_whole(file.fileno(), part, path)

    def commit(self, records: int, cut: int, sha256: str) -> None:
        """Makes what was appended last, as so many records with so many texts cut."""
        self._sync()
        self.state |= {
            "records": self.state["records"] + records,
            "cut": self.state["cut"] + cut,
            "sha256": sha256,
            "sizes": [file.tell() for file in self._files],
        }
        self._write_state()

    def finish(self, header: bytes = b"") -> None:
        """Gives the files their names, after writing `header` over the start of the first."""
        self._files[0].seek(0)
        write_whole(self._files[0].fileno(), header, self._paths[0])
        self._sync()
        for file in self._files:
            file.close()
        self.state["complete"] = True
        self._write_state()
        self._rename()
        if self._aside:
            for path, target in reversed(list(zip(self._paths, self._targets, strict=True))):
                with naming(target):
                    buckets.upload(path, target)

    def close(self) -> None:
        """Closes the files, complete or to be gone on with."""
        for file in self._files:
            file.close()
        if self._aside:
            self._aside.cleanup()

    def _read_state(self) -> None:
        state = read_json(self._state_path)
        theirs, ours = state["settings"], json.loads(to_json(self._settings))
        if differing := [key for key in ours | theirs if ours.get(key) != theirs.get(key)]:
            key = differing[0]
            raise UserError(
                f"{_beside(self._paths[0], PARTIAL)} was begun with {key} {theirs.get(key)!r}, not {ours.get(key)!r}:"
                f" use the same settings, or remove it and {self._state_path} to begin again"
            )
        self.state = state

    def _open(self) -> list[FileIO]:
        """The partial files, locked, and as they were at the last commit."""
        files = []
        try:
            for path, size in zip(self._paths, self.state["sizes"], strict=True):
                partial = _beside(path, PARTIAL)
                partial.touch()
                # Unbuffered: what a full disk refuses would be tried again, and fail again, when the file is closed.
                file = partial.open("r+b", buffering=0)
                files.append(file)
                if try_lock(file) is False:
                    raise UserError(f"{partial}: another process is writing it")
                if (found := os.fstat(file.fileno()).st_size) < size:
                    raise UserError(
                        f"{partial} has {found:,} bytes, but {size:,} were written: remove it and {self._state_path}"
                        " to begin again"
                    )
                file.truncate(size)
                file.seek(size)
            self._write_state()
        except BaseException:
            for file in files:
                file.close()
            raise
        return files

    def _sync(self) -> None:
        for path, file in zip(self._paths, self._files, strict=True):
            with naming(path):
                os.fsync(file.fileno())

    def _write_state(self) -> None:
        write_json(self._state_path, self.state)

    def _rename(self) -> None:
        """Again where a process was killed in the midst of it."""
        for path in reversed(self._paths):
            if _beside(path, PARTIAL).exists():
                os.replace(_beside(path, PARTIAL), path)
        self._state_path.unlink()


class StandardOutput:
    """The same for standard output, which cannot be gone on with."""

    complete = False

    def __init__(self):
        self.state = {"records": 0, "cut": 0, "sha256": hashlib.sha256().hexdigest()}

    def append(self, parts: Sequence[bytes]) -> None:
        sys.stdout.buffer.writelines(parts)

    def commit(self, records: int, cut: int, sha256: str) -> None:
        sys.stdout.buffer.flush()
        self.state |= {
            "records": self.state["records"] + records,
            "cut": self.state["cut"] + cut,
            "sha256": sha256,
        }

    def finish(self, header: bytes = b"") -> None:
        del header

    def close(self) -> None:
        sys.stdout.buffer.flush()


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
