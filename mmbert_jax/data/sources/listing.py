"""What lies below a folder, on a disk or in a bucket: without hidden names, links followed, every folder once."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from mmbert_jax.places import Place, is_remote, objects_under
from mmbert_jax.urls import Url


@dataclass(frozen=True)
class Found:
    """A file below a folder.

    Attributes:
      parts: its name below the folder.
      real: what it is wherever links have led; two names of one file have it in common.
      size: in bytes, as it is stored; 0 where a web server does not say.
      ranges: whether parts of it can be had; some web servers give none.
    """

    path: Place
    parts: tuple[str, ...]
    real: str
    size: int
    ranges: bool = True


@dataclass
class Listing:
    """The files below some folders, and what was left out."""

    files: list[Found] = field(default_factory=list)
    hidden: int = 0  # a hidden folder counts once
    special: int = 0  # pipes, sockets, devices
    broken_links: list[Place] = field(default_factory=list)
    folders_again: list[Place] = field(default_factory=list)


def list_files(folder: Place, seen: set[str]) -> Listing:
    """The files below a folder, in order of their parts.

    Args:
      seen: the folders that were listed before, as they are without links; these are added. One that is there already
        is passed over, so that a link to a folder above it comes to an end.
    """
    listing = Listing()
    if is_remote(folder):
        _list_bucket(folder, listing)
    else:
        _list_disk(Path(folder), (), listing, seen)
    return listing


def one_file(path: Place) -> Found:
    """A file that is named by itself."""
    if isinstance(path, Url):
        facts = path.stat()
        return Found(path, (path.name,), str(path), facts.length, facts.ranges)
    if is_remote(path):
        return Found(path, (path.name,), str(path), path.stat().length)
    return Found(path, (path.name,), os.path.realpath(path), path.stat().st_size)


def _list_disk(folder: Path, parts: tuple[str, ...], listing: Listing, seen: set[str]) -> None:
    real = os.path.realpath(folder)
    if real in seen:
        listing.folders_again.append(folder)
        return
    seen.add(real)
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        path, below = folder / entry.name, (*parts, entry.name)
        if entry.name.startswith("."):
            listing.hidden += 1
        elif path.is_dir():
            _list_disk(path, below, listing, seen)
        elif path.is_file():
            where = os.path.realpath(path) if entry.is_symlink() else f"{real}/{entry.name}"
            listing.files.append(Found(path, below, where, path.stat().st_size))
        elif entry.is_symlink():
            listing.broken_links.append(path)
        else:
            listing.special += 1


def _list_bucket(folder: Place, listing: Listing) -> None:
    hidden = set()
    names = objects_under(folder).items()
    for below, size in sorted((tuple(filter(None, name.split("/"))), size) for name, size in names):
        first = next((i for i, part in enumerate(below) if part.startswith(".")), None)
        if first is not None:
            hidden.add(below[: first + 1])
        else:
            path = folder.joinpath(*below)
            listing.files.append(Found(path, below, str(path), size))
    listing.hidden = len(hidden)
