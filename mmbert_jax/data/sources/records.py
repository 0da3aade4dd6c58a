"""The documents of JSONL (plain, .gz, .zst) and plain .txt files, read in chunks of bounded size."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mmbert_jax.data.sources.decompress import open_decompressed, readable
from mmbert_jax.data.sources.find import Input
from mmbert_jax.data.sources.lines import (
    BYTE_ORDER_MARK,
    decode,
    is_blank,
    parse_object,
    string_field,
)
from mmbert_jax.errors import UserError

CHUNK_BYTES = 1 << 20
# A row in memory is at least this, whatever its text: a chunk of very short lines stays small too.
LINE_OVERHEAD = 64


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
                with readable(inputs[at].path):
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
    with readable(source.path), source.path.open("rb") as raw:
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
    file = str(chunk.inputs[0].path)
    for i, record in enumerate(chunk.records):
        source = chunk.inputs[i if len(chunk.inputs) > 1 else 0]
        if source.is_text:
            assert source.language is not None
            text = decode(record, str(source.path)).removeprefix("\ufeff")
            utf8 = record.removeprefix(BYTE_ORDER_MARK)
            documents.append(Document(chunk.first_input + i, 1, source.language, text, utf8))
        elif not is_blank(record):
            number = chunk.first_line + i
            parsed = _parse_line(record, f"{file}, line {number}", fields)
            documents.append(Document(chunk.first_input, number, *parsed))
    return documents


def _parse_line(record: bytes, place: str, fields: Fields) -> tuple[str, str, bytes]:
    """(language, text, text in UTF-8)"""
    value = parse_object(record, place)
    text, utf8 = string_field(value, fields.text, "--text_field", place)
    if fields.language is not None:
        return fields.language, text, utf8
    if fields.default_language is not None and fields.language_field not in value:
        return fields.default_language, text, utf8
    language, _ = string_field(value, fields.language_field, "--language_field", place)
    if not language:
        raise UserError(f"{place}: field {fields.language_field!r} is empty; name the language")
    return language, text, utf8
