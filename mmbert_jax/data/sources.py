"""Text on disk: JSONL (plain, .gz, .zst) and folders of plain .txt files, read in chunks of bounded size."""

import gzip
import io
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import zstandard

from mmbert_jax.errors import UserError

JSONL_SUFFIXES = (".jsonl", ".ndjson", ".json")
COMPRESSION_SUFFIXES = ("", ".gz", ".zst")
READABLE = "*.jsonl, *.jsonl.gz, *.jsonl.zst or *.txt"
CHUNK_BYTES = 1 << 20
# A row in memory is at least this, whatever its text: a chunk of very short lines stays small too.
LINE_OVERHEAD = 64


@dataclass(frozen=True)
class Input:
    """One input file. A text file is one document; its language is the name of its folder."""

    path: Path
    is_text: bool
    language: str | None = None


@dataclass(frozen=True)
class Fields:
    """Which fields of a JSONL record hold its text and its language."""

    text: str = "text"
    language_field: str = "language"
    language: str | None = None  # of all records, whatever they say
    default_language: str | None = None  # of records that do not say


@dataclass(frozen=True)
class Chunk:
    """Some lines of a JSONL file, or some whole text files; small enough to send to a worker process."""

    first_input: int
    inputs: tuple[Input, ...]  # one for lines of a JSONL file, one per record for text files
    first_line: int  # number, from 1, of the first record in its file
    records: tuple[bytes, ...]
    bytes_read: int  # of the files as they are on disk


class Document(NamedTuple):  # a third of a frozen dataclass's time to make, and there are many
    input_index: int
    number: int  # of the line in its file, from 1
    language: str
    text: str
    utf8: bytes  # the text again


def find_inputs(
    paths: Sequence[str | Path], language: str | None, default_language: str | None = None
) -> tuple[list[Input], int]:
    """The files that `paths`, files and folders, stand for, folders in sorted order.

    Args:
      paths: folders are searched through; the first folder below them is a text file's language.
      language: the language of everything; folders' names then say nothing.
      default_language: the language of a text file that is in no such folder.

    Returns:
      The inputs, and how many files in folders were passed over because of their names.

    Raises:
      UserError: a path that does not exist, a file of another kind, a folder with nothing to read, a text file
        whose language is not known.
    """
    inputs: list[Input] = []
    passed_over = 0
    for path in map(Path, paths):
        if path.is_file():
            if not (_is_jsonl(path) or path.suffix == ".txt"):
                raise UserError(f"{path}: cannot be read; expected {READABLE}")
            inputs.append(_input(path, path.parent, language, default_language))
        elif path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.is_file())
            found = [p for p in files if _is_jsonl(p) or p.suffix == ".txt"]
            if not found:
                raise UserError(f"{path}: nothing to read in this folder; expected {READABLE}")
            inputs += [_input(p, path, language, default_language) for p in found]
            passed_over += len(files) - len(found)
        else:
            raise UserError(f"{path}: no such file or folder")
    return inputs, passed_over


def _is_jsonl(path: Path) -> bool:
    return any(path.name.endswith(a + b) for a in JSONL_SUFFIXES for b in COMPRESSION_SUFFIXES)


def _input(path: Path, folder: Path, language: str | None, default: str | None) -> Input:
    if _is_jsonl(path):
        return Input(path, is_text=False)
    parts = path.relative_to(folder).parts
    language = language or (parts[0] if len(parts) > 1 else default)
    if language is None:
        raise UserError(
            f"{path}: language not known; put it in a folder named after its language and give the folder above, "
            "or name the language with --language"
        )
    return Input(path, is_text=True, language=language)


def read_chunks(inputs: Sequence[Input]) -> Iterator[Chunk]:
    """All records in order. A chunk holds about CHUNK_BYTES, or one record if that is longer.

    Raises:
      UserError: a file that cannot be read or decompressed.
    """
    at = 0
    while at < len(inputs):
        if inputs[at].is_text:
            first, records, size = at, [], 0
            while at < len(inputs) and inputs[at].is_text and (not records or size < CHUNK_BYTES):
                with _readable(inputs[at].path):
                    records.append(inputs[at].path.read_bytes())
                size += len(records[-1]) + LINE_OVERHEAD
                at += 1
            yield Chunk(first, tuple(inputs[first:at]), 1, tuple(records), sum(map(len, records)))
        else:
            yield from _read_jsonl(at, inputs[at])
            at += 1


def _read_jsonl(index: int, source: Input) -> Iterator[Chunk]:
    records: list[bytes] = []
    size, first_line, read_before = 0, 1, 0
    with _readable(source.path), source.path.open("rb") as raw:
        stream = open_decompressed(source.path, raw)
        for line in stream:
            records.append(line)
            size += len(line) + LINE_OVERHEAD
            if size >= CHUNK_BYTES:
                read = raw.tell()
                yield Chunk(index, (source,), first_line, tuple(records), read - read_before)
                first_line += len(records)
                records, size, read_before = [], 0, read
        if records:
            yield Chunk(index, (source,), first_line, tuple(records), raw.tell() - read_before)


def open_decompressed(path: Path, raw: BinaryIO) -> BinaryIO:
    """The content of an open file, decompressed as its name says; `raw` keeps the position in the file on disk."""
    # gzip takes it for a file of no text, but the shortest compressed file has a header.
    if path.suffix in COMPRESSION_SUFFIXES[1:] and not os.fstat(raw.fileno()).st_size:
        raise EOFError("the file is empty")
    if path.suffix == ".gz":
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), 1 << 17)
    if path.suffix == ".zst":
        return io.BufferedReader(_ZstdReader(raw), 1 << 17)
    return raw


class _ZstdReader(io.RawIOBase):
    """zstd frames one after another, as parallel compressors and `cat` leave them.

    zstandard's own stream reader takes the end of a truncated file for the end of the text.
    """

    def __init__(self, raw: BinaryIO):
        self._raw = raw
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._pending = b""  # compressed, behind the end of a frame
        self._text = memoryview(b"")
        self._within_frame = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._text:
            compressed = self._pending or self._raw.read(1 << 17)
            self._pending = b""
            if not compressed:
                if self._within_frame:
                    raise EOFError("the compressed data end within a frame")
                return 0
            self._text = memoryview(self._frame.decompress(compressed))
            self._within_frame = not self._frame.eof
            if self._frame.eof:
                self._pending = self._frame.unused_data
                self._frame = zstandard.ZstdDecompressor().decompressobj()
        n = min(len(buffer), len(self._text))
        buffer[:n] = self._text[:n]
        self._text = self._text[n:]
        return n


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise UserError(
            f"{path}: damaged or not compressed as its name says ({error}); copy or compress it again"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def count_languages(inputs: Sequence[Input], fields: Fields) -> Counter[str]:
    """Language -> its documents; reads everything once."""
    return Counter(
        document.language
        for chunk in read_chunks(inputs)
        for document in parse_chunk(chunk, fields)
    )


def parse_chunk(chunk: Chunk, fields: Fields) -> list[Document]:
    """The documents of a chunk; blank lines of a JSONL file are none.

    Raises:
      UserError: invalid UTF-8 or JSON, a missing field, a text or language that is no string, or no valid Unicode;
        the message names the file and the line.
    """
    documents = []
    for i, record in enumerate(chunk.records):
        source = chunk.inputs[i if len(chunk.inputs) > 1 else 0]
        if source.is_text:
            assert source.language is not None
            text = _decode(record, str(source.path))
            documents.append(Document(chunk.first_input + i, 1, source.language, text, record))
        elif not record.isspace():
            number = chunk.first_line + i
            parsed = _parse_line(record, f"{source.path}, line {number}", fields)
            documents.append(Document(chunk.first_input, number, *parsed))
    return documents


def _decode(record: bytes, place: str) -> str:
    try:
        return record.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{place}: invalid UTF-8 at byte {error.start}; convert the file to UTF-8 or remove the text"
        ) from None


def _parse_line(record: bytes, place: str, fields: Fields) -> tuple[str, str, bytes]:
    """(language, text, text in UTF-8)"""
    line = _decode(record, place)
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:  # ValueError also for numbers of absurd length
        raise UserError(
            f"{place}: invalid JSON ({error}); every line has to be one JSON object"
        ) from None
    if not isinstance(value, dict):
        raise UserError(
            f"{place}: a JSON {type(value).__name__} where one JSON object a line is expected"
        )
    text, utf8 = _string(value, fields.text, "--text_field", place)
    if fields.language is not None:
        return fields.language, text, utf8
    if fields.default_language is not None and fields.language_field not in value:
        return fields.default_language, text, utf8
    language, _ = _string(value, fields.language_field, "--language_field", place)
    if not language:
        raise UserError(f"{place}: field {fields.language_field!r} is empty; name the language")
    return language, text, utf8


def _string(value: dict, field: str, option: str, place: str) -> tuple[str, bytes]:
    if field not in value:
        raise UserError(
            f"{place}: no field {field!r}, only {', '.join(map(repr, value))}; name the right one with {option}"
        )
    text = value[field]
    if not isinstance(text, str):
        raise UserError(
            f"{place}: field {field!r} is a {type(text).__name__} where a string is expected; "
            f"name another one with {option} or remove the record"
        )
    try:
        return text, text.encode("utf-8")
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair
        raise UserError(
            f"{place}: field {field!r} holds half a surrogate pair, which is not valid Unicode; remove it"
        ) from None
