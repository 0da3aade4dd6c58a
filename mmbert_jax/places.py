"""Where things lie: on a disk, or in a bucket; and text that is only read, behind other URLs.

Every path that a user gives goes through `place` once, or, of text, through `place_to_read`; what comes back has
pathlib's methods wherever it lies, so nothing else asks. `~` is expanded; by `place` a scheme other than gs:// and s3://
is refused by name, not taken for a folder.
"""

import logging
import os
import re
from pathlib import Path

import fsspec
from etils import epath
from etils.epath import gpath

from mmbert_jax.errors import UserError, about_files, brief
from mmbert_jax.store_clients import mend_gcsfs, mend_s3fs
from mmbert_jax.urls import Url, url

Place = Path | epath.Path | Url
SCHEMES = ("gs", "s3")

# Alike with and without TensorFlow, which epath would rather use.
os.environ.setdefault("EPATH_USE_TF", "false")
# gcsfs would ask another service, at every start, whether a bucket has real folders.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
# What it raises it also logs, with a traceback.
logging.getLogger("gcsfs").setLevel(logging.CRITICAL)

# Another process's new objects are seen at once: fsspec remembers what a folder held unless it is told not to.
for _scheme in ("gs", "gcs", "s3"):
    fsspec.config.conf.setdefault(_scheme, {}).setdefault("use_listings_cache", False)


class _InBucket(gpath.PosixGPath):
    """A path in a bucket, of which a store that does not answer, or may not, is not taken to say that nothing is there.

    fsspec's `exists` and `isdir` answer False whatever went wrong: a run would begin anew where its checkpoints lie.
    """

    def exists(self) -> bool:
        return _kind(self) is not None

    def is_dir(self) -> bool:
        return _kind(self) == "directory"

    def is_file(self) -> bool:
        return _kind(self) == "file"


def _kind(path: _InBucket) -> str | None:
    """ "file" or "directory"; None where there is neither.

    Raises:
      UserError: the store does not answer, or refuses.
    """
    try:
        return filesystem(path).info(str(path))["type"]
    except FileNotFoundError:
        return None
    except Exception as error:
        if isinstance(error, OSError) or about_files(error):
            raise UserError(f"{path}: {brief(error)}") from error
        raise


def place(path: str | Place) -> Place:
    """The place that a path names: a `pathlib.Path`, or an `epath.Path` in a bucket.

    Raises:
      UserError: it has a scheme that nothing here can read or write, or names no bucket.
    """
    if isinstance(path, _InBucket | Url):
        return path
    text = str(path)
    name = _scheme(text)
    if not name:
        return Path(text).expanduser()
    if name not in SCHEMES:
        raise UserError(
            f"{text}: {name}:// is not read or written here, unless it is text to be prepared; use gs://BUCKET/...,"
            " s3://BUCKET/... or a local path"
        )
    if not re.match(r"[a-z0-9]+://[^/]", text):
        raise UserError(f"{text}: names no bucket; write {name}://BUCKET/...")
    mend_gcsfs() if name == "gs" else mend_s3fs()
    return _InBucket(text)


def place_to_read(path: str | Place) -> Place:
    """The place that a path names, or any URL that fsspec reads: hf://datasets/ORG/NAME[@REVISION]/..., https://...

    Raises:
      UserError: as `place`, and `urls.url`.
    """
    if isinstance(path, Url):
        return path
    name = _scheme(str(path))
    return url(str(path)) if name and name not in SCHEMES else place(path)


def _scheme(text: str) -> str | None:
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://|(gs|s3):/", text)
    return (found[1] or found[2]) if found else None


def version(path: Place) -> str:
    """What changes with a file's content: the time of its last change, or what a store calls by another word."""
    if isinstance(path, Url):
        return path.stat().version
    if not is_remote(path):
        return str(path.stat().st_mtime_ns)
    info = filesystem(path).info(str(path))
    found = (info.get(key) for key in ("etag", "ETag", "generation", "mtime", "LastModified"))
    return str(next((value for value in found if value is not None), None))


def label(path: Place) -> str:
    """How a place is called whatever happens to it: absolute, and without the commit that is read of it."""
    return path.label if isinstance(path, Url) else str(absolute(path))


def absolute(path: str | Place) -> Place:
    """The same place, whatever the working directory becomes."""
    found = place(path)
    return found if is_remote(found) else found.absolute()


def resolved(path: str | Place) -> Place:
    """The same place without links; in a bucket there are none."""
    found = place(path)
    return found if is_remote(found) else found.resolve()


def files_under(folder: Place) -> list[Place]:
    """Every file in a folder and in its folders, sorted; of a bucket, by one listing."""
    if not is_remote(folder):
        return sorted(path for path in folder.rglob("*") if path.is_file())
    return sorted(folder / name for name in objects_under(folder))


def objects_under(folder: Place, maxdepth: int | None = None) -> dict[str, int]:
    """Name below a folder in a bucket -> bytes; by one listing, a request for a thousand names.

    Args:
      maxdepth: 1 for what lies right in the folder; None for all.
    """
    if isinstance(folder, Url):
        return folder.files_below()
    system, root = fsspec.core.url_to_fs(str(folder))
    root = root.rstrip("/")
    return {
        name.removeprefix(root).strip("/"): info["size"]
        for name, info in system.find(root, maxdepth=maxdepth, detail=True).items()
        # Some tools leave an empty object that stands for a folder.
        if info["type"] == "file" and not name.endswith("/") and name != root
    }


def can_rename(folder: Place) -> bool:
    """Whether a folder takes another name at once, with all that is in it; in a bucket each object would be copied."""
    return not is_remote(folder)


def filesystem(path: Place) -> fsspec.AbstractFileSystem:
    """What reads and writes a place's bucket, or the disk, through one interface; it takes `str(path)`."""
    return fsspec.filesystem(str(path).partition("://")[0] if is_remote(path) else "file")


def is_remote(path: str | Place) -> bool:
    """Whether a path names something in a bucket, or behind another URL."""
    return isinstance(path, Url) or str(path).startswith(
        tuple(f"{scheme}://" for scheme in SCHEMES)
    )
