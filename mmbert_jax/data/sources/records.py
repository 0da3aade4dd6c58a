"""The documents of a piece of the inputs, in batches of bounded size."""

import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from mmbert_jax.data.sources.decompress import open_decompressed, readable
from mmbert_jax.data.sources.find import Input
from mmbert_jax.data.sources.lines import (
    BYTE_ORDER_MARK,
    decode,
    is_blank,
    parse_object,
    string_field,
)
from mmbert_jax.data.sources.pieces import Slice, whole
from mmbert_jax.errors import UserError

BATCH_BYTES = 1 << 20
# A row in memory is at least this, whatever its text: a batch of very short lines stays small too.
LINE_OVERHEAD = 64


@dataclass(frozen=True)
class Fields:
    """Which fields of a JSONL record hold its text and its language."""

    text: str = "text"
    language_field: str = "language"
    language: str | None = None  # of all records, whatever they say
    default_language: str | None = None  # of records that do not say


class Document(NamedTuple):  # a third of a frozen dataclass's time to make, and there are many
    input_index: int
    number: int  # of the record in its file, or in its slice where that is not counted, from 1
    language: str
    text: str
    utf8: bytes  # the text again


class Batch(NamedTuple):
    """Some documents of one slice, in order."""

    documents: list[Document]
    records: int  # of the slice up to here, those that are no documents included
    bytes_read: int  # of the input as it is stored


def read_documents(inputs: Sequence[Input], fields: Fields) -> Iterator[Batch]:
    """All documents, in this process, in order.

    Raises:
      UserError: see `read_slice`.
    """
    for index, source in enumerate(inputs):
        yield from read_slice(whole(index, source), fields)


def count_languages(inputs: Sequence[Input], fields: Fields) -> Counter[str]:
    """Language -> its documents; reads everything once."""
    return Counter(
        document.language
        for batch in read_documents(inputs, fields)
        for document in batch.documents
    )


def read_slice(part: Slice, fields: Fields) -> Iterator[Batch]:
    """The documents of a slice. A batch has about BATCH_BYTES, or one record if that is longer.

    Raises:
      UserError: a file that cannot be read or decompressed; invalid UTF-8 or JSON, a missing field, a text or language
        that is no string, or no valid Unicode; the message names the file and the line.
    """
    if part.source.is_text:
        return _read_text(part)
    return _read_jsonl(part, fields)


def _read_text(part: Slice) -> Iterator[Batch]:
    source = part.source
    with readable(source.path):
        data = source.path.read_bytes()
    assert source.language is not None
    text = decode(data, str(source.path)).removeprefix("\ufeff")
    utf8 = data.removeprefix(BYTE_ORDER_MARK)
    yield Batch([Document(part.input_index, 1, source.language, text, utf8)], 1, len(data))


def _read_jsonl(part: Slice, fields: Fields) -> Iterator[Batch]:
    """Blank lines are no documents, but count as lines."""
    path = part.source.path
    number, at = 0, 0
    with readable(path), path.open("rb") as raw:
        for lines, n, read in _batches(part, raw):
            documents = []
            for i, line in enumerate(lines, number + 1):
                if not is_blank(line):
                    where = _Line(part, i)
                    documents.append(Document(part.input_index, i, *_parse(line, where, fields)))
            number += n
            read, at = max(read - at, 0), max(read, at)
            yield Batch(documents, number, read // part.stripes)


def _batches(part: Slice, raw: BinaryIO) -> Iterator[tuple[list[bytes], int, int]]:
    """(the lines to read of a batch, how many lines it has, how far the file is read)"""
    if part.stop - part.start < part.source.size:
        for lines in _gather(_lines_beginning_in(raw, part.start, part.stop)):
            yield lines, len(lines), min(raw.tell(), part.stop) - part.start
        return
    for i, lines in enumerate(_gather(open_decompressed(part.source.path, raw))):
        yield lines if i % part.stripes == part.stripe else [], len(lines), raw.tell()


def _lines_beginning_in(raw: BinaryIO, start: int, stop: int) -> Iterator[bytes]:
    """The lines of an open file of which the first byte is one of these."""
    stream = raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(raw, 1 << 20)
    at = max(start - 1, 0)
    stream.seek(at)
    if start:
        at += len(stream.readline())  # to the end of the line that begins before
    while at < stop and (line := stream.readline()):
        at += len(line)
        yield line


def _gather(stream: Iterable[bytes]) -> Iterator[list[bytes]]:
    lines, size = [], 0
    for line in stream:
        lines.append(line)
        size += len(line) + LINE_OVERHEAD
        if size >= BATCH_BYTES:
            yield lines
            lines, size = [], 0
    if lines:
        yield lines


class _Line(NamedTuple):
    """The place of a line, to be spelled out when somebody has to be told of it."""

    part: Slice
    number: int

    def __str__(self) -> str:
        before = 0 if self.part.is_counted else _lines_before(self.part)
        return f"{self.part.source.path}, line {before + self.number}"

    def __format__(self, _: str) -> str:
        return str(self)


def record_place(part: Slice, number: int) -> str:
    """Where in the inputs the record stands that a document of this slice has the number of."""
    return str(_Line(part, number))


def _lines_before(part: Slice) -> int:
    """How many lines begin before a slice of a plain file."""
    lines, left = (
        0,
        part.start - 1,
    )  # a line that begins at `start` has its predecessor's end before it
    with readable(part.source.path), part.source.path.open("rb") as file:
        while left > 0 and (data := file.read(min(left, BATCH_BYTES))):
            lines += data.count(b"\n")
            left -= len(data)
    return lines + 1


def _parse(line: bytes, where: _Line, fields: Fields) -> tuple[str, str, bytes]:
    """(language, text, text in UTF-8)"""
    value = parse_object(line, where)
    text, utf8 = string_field(value, fields.text, "--text_field", where)
    if fields.language is not None:
        return fields.language, text, utf8
    if fields.default_language is not None and fields.language_field not in value:
        return fields.default_language, text, utf8
    language, _ = string_field(value, fields.language_field, "--language_field", where)
    if not language:
        raise UserError(f"{where}: field {fields.language_field!r} is empty; name the language")
    return language, text, utf8
