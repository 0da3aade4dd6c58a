"""SHA-256 sums of a checkpoint's files: the last thing that a save writes, checked before anything is read.

Orbax loads flipped bits in array data without a word (docs/log.md). The file has the format of the program `sha256sum`,
so `sha256sum --check SHA256SUMS` inside a checkpoint does the same check.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor

from mmbert_jax.files import write_text
from mmbert_jax.places import Place, files_under
from mmbert_jax.run import AWAITING_SUMS, SUMS


def announce_sums(folder: Place) -> None:
    """Marks a checkpoint as one that has no sums yet, so that a killed save does not look like damage."""
    (folder / AWAITING_SUMS).write_bytes(b"")


def write_sums(folder: Place) -> None:
    """Writes the sums of a checkpoint of which all else is on the disk; takes the mark of `announce_sums` away."""
    lines = (f"{digest}  {name}\n" for name, digest in sorted(_sums(_files(folder)).items()))
    write_text(folder / SUMS, "".join(lines))
    (folder / AWAITING_SUMS).unlink(missing_ok=True)  # a lost answer is asked for again


def damage(folder: Place) -> str | None:
    """What is wrong with a checkpoint, naming the file; None where every file is as it was written.

    Hidden files, which file managers and copying programs leave behind, do not count.
    """
    path = folder / SUMS
    if not path.is_file():
        return (
            f"{path} is missing: the checkpoint is not complete, or no checkpoint of this program"
        )
    wanted = {}
    for number, line in enumerate(path.read_bytes().decode("utf-8", "replace").splitlines(), 1):
        digest, separator, name = line.partition("  ")
        if not separator or len(digest) != 64:
            return f"{path}, line {number} is not a sum and a name"
        wanted[name] = digest
    files = _files(folder)
    for name in sorted(wanted.keys() | files.keys()):
        if name not in files:
            return f"{folder / name} is missing"
        if name not in wanted:
            return f"{folder / name} is not listed in {SUMS}"
    found = _sums(files)
    for name in sorted(wanted):
        if found[name] != wanted[name]:
            return f"{folder / name} is not what was written (its SHA-256 differs from {SUMS})"
    return None


def _files(folder: Place) -> dict[str, Place]:
    """Path inside the folder -> file, of all but the sums and hidden ones."""
    return {
        str(path)[len(str(folder)) + 1 :]: path
        for path in files_under(folder)
        if path.name != SUMS and not path.name.startswith(".")
    }


def _sums(files: dict[str, Place]) -> dict[str, str]:
    """The same names -> SHA-256 in hexadecimal digits."""
    with ThreadPoolExecutor() as pool:  # hashing gives up the interpreter's lock
        return dict(zip(files, pool.map(sha256, files.values()), strict=True))


def sha256(path: Place) -> str:
    """A file's SHA-256 in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
