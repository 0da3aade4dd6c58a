"""The documents of a piece of the inputs, in batches of bounded size."""

import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from mmbert_jax.data.sources.decompress import open_decompressed, readable
from mmbert_jax.data.sources.faults import Faults, RecordError
from mmbert_jax.data.sources.inputs import Input
from mmbert_jax.data.sources.lines import (
    BYTE_ORDER_MARK,
    decode,
    has_field,
    is_blank,
    parse_object,
    string_field,
)
from mmbert_jax.data.sources.other_tokens import INDICES, OtherTokenizer, texts_of_row
from mmbert_jax.data.sources.pieces import Slice, whole
from mmbert_jax.data.sources.rows import column_names, ids_of, read_rows, read_tokens
from mmbert_jax.errors import UserError

BATCH_BYTES = 1 << 20
# What is longer is no line of JSONL, but a file of another kind, or one that was made to fill the memory.
LONGEST_LINE = 1 << 28
_RECORD = {"jsonl": "line", "text": "line", "parquet": "row", "mds": "sample", "tfds": "record"}
# A row in memory is at least this, whatever its text: a batch of very short lines stays small too.
LINE_OVERHEAD = 64


@dataclass(frozen=True)
class Fields:
    """Which fields of a record hold its text and its language; dots in their names reach into objects.

    Attributes:
      language_field: or two with a comma between: language,language_script makes deu_Latn.
      tokens: of MDS without the text field: token ids, in rows that documents were cut into.
      ends: BOS and EOS of such rows; None where tokens are of no use.
      skip_faults: whether records that cannot be read are counted and passed over; or the first one is an error.
    """

    text: str = "text"
    language_field: str = "language"
    language: str | None = None  # of all records, whatever they say
    default_language: str | None = None  # of records that do not say
    tokens: str = "input_ids"
    ends: tuple[int, int] | None = None
    skip_faults: bool = False

    @property
    def language_fields(self) -> list[str]:
        return self.language_field.split(",")


class Document(NamedTuple):  # a third of a frozen dataclass's time to make, and there are many
    input_index: int
    number: int  # of the record in its file, or in its slice where that is not counted, from 1
    language: str
    text: str  # "" where there are tokens
    utf8: bytes  # the text again; of tokens their bytes
    tokens: np.ndarray | None = (
        None  # uint32 [n], without BOS and EOS; of what was tokenised before
    )


class Batch(NamedTuple):
    """Some documents of one slice, in order."""

    documents: list[Document]
    records: int  # of the slice up to here, those that are no documents included
    bytes_read: int  # of the input as it is stored
    faults: Faults  # of records that were passed over since the batch before


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


def read_slice(
    part: Slice, fields: Fields, tokens_of: OtherTokenizer | None = None
) -> Iterator[Batch]:
    """The documents of a slice. A batch has about BATCH_BYTES, or one record if that is longer.

    Args:
      tokens_of: what made the tokens of MDS, of which the texts are then read; its slices are `several`.

    Raises:
      UserError: a file that cannot be read or decompressed; invalid UTF-8 or JSON, a missing field, a text or language
        that is no string, or no valid Unicode; the message names the file and the line. What is wrong with a record
        alone, not with its file, is passed over where `fields` say so.
    """
    if part.source.format == "text":
        return _read_text(part, fields)
    if part.source.format == "jsonl":
        return _read_jsonl(part, fields)
    return _read_table(part, fields, tokens_of)


def _read_text(part: Slice, fields: Fields) -> Iterator[Batch]:
    source, faults = part.source, Faults()
    with readable(source.path), source.path.open("rb") as raw:
        data = open_decompressed(source.path, raw).read(LONGEST_LINE + 1)
        if len(data) > LONGEST_LINE:
            raise UserError(
                f"{source.path}: over {LONGEST_LINE:,} bytes of text; cut it into documents"
            )
        bytes_read = raw.tell()
    assert source.language is not None
    documents = []
    with _passing_over(faults, fields):
        text = decode(data, source.path).removeprefix("\ufeff")
        utf8 = data.removeprefix(BYTE_ORDER_MARK)
        documents.append(Document(part.input_index, 1, source.language, text, utf8))
    yield Batch(documents, 1, bytes_read, faults)


class _passing_over:
    """Counts a RecordError that arises within, where it is to be passed over. No generator: many enter it."""

    __slots__ = ("faults", "skip")

    def __init__(self, faults: Faults, fields: Fields):
        self.faults, self.skip = faults, fields.skip_faults

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: object, traceback: object) -> bool:
        if self.skip and isinstance(error, RecordError):
            self.faults.add(error)
            return True
        return False


def _read_jsonl(part: Slice, fields: Fields) -> Iterator[Batch]:
    """Blank lines are no documents, but count as lines."""
    path = part.source.path
    number, at = 0, 0
    with readable(path), path.open("rb") as raw:
        for lines, n, read in _batches(part, raw):
            documents, faults = [], Faults()
            passing_over = _passing_over(faults, fields)
            for i, line in enumerate(lines, number + 1):
                if is_blank(line):
                    continue
                where = _Line(part, i)
                with passing_over:
                    parsed = _parse(parse_object(line, where), where, fields)
                    documents.append(Document(part.input_index, i, *parsed))
            number += n
            read, at = max(read - at, 0), max(read, at)
            yield Batch(documents, number, read // part.stripes, faults)


def _batches(part: Slice, raw: BinaryIO) -> Iterator[tuple[list[bytes], int, int]]:
    """(the lines to read of a batch, how many lines it has, how far the file is read)"""
    if part.stop - part.start < part.source.size:
        for lines in _gather_lines(part, _lines_beginning_in(raw, part.start, part.stop)):
            yield lines, len(lines), min(raw.tell(), part.stop) - part.start
        return
    stream = open_decompressed(part.source.path, raw)
    every_line = iter(partial(stream.readline, LONGEST_LINE), b"")
    for i, lines in enumerate(_gather_lines(part, every_line)):
        yield lines if i % part.stripes == part.stripe else [], len(lines), raw.tell()


def _lines_beginning_in(raw: BinaryIO, start: int, stop: int) -> Iterator[bytes]:
    """The lines of an open file of which the first byte is one of these."""
    stream = raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(raw, 1 << 20)
    at = max(start - 1, 0)
    stream.seek(at)
    before = start > 0
    while before and (line := stream.readline(LONGEST_LINE)):
        at += len(line)  # to the end of the line that begins before
        before = not line.endswith(b"\n")
    while at < stop and (line := stream.readline(LONGEST_LINE)):
        at += len(line)
        yield line


def _gather_lines(part: Slice, lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Batches of lines, none of which is cut off at LONGEST_LINE."""
    number = 0
    for batch in _gather(lines):
        number += len(batch)
        if len(batch[-1]) == LONGEST_LINE:  # it fills a batch, so that it is the last one
            where = _Line(part, number)
            raise UserError(
                f"{where}: longer than {LONGEST_LINE:,} bytes; is this one JSON object a line?"
            )
        yield batch


def _gather[T](stream: Iterable[T], length: Callable[[T], int] = len) -> Iterator[list[T]]:
    lines, size = [], 0
    for line in stream:
        lines.append(line)
        size += length(line) + LINE_OVERHEAD
        if size >= BATCH_BYTES:
            yield lines
            lines, size = [], 0
    if lines:
        yield lines


def _read_table(part: Slice, fields: Fields, tokens_of: OtherTokenizer | None) -> Iterator[Batch]:
    """The documents of what has rows."""
    source = part.source
    names, faults = column_names(source), Faults()
    if source.format == "mds" and tokens_of is not None:
        documents = _of_other_tokens(part, names, fields, tokens_of, faults)
    elif source.format == "mds" and fields.text not in names and fields.tokens in names:
        documents = _of_tokens(part, fields)
    else:
        _check_columns(source, names, fields)
        documents = _of_rows(part, fields, faults)
    number = 0
    for batch in _gather(documents, lambda document: len(document.utf8)):
        number = batch[-1].number
        yield Batch(batch, number, 0, Faults())
    # How far a file is read does not show while it is.
    yield Batch([], number, part.size, faults)


def _check_columns(source: Input, names: Sequence[str], fields: Fields) -> None:
    for option, wanted in (
        ("--text_field", [fields.text]),
        ("--language_field", fields.language_fields if _asks(source, fields) else []),
    ):
        for name in wanted:
            if name not in names:
                raise UserError(
                    f"{source.path}: no column {name!r}, only {', '.join(map(repr, names))}; "
                    f"name the right one with {option}"
                )


def _asks(source: Input, fields: Fields) -> bool:
    """Whether records have to say what their language is."""
    return fields.language is None and source.language is None and fields.default_language is None


def _of_rows(part: Slice, fields: Fields, faults: Faults) -> Iterator[Document]:
    columns = [fields.text]
    if fields.language is None and part.source.language is None:
        columns += fields.language_fields
    passing_over = _passing_over(faults, fields)
    for number, row in read_rows(part, columns):
        parsed = None
        with passing_over:
            parsed = _parse(row, _Line(part, number), fields)
        if parsed:
            yield Document(part.input_index, number, *parsed)


def _of_tokens(part: Slice, fields: Fields) -> Iterator[Document]:
    if fields.ends is None:
        raise UserError(f"{part.source.path}: holds tokens, no text")
    language = _language_of_tokens(part.source, fields)
    for number, tokens in read_tokens(part, fields.tokens, *fields.ends):
        yield Document(part.input_index, number, language, "", tokens.tobytes(), tokens)


def _of_other_tokens(
    part: Slice, names: Sequence[str], fields: Fields, other: OtherTokenizer, faults: Faults
) -> Iterator[Document]:
    """The texts of rows of another tokeniser's tokens, numbered from the slice's beginning."""
    source, column = part.source, fields.tokens
    if column not in names:
        raise UserError(
            f"{source.path}: no column {column!r}, only {', '.join(map(repr, names))}, but --tokens_of is for tokens;"
            " leave it out"
        )
    language = _language_of_tokens(source, fields)
    passing_over, number = _passing_over(faults, fields), 0
    for row_number, row in read_rows(part, [column, INDICES]):
        texts: list[str] = []
        with passing_over:
            place = f"{source.path}, sample {row_number}"
            texts = texts_of_row(ids_of(row, column, place), row.get(INDICES), other, place)
        for text in texts:
            number += 1
            yield Document(part.input_index, number, language, text, text.encode())


def _language_of_tokens(source: Input, fields: Fields) -> str:
    language = fields.language or source.language or fields.default_language
    if language is None:
        raise UserError(
            f"{source.path}: rows of tokens do not say what their language is; name it with --language or "
            "--language_from_path"
        )
    return language


class _Line(NamedTuple):
    """The place of a line, to be spelled out when somebody has to be told of it."""

    part: Slice
    number: int

    def __str__(self) -> str:
        if self.part.several:
            of = f"part {self.part.stripe + 1} of {self.part.stripes}"
            return f"{self.part.source.path}, document {self.number} in {of}"
        before = 0 if self.part.is_counted else _lines_before(self.part)
        return f"{self.part.source.path}, {_RECORD[self.part.source.format]} {before + self.number}"

    def __format__(self, _: str) -> str:
        return str(self)


def record_place(part: Slice, number: int) -> str:
    """Where in the inputs the record stands that a document of this slice has the number of."""
    return str(_Line(part, number))


def _lines_before(part: Slice) -> int:
    """How many lines begin before a slice of a plain file."""
    # A line that begins at `start` has its predecessor's end before it.
    lines, left = 0, part.start - 1
    with readable(part.source.path), part.source.path.open("rb") as file:
        while left > 0 and (data := file.read(min(left, BATCH_BYTES))):
            lines += data.count(b"\n")
            left -= len(data)
    return lines + 1


def _parse(value: dict[str, Any], where: _Line, fields: Fields) -> tuple[str, str, bytes]:
    """(language, text, text in UTF-8)"""
    text, utf8 = string_field(value, fields.text, "--text_field", where)
    language = fields.language or where.part.source.language
    if language is not None:
        return language, text, utf8
    names = fields.language_fields
    if fields.default_language is not None and not has_field(value, names[0]):
        return fields.default_language, text, utf8
    said = []
    for name in names:
        said.append(string_field(value, name, "--language_field", where)[0])
        if not said[-1]:
            what = f"field {name!r} is empty"
            raise RecordError(what, where, f"{what}; name the language")
    return "_".join(said), text, utf8
