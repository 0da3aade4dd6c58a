"""Writing so that nothing is ever half there: beside, then renamed. And JSON that is always JSON.

What a program makes takes its name when it is whole and on the disk, so that a killed program, a full disk or a power
cut leaves what was there before. Until then it has a hidden name beside its own, which the next program that makes the
same thing takes over or clears away. What belongs into a bucket is made on this machine and then uploaded, see buckets.
"""

import contextlib
import errno
import fcntl
import json
import math
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from mmbert_jax import buckets
from mmbert_jax.errors import UserError, about_files, brief
from mmbert_jax.places import Place, can_rename, files_under, is_remote, place

# --- files ---


@contextlib.contextmanager
def atomic_file(path: str | Place, mode: str = "w") -> Iterator[IO]:
    """A file that takes its name when all is written; what fails or is interrupted leaves the old one as it was.

    As with `open`, a link is followed, a file that was there keeps its permissions and a new one gets those of the
    umask; a device or a pipe is written to as it is.

    Args:
      mode: "w" for text in UTF-8, "wb" for bytes.

    Raises:
      OSError: names `path`.
    """
    path = place(path)
    encoding = None if "b" in mode else "utf-8"
    if is_remote(path):
        with tempfile.TemporaryDirectory() as folder, naming(path):
            local = Path(folder) / path.name
            with local.open(mode, encoding=encoding) as file:
                yield file
            buckets.upload(local, path)
        return
    if path.exists() and not path.is_file() and not path.is_dir():
        with naming(path), path.open(mode, encoding=encoding) as file:
            yield file
        return
    target = Path(os.path.realpath(path))
    partial = _beside(target)
    try:
        with naming(path, partial):
            with partial.open(mode, encoding=encoding) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if target.is_file():
                shutil.copymode(target, partial)
            os.replace(partial, target)
            _sync(target.parent)
    except BaseException:
        with contextlib.suppress(
            OSError
        ):  # on a disk that can only be read there is nothing to remove
            partial.unlink()
        raise


def write_text(path: str | Place, text: str) -> None:
    with atomic_file(path) as file:
        file.write(text)


def write_json(path: str | Place, value: Any) -> None:
    """Writes a value for people and programs to read; see `to_json`."""
    write_text(path, to_json(value, indent=1) + "\n")


def check_file(path: str | Place) -> None:
    """Raises a `UserError` where a file cannot be written: to be asked before the work, not after it."""
    path = place(path)
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file")
    if is_remote(path):
        return check_access(path.parent)
    parent = path.absolute().parent
    if not parent.is_dir():
        raise UserError(f"{path}: the folder {parent} does not exist")
    check_access(parent)


def write_whole(descriptor: int, data: bytes, path: Path) -> None:
    """Appends bytes to an open file, all of them or none."""
    before, left = os.fstat(descriptor).st_size, memoryview(data)
    try:
        with naming(path):
            while left:
                left = left[os.write(descriptor, left) :]
    except BaseException:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, before)
        raise


# --- folders ---


@contextlib.contextmanager
def atomic_folder(
    path: str | Place, replace: bool = False, last: str | None = None
) -> Iterator[Path]:
    """A hidden folder beside `path` that takes its name when the block ends well, and is gone otherwise.

    Every file is on the disk before that, since some disks tell only then that they are full. For a bucket it is a
    folder on this machine, uploaded when the block ends well; see `buckets.upload_folder` for what is left of an upload
    that is killed, which the same program may do again.

    Args:
      replace: takes the place of a folder that is there; the caller has seen to it that it may.
      last: name of the files without which none takes the folder for a whole one.

    Raises:
      UserError: see `check_folder`.
      OSError: names `path`.
    """
    check_folder(path, replace)
    if is_remote(place(path)):
        with hidden_folder(path) as partial:
            yield partial
            with naming(path, partial):
                buckets.upload_folder(partial, place(path), last)
        return
    target = Path(os.path.realpath(path))
    with hidden_folder(path) as partial:
        yield partial
        with naming(path, partial):
            for folder, _, names in os.walk(partial):
                for name in (*names, "."):
                    _sync(Path(folder) / name)
            _publish(partial, target)
            _sync(target.parent)


@contextlib.contextmanager
def hidden_folder(path: str | Place) -> Iterator[Path]:
    """A folder to work in, beside `path` and hidden, or for a bucket elsewhere on this machine; gone after the block.

    What killed programs have left of theirs goes first; one that is still at work holds a lock.

    Raises:
      OSError: names `path`.
    """
    if is_remote(place(path)):
        with (
            tempfile.TemporaryDirectory(prefix="mmbert-jax-") as folder,
            naming(path, Path(folder)),
        ):
            yield Path(folder)
        return
    target = Path(os.path.realpath(place(path)))
    target.parent.mkdir(parents=True, exist_ok=True)
    _clear(target)
    try:
        partial, lock = _locked_folder(target)
    except OSError as error:
        error.filename = str(path)
        raise
    try:
        with naming(path, partial):
            yield partial
    except BaseException:
        _remove_for_good(partial)
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if lock is not None:
            os.close(lock)


@contextlib.contextmanager
def folder_on_disk(path: Place) -> Iterator[Path]:
    """A folder to write into; what belongs into a bucket is added to what is there when the block ends."""
    if not is_remote(path):
        yield path
        return
    with hidden_folder(path) as folder:
        yield folder
        for file in files_under(folder):
            buckets.upload(file, path / file.relative_to(folder).as_posix())


def move_folder(path: Place, target: Place, mark: str) -> None:
    """Gives a folder another name.

    In a bucket every object is copied before any is removed, and `mark` is put into the old folder in between: one that
    bears it counts for nothing, whoever is killed in the midst of it.
    """
    if can_rename(path):
        path.rename(target)
        return
    with naming(path):
        buckets.copy_folder(path, target)
    remove_folder(path, mark)


def remove_folder(path: Place, mark: str) -> None:
    """Removes a folder; until all of it is gone there is an empty file `mark` in it, which goes last in a bucket."""
    with naming(path):
        (path / mark).write_bytes(b"")
        if can_rename(path):
            shutil.rmtree(path)
            return
        buckets.remove(file for file in files_under(path) if file.name != mark)
        (path / mark).unlink(missing_ok=True)  # a lost answer is asked for again


def check_folder(path: str | Place, replace: bool = False) -> None:
    """Raises a `UserError` where `atomic_folder` cannot make this folder: to be asked before the work, not after it."""
    path = place(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file; name a folder")
    if not (replace or is_left_of_upload(path)) and path.is_dir() and any(path.iterdir()):
        raise UserError(f"{path} is not empty: choose another output folder, or remove it first")
    if is_remote(path):
        return check_access(path)
    if os.path.ismount(os.path.realpath(path)):
        raise UserError(
            f"{path} is the root of a disk, which cannot be renamed: name a folder in it"
        )
    parent = Path(os.path.realpath(path)).parent
    while not parent.exists():
        parent = parent.parent
    check_access(parent)


def is_left_of_upload(path: Place) -> bool:
    """Whether an upload into this folder was killed; what is there may be written anew."""
    return is_remote(path) and (path / buckets.UPLOADING).exists()


def check_uploaded(path: Place) -> None:
    """Raises a `UserError` for a folder whose upload was begun and has not ended: to be asked before it is read."""
    if is_left_of_upload(path):
        raise UserError(
            f"{path}: its upload has not ended ({path / buckets.UPLOADING} is there): wait, or have it written again"
        )


def visible(folder: Place) -> list[Place]:
    """What a folder holds, sorted, without hidden files: file managers and killed programs leave such."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


# --- what belongs to both ---


@contextlib.contextmanager
def naming(path: str | Place, partial: Path | None = None) -> Iterator[None]:
    """Errors that arise within name `path`: those that name nothing, and those that name `partial`, its hidden twin.

    Raises:
      UserError: the store of an object does not answer, or refuses.
    """

    def named(text: Any) -> Any:
        return text.replace(str(partial), str(path)) if isinstance(text, str) and partial else text

    try:
        yield
    except OSError as error:
        if is_remote(path) and not (isinstance(error, FileNotFoundError) or error.filename):
            raise UserError(f"{path}: {brief(error)}") from error
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        elif error.errno is not None and named(error.filename) != error.filename:
            error.filename, error.filename2 = named(error.filename), None
        else:
            error.args = tuple(map(named, error.args))
        raise
    except UserError as error:
        error.args = tuple(map(named, error.args))
        raise
    except Exception as error:
        if is_remote(path) and about_files(error):
            raise UserError(f"{path}: {brief(error)}") from error
        raise


def try_lock(file: int | IO) -> bool | None:
    """Locks an open file or folder until it is closed, or the process ends.

    Returns:
      Whether it is locked now: False where another process holds it; None where the file system has no locks, as some
      that are shared between machines. Who gets None goes on without.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # ENOSYS, EOPNOTSUPP, ENOLCK; EBADF for a folder on NFS
        return None
    return True


def read_json(path: str | Place) -> Any:
    """The value that a JSON file holds.

    Raises:
      UserError: there is no such file, or it is damaged.
    """
    try:
        return json.loads(place(path).read_bytes())  # from bytes: a byte order mark is passed over
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except ValueError as error:  # also for bytes that are no UTF-8
        raise UserError(f"{path} is damaged: {error}") from None


def to_json(value: Any, indent: int | None = None, sort_keys: bool = False) -> str:
    """JSON in one line, or indented. What is not finite becomes null, since JSON has no other word for it.

    NumPy's numbers and arrays are taken as numbers and lists; half of a surrogate pair is escaped, so that the text is
    UTF-8 whatever was read.
    """
    text = json.dumps(
        _plain(value), indent=indent, sort_keys=sort_keys, ensure_ascii=False, allow_nan=False
    )
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def nan_for_null(value: Any) -> Any:
    """What `to_json` wrote of numbers, read back: null as nan."""
    if isinstance(value, Mapping):
        return {name: nan_for_null(x) for name, x in value.items()}
    if isinstance(value, list):
        return [nan_for_null(x) for x in value]
    return math.nan if value is None else value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(x) for name, x in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(x) for x in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _beside(path: Path) -> Path:
    """The name under which a file is written before it takes its own."""
    return path.with_name(f".{path.name}.partial")


def _locked_folder(target: Path) -> tuple[Path, int | None]:
    """A new folder beside `target`, and the descriptor that locks it, where there are locks."""
    mask = os.umask(0)
    os.umask(mask)
    while True:
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
        partial.chmod(0o777 & ~mask)  # mkdtemp's folders are for their owner alone
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(partial, os.O_RDONLY)
            locked = try_lock(lock)
            if locked is None or (locked and partial.exists()):
                return partial, lock
            os.close(lock)
        # Another program took it for abandoned before it was locked.


def _clear(target: Path) -> None:
    """Removes what killed programs have left beside `target`; puts back what one was just replacing."""
    left = [
        path
        for path in target.parent.iterdir()
        # As mkdtemp names them.
        if re.fullmatch(rf"\.{re.escape(target.name)}\.(partial|old)-[a-z0-9_]{{8}}", path.name)
    ]
    at_work = False
    for path in sorted(left, key=lambda path: ".old-" in path.name):
        if ".old-" in path.name and not at_work and not target.exists():
            path.rename(target)
            continue
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:  # its own program has just ended
            continue
        if try_lock(descriptor):
            shutil.rmtree(path, ignore_errors=True)
        else:
            at_work = True
        os.close(descriptor)


def _remove_for_good(folder: Path) -> None:
    """Removes a folder into which threads of a library that has failed may still be writing.

    They put a file into what is being emptied, and make anew what is gone; so it is removed until it stays away, for
    a few seconds. One that cannot be removed at all is left to the next program, see `_clear`.
    """
    absent = 0
    for _ in range(100):
        if not os.path.lexists(folder):
            absent += 1
            if absent == 3:
                return
        else:
            absent = 0
            shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)


def _publish(partial: Path, target: Path) -> None:
    if not (target.is_dir() and any(target.iterdir())):
        partial.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent))
    target.rename(old)
    try:
        partial.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def check_access(folder: Place) -> None:
    """Raises a `UserError` where nothing can be written into a folder; in a bucket it writes an object to see that."""
    if is_remote(folder):
        probe = folder / f".probe-{secrets.token_hex(8)}"
        with naming(folder):
            buckets.write(probe, b"")
            probe.unlink(missing_ok=True)
        return
    if not os.access(folder, os.W_OK | os.X_OK):
        read_only = os.statvfs(folder).f_flag & os.ST_RDONLY
        reason = os.strerror(errno.EROFS if read_only else errno.EACCES)
        raise UserError(f"{folder}: {reason}; choose another place")


def _sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk: what was renamed survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # File systems that cannot do this for a folder.
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
