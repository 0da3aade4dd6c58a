"""Which files are read: those that were named, and those in folders, each once; and what was passed over."""

import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmbert_jax.data.corpus import FORMAT, MANIFEST
from mmbert_jax.data.sources.decompress import COMPRESSION_SUFFIXES
from mmbert_jax.data.sources.listing import Found, Listing, list_files, one_file
from mmbert_jax.errors import UserError
from mmbert_jax.files import read_json
from mmbert_jax.places import Place, place

JSONL_SUFFIXES = (".jsonl", ".ndjson", ".json")
READABLE = "*.jsonl, *.jsonl.gz, *.jsonl.zst or *.txt"
# Files that this project writes and that have the endings of text; whole folders are told by what is in them.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_ALL_COMPRESSIONS = (".gz", ".zst", ".zstd", ".bz2", ".xz", ".lz4", ".zip")
# Kinds, links and doubles are named up to so many.
_SHOWN = 6


@dataclass(frozen=True)
class Input:
    """One input file. A text file is one document; its language is the name of its folder."""

    path: Place
    is_text: bool
    language: str | None = None
    size: int = 0  # in bytes, as it is stored


def find_inputs(
    paths: Sequence[str | Place], language: str | None, default_language: str | None = None
) -> tuple[list[Input], list[str]]:
    """The files that `paths`, files and folders, stand for, folders in sorted order.

    In folders names that begin with a dot are left out, links are followed, and what this project itself has written
    (corpora, runs, models, tokenisers) is passed over. A file is read once, however often and by whatever links it is
    reached.

    Args:
      paths: on a disk or in a bucket; folders are searched through; the first folder below them is a text file's
        language.
      language: the language of everything; folders' names then say nothing.
      default_language: the language of a text file that is in no such folder.

    Returns:
      The inputs, and lines for the user that say what was passed over.

    Raises:
      UserError: a path that does not exist, a file of another kind, a folder with nothing to read, a text file
        whose language is not known.
    """
    inputs: list[Input] = []
    notes: list[str] = []
    seen: set[str] = set()
    first_names: dict[str, Place] = {}
    again: list[str] = []
    for path in map(place, paths):
        if path.is_dir():
            listing = list_files(path, seen)
            found, kinds = _select(path, listing)
            again += [f"{folder} is reached twice, read once" for folder in listing.folders_again]
            if not found and not listing.folders_again:
                passed_over = f"; passed over: {_counts(kinds)}" if kinds else ""
                raise UserError(
                    f"{path}: nothing to read in this folder; expected {READABLE}{passed_over}"
                )
            if kinds:
                notes.append(f"passed over in {path}: {_counts(kinds)}")
            notes += _some([f"{link}: broken link, passed over" for link in listing.broken_links])
            below: Place | None = path
        else:
            found, below = [_named(path)], None
        for file in found:
            first = first_names.setdefault(file.real, file.path)
            if first is file.path:
                inputs.append(_input(file, below is not None, language, default_language))
            elif str(first) == str(file.path):
                again.append(f"{first} is named twice, read once")
            else:
                again.append(f"{file.path} is the same file as {first}, read once")
    return inputs, notes + _some(again)


def _named(path: Place) -> Found:
    """A path that is no folder."""
    if not path.is_file():
        if path.exists():
            raise UserError(
                f"{path}: neither a file nor a folder; write what comes out of it to a file, it may be read twice"
            )
        if isinstance(path, Path) and path.is_symlink():
            raise UserError(f"{path}: broken link: there is no {os.readlink(path)}")
        raise UserError(f"{path}: no such file or folder")
    if not _is_readable(path):
        raise UserError(f"{path}: cannot be read; expected {READABLE}")
    return one_file(path)


def _is_jsonl(path: Place) -> bool:
    return any(path.name.endswith(a + b) for a in JSONL_SUFFIXES for b in COMPRESSION_SUFFIXES)


def _is_readable(path: Place) -> bool:
    return _is_jsonl(path) or path.suffix == ".txt"


def _input(file: Found, in_folder: bool, language: str | None, default: str | None) -> Input:
    if _is_jsonl(file.path):
        return Input(file.path, is_text=False, size=file.size)
    folder = file.parts[0] if in_folder and len(file.parts) > 1 else default
    language = language or folder
    if language is None:
        raise UserError(
            f"{file.path}: language not known; put it in a folder named after its language and give the folder above, "
            "or name the language with --language"
        )
    return Input(file.path, is_text=True, language=language, size=file.size)


def _select(folder: Place, listing: Listing) -> tuple[list[Found], Counter[str]]:
    """The files to read of a folder, and how many there are of each kind that is not."""
    kinds: Counter[str] = Counter()
    own = _own_folders(folder, listing.files)
    if () in own:
        raise UserError(f"{folder}: is {own[()]}, no text; name files or folders with text")
    found, passed_by = [], set()
    for file in listing.files:
        inside = next(
            (file.parts[:i] for i in range(len(file.parts)) if file.parts[:i] in own), None
        )
        if inside:
            passed_by.add("/".join(inside))
        elif file.path.name in _TOKENIZER_FILES:
            passed_by.add("/".join(file.parts))
        elif _is_readable(file.path):
            found.append(file)
        else:
            kinds[_kind(file.path)] += 1
    if passed_by:
        names = sorted(passed_by)
        shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
        kinds[f"of this program's own ({shown})"] = len(names)
    kinds["hidden"] = listing.hidden
    kinds["pipes or devices"] = listing.special
    return found, +kinds


def _own_folders(folder: Place, files: Sequence[Found]) -> dict[tuple[str, ...], str]:
    """The folders that this project has written, by their parts, and what they are."""
    names: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for file in files:
        names[file.parts[:-1]].add(file.parts[-1])
    above = {parts[:i] for parts in names for i in range(len(parts) + 1)}
    own = {}
    for parts, here in names.items():
        if MANIFEST in here and _is_manifest(folder.joinpath(*parts, MANIFEST)):
            own[parts] = "a corpus"
        elif "config.json" in here and (
            (*parts, "checkpoints") in above or "metrics.jsonl" in here
        ):
            own[parts] = "a run"
        elif "config.json" in here and any(name.endswith(".safetensors") for name in here):
            own[parts] = "a model"
    return own


def _is_manifest(path: Place) -> bool:
    try:
        manifest = read_json(path)
    except UserError:
        return False
    return isinstance(manifest, Mapping) and manifest.get("format") == FORMAT


def _kind(path: Place) -> str:
    """The ending of a file's name, with a compression's before it."""
    endings = path.suffixes[-2:] if path.suffix.lower() in _ALL_COMPRESSIONS else [path.suffix]
    return f"*{''.join(endings)}" if path.suffix else "without an ending"


def _counts(kinds: Counter[str]) -> str:
    shown = kinds.most_common(_SHOWN)
    rest = kinds.total() - sum(count for _, count in shown)
    return ", ".join(
        [f"{count} {kind}" for kind, count in shown] + ([f"{rest} more"] if rest else [])
    )


def _some(lines: list[str]) -> list[str]:
    left = len(lines) - _SHOWN
    return lines if left <= 0 else [*lines[:_SHOWN], f"and {left} more of that kind"]
