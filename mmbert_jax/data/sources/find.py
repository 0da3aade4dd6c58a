"""Which files are read: those that were named, and those in folders, each once; and what was passed over."""

import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from mmbert_jax.data.corpus import FORMAT, MANIFEST
from mmbert_jax.data.sources import parquet, tfds
from mmbert_jax.data.sources.datasets import find_mds, find_tfds
from mmbert_jax.data.sources.decompress import (
    COMPRESSION_SUFFIXES,
    buffered,
    found_compression,
    is_named_compressed,
    open_decompressed,
    readable,
)
from mmbert_jax.data.sources.inputs import Input
from mmbert_jax.data.sources.languages import check_pattern, path_language
from mmbert_jax.data.sources.lines import BYTE_ORDER_MARK
from mmbert_jax.data.sources.listing import Found, Listing, list_files, one_file
from mmbert_jax.data.sources.pieces import LEAST
from mmbert_jax.errors import UserError
from mmbert_jax.files import read_json
from mmbert_jax.places import Place, place_to_read

JSONL_SUFFIXES = (".jsonl", ".ndjson", ".json")
READABLE = "*.jsonl, *.jsonl.gz (.zst, .bz2, .xz), *.parquet, *.txt, or a folder of MDS or TFDS"
# FineWeb2 keeps beside each language what its filters took out.
_REMOVED = "_removed"
# Files that this project writes and that have the endings of text; whole folders are told by what is in them.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_ALL_COMPRESSIONS = (*COMPRESSION_SUFFIXES[1:], ".lz4", ".zip")
# Kinds, links and doubles are named up to so many.
_SHOWN = 6
# Files that are looked into at the same time, each of which waits for a store's answer.
_AT_ONCE = 32


def find_inputs(
    paths: Sequence[str | Place],
    language: str | None,
    default_language: str | None = None,
    format: str | None = None,
    language_from_path: str | None = None,
) -> tuple[list[Input], list[str]]:
    """The files that `paths`, files and folders, stand for, folders in sorted order.

    In folders names that begin with a dot are left out, links are followed, and what this project itself has written
    (corpora, runs, models, tokenisers) is passed over, and folders whose names end in `_removed`. A file is read once,
    however often and by whatever links it is reached.

    Args:
      paths: on a disk, in a bucket or behind another URL; folders are searched through; the first folder below them is
        a text file's language.
      language: the language of everything; folders' names then say nothing.
      default_language: the language of a text file that is in no such folder.
      format: the one of FORMATS that is read, of folders; a file that is named is read as that, whatever its name.
      language_from_path: where in a path its language stands, see `path_language`.

    Returns:
      The inputs, and lines for the user that say what was passed over.

    Raises:
      UserError: a path that does not exist, a file of another kind, a folder with nothing to read, a text file
        whose language is not known.
    """
    if language_from_path is not None:
        check_pattern(language_from_path)
    inputs: list[Input] = []
    notes: list[str] = []
    seen: set[str] = set()
    first_names: dict[str, Place] = {}
    again: list[str] = []
    for path in map(place_to_read, paths):
        if path.is_dir():
            listing = list_files(path, seen)
            found, kinds, said = _select(path, listing, format)
            notes += said
            again += [f"{folder} is reached twice, read once" for folder in listing.folders_again]
            if not found and not listing.folders_again:
                passed_over = f"; passed over: {_counts(kinds)}" if kinds else ""
                raise UserError(
                    f"{path}: nothing to read in this folder; expected {READABLE}{passed_over}"
                )
            if kinds:
                notes.append(f"passed over in {path}: {_counts(kinds)}")
            notes += _some([f"{link}: broken link, passed over" for link in listing.broken_links])
            in_folder = True
        else:
            found, in_folder = [_named(path, format)], False
        for file, sources in found:
            first = first_names.setdefault(file.real, file.path)
            if first is file.path:
                for source in sources:
                    if language is None and language_from_path is not None:
                        known = path_language(language_from_path, file.path)
                    else:
                        known = _language(file, source, in_folder, language, default_language)
                    inputs.append(replace(source, language=known))
            elif str(first) == str(file.path):
                again.append(f"{first} is named twice, read once")
            else:
                again.append(f"{file.path} is the same file as {first}, read once")
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        inputs = list(pool.map(_looked_into, inputs))
    return inputs, notes + _some(again)


def _looked_into(source: Input) -> Input:
    """The same input, with what its first bytes say of how it can be read.

    It is asked only of what would be cut at its lines otherwise, since that takes a request each: a small file is read
    from its beginning in any case, and so is one that is named as compressed.
    """
    if source.format != "jsonl" or source.sequential:
        return source
    if is_named_compressed(source.path):
        return replace(source, sequential=True)
    if source.size < LEAST:
        return source
    with readable(source.path), source.path.open("rb") as raw:
        return replace(source, sequential=found_compression(source.path, buffered(raw)) is not None)


def _named(path: Place, format: str | None) -> tuple[Found, list[Input]]:
    """A path that is no folder."""
    if not path.is_file():
        if path.exists():
            raise UserError(
                f"{path}: neither a file nor a folder; write what comes out of it to a file, it may be read twice"
            )
        if isinstance(path, Path) and path.is_symlink():
            raise UserError(f"{path}: broken link: there is no {os.readlink(path)}")
        raise UserError(f"{path}: no such file or folder")
    found = one_file(path)
    if format in ("mds", "tfds") or path.name.endswith((".mds", ".mds.zstd")):
        raise UserError(f"{path}: name the folder of the data set, not a file of it")
    kind = format or _format(path) or _format_within(path)
    if kind is None:
        raise UserError(f"{path}: cannot be read; expected {READABLE}; --format insists")
    if kind == "parquet" and not found.ranges:
        raise UserError(
            f"{path}: Parquet is read in parts, which this server does not give; download the file"
        )
    return found, [Input(path, kind, size=found.size, sequential=not found.ranges)]


def _format(path: Place) -> str | None:
    """Of a file by its name."""
    if any(path.name.endswith(a + b) for a in JSONL_SUFFIXES for b in COMPRESSION_SUFFIXES):
        return "jsonl"
    if any(path.name.endswith(".txt" + suffix) for suffix in COMPRESSION_SUFFIXES):
        return "text"
    return "parquet" if path.suffix == ".parquet" else None


def _format_within(path: Place) -> str | None:
    """Of a file by how it begins."""
    with readable(path), path.open("rb") as raw:
        stream = buffered(raw)
        if stream.peek(len(parquet.MAGIC)).startswith(parquet.MAGIC):
            return "parquet"
        head = open_decompressed(path, stream).read(1 << 10).removeprefix(BYTE_ORDER_MARK)
        return "jsonl" if head.lstrip()[:1] == b"{" else None


def _language(
    file: Found, source: Input, in_folder: bool, language: str | None, default: str | None
) -> str | None:
    if source.format != "text":
        return language
    folder = file.parts[0] if in_folder and len(file.parts) > 1 else default
    language = language or folder
    if language is None:
        raise UserError(
            f"{file.path}: language not known; put it in a folder named after its language and give the folder above, "
            "or name the language with --language"
        )
    return language


def _select(
    folder: Place, listing: Listing, format: str | None
) -> tuple[list[tuple[Found, list[Input]]], Counter[str], list[str]]:
    """The files to read of a folder, how many there are of each kind that is not, and lines for the user."""
    kinds: Counter[str] = Counter()
    own = _own_folders(folder, listing.files)
    if () in own:
        raise UserError(f"{folder}: is {own[()]}, no text; name files or folders with text")
    passed_by, removed, files = set(), set(), []
    for file in listing.files:
        above = [file.parts[:i] for i in range(len(file.parts))]
        inside = next((parts for parts in above if parts in own), None)
        gone = next((parts for parts in above if parts and parts[-1].endswith(_REMOVED)), None)
        if inside:
            passed_by.add("/".join(inside))
        elif gone:
            removed.add("/".join(gone))
        elif file.path.name in _TOKENIZER_FILES:
            passed_by.add("/".join(file.parts))
        else:
            files.append(file)
    shards, notes = find_mds(files)
    data_sets, said = find_tfds(files)
    found = []
    for file in files:
        here = file.parts[:-1]
        if file.parts in shards:
            shard = shards[file.parts]
            sources = [shard] if shard else []
        elif here in data_sets:
            sources = data_sets[here] if file.parts[-1] == tfds.INFO else []
        else:
            kind = _format(file.path)
            sources = [Input(file.path, kind, size=file.size)] if kind else []
            if not kind:
                kinds[_kind(file.path)] += 1
        if sources and format not in (None, sources[0].format):
            kinds[f"of {sources[0].format}"] += 1
        elif sources:
            found.append((file, sources))
    for what, names in (
        ("of this program's own", passed_by),
        ("folders of what was removed", removed),
    ):
        if names:
            shown = ", ".join(sorted(names)[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
            kinds[f"{what} ({shown})"] = len(names)
    kinds["hidden"] = listing.hidden
    kinds["pipes or devices"] = listing.special
    return found, +kinds, [*notes, *said]


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
