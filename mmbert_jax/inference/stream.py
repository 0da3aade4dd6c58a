"""Records from a JSONL file through a model into output files, in order, resumable after being killed.

Records are taken in windows of so many tokens; a window's texts are packed together, computed, and written in order.
What a window holds depends on the input alone, so a run that resumes behind the last complete window packs the rest as
an uninterrupted one does, and writes the same bytes.
"""

import argparse
import dataclasses
import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from mmbert_jax.data.progress import Progress
from mmbert_jax.data.sources import (
    is_blank,
    one_file,
    open_decompressed,
    parse_object,
    readable,
    string_field,
)
from mmbert_jax.errors import UserError
from mmbert_jax.inference.in_flight import ahead
from mmbert_jax.inference.model import Model
from mmbert_jax.inference.output import Output, StandardOutput
from mmbert_jax.inference.rows import Batch, default_batch_tokens
from mmbert_jax.inference.tokenise import Text
from mmbert_jax.places import Place, place

STANDARD = Path("-")  # standard input or output
# Records that are tokenised together: so many, or so many bytes of them.
CHUNK_RECORDS, CHUNK_BYTES = 64, 1 << 16
# Enough that few batches of a window are half empty; all of a window is computed again after a kill.
WINDOW_BATCHES = 16


@dataclasses.dataclass(frozen=True)
class Record:
    """One line of the input; `place` says which, for messages."""

    place: str
    id: Any
    text: Text


@dataclasses.dataclass(frozen=True)
class Window:
    """Consecutive records that are packed together.

    Attributes:
      sequences: token ids of each record.
      cut: how many of them were longer than the model's maximum.
      sha256: of the input's records until the end of this window.
      bytes_read: of the input as it is on disk, for this window.
    """

    records: list[Record]
    sequences: list[list[int]]
    cut: int
    sha256: str
    bytes_read: int


@dataclasses.dataclass(frozen=True)
class Fields:
    """Which fields of a record are read.

    Attributes:
      text: its text, or the first one of a pair.
      id: None takes "id" where there is one.
      pair: the second text of a pair, if any.
    """

    text: str
    id: str | None
    pair: str | None = None


Tokenise = Callable[[Sequence[Record]], tuple[list[list[int]], list[bool]]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What all streaming command lines have in common, but for `--input` and `--output`."""
    parser.add_argument(
        "--checkpoint",
        required=True,
        help="a run folder (its newest checkpoint), one checkpoint in it, or a Hugging Face folder with safetensors",
    )
    parser.add_argument(
        "--tokenizer", help="folder or file; by default the one the checkpoint was trained with"
    )
    parser.add_argument(
        "--text_field", default="text", help="field of a record with its text (default text)"
    )
    parser.add_argument(
        "--id_field",
        help="field of a record with its id; by default id, or the record's number, from 0, where there is none",
    )
    parser.set_defaults(pair_field=None)  # for the programs that take no pairs
    parser.add_argument(
        "--max_length",
        type=int,
        metavar="TOKENS",
        help="cut texts there (default: the longest the model was trained on)",
    )
    parser.add_argument(
        "--batch_tokens",
        type=int,
        metavar="N",
        help="tokens that go through the model at once (default 2048 on a CPU, 65536 elsewhere); take less if memory"
        " runs out",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="in which the model computes (default bfloat16 on accelerators, float32 on a CPU)",
    )
    parser.add_argument(
        "--compile_cache",
        metavar="DIR",
        help="where compiled programs are kept for the next start (default $JAX_COMPILATION_CACHE_DIR, or"
        " ~/.cache/mmbert_jax/compiled)",
    )


def check_arguments(args: argparse.Namespace) -> None:
    """What can be refused before a model is loaded; `args.input` becomes a place."""
    args.input = place(args.input)
    if args.input != STANDARD and (not args.input.exists() or args.input.is_dir()):
        raise UserError(f"--input {args.input}: there is no such file")
    if args.batch_tokens is not None and args.batch_tokens < 1:
        raise UserError(f"--batch_tokens {args.batch_tokens}: it has to be at least 1")


def open_output(
    args: argparse.Namespace, model: Model, paths: Sequence[Path], settings: dict[str, Any]
) -> Output | StandardOutput:
    """The files to write, new or gone on with; `settings` are the program's own, the common ones are added."""
    if args.output == STANDARD:
        return StandardOutput()
    common = {
        "model": model.fingerprint,
        "max_length": model.max_length,
        "dtype": model.dtype,
        "batch_tokens": args.batch_tokens or default_batch_tokens(),
        "text_field": args.text_field,
        "id_field": args.id_field,
        "pair_field": args.pair_field,
    }
    return Output(paths, common | settings)


def process(
    args: argparse.Namespace,
    output: Output | StandardOutput,
    *,
    tokenise: Tokenise,
    start: Callable[[list[list[int]]], Iterator[tuple[Batch, Any]]],
    by_text: Callable[[Batch, Any, list[list[int]]], Iterator[tuple[int, Any]]],
    to_bytes: Callable[[Record, list[int], Any], Sequence[bytes]],
    devices: int = 1,
) -> None:
    """Computes, writes and commits all records that the output does not have yet.

    Args:
      args: `input`, JSONL, plain, .gz or .zst, or `-` for standard input; `text_field`, `id_field`, `pair_field`,
        `batch_tokens`.
      tokenise: records -> token ids, and whether each was cut.
      start: token ids of a window -> batches and what comes out of the model, on the device.
      by_text: takes that apart into (number in the window, result).
      to_bytes: record, its token ids, its result -> what to append to each of the output's files.
      devices: over which a batch is spread.

    Raises:
      UserError: a line that is no record, or an input that does not begin as the one did that is resumed.
    """
    source, fields = args.input, Fields(args.text_field, args.id_field, args.pair_field)
    window_tokens = WINDOW_BATCHES * devices * (args.batch_tokens or default_batch_tokens())
    with _lines(source) as (lines, position):
        digest = hashlib.sha256()
        done = output.state["records"]
        _skip(lines, done, digest, output.state["sha256"], source)
        if done:
            print(f"resuming behind {done:,} records", file=sys.stderr)
        windows = _windows(lines, position, digest, done, fields, source, tokenise, window_tokens)
        batches = (
            (window, batch, out)
            for window in _prefetch(windows)
            for batch, out in start(window.sequences)
        )
        size = 0 if source == STANDARD else one_file(source).size
        # A pipe's size is not known either.
        progress = Progress(f"{_name(source)}:", size - position() if size else None)
        amounts = {"texts": 0, "tokens": 0}
        results: dict[int, Any] = {}
        for window, batch, out in ahead(batches):
            results.update(by_text(batch, out, window.sequences))
            if len(results) < len(window.records):
                continue
            for i, (record, ids) in enumerate(zip(window.records, window.sequences, strict=True)):
                output.append(to_bytes(record, ids, results[i]))
                amounts["tokens"] += len(ids)
            amounts["texts"] += len(window.records)
            output.commit(len(window.records), window.cut, window.sha256)
            progress.advance(window.bytes_read, amounts)
            results.clear()
        progress.finish(amounts)


def write_results(
    args: argparse.Namespace,
    model: Model,
    settings: dict[str, Any],
    *,
    paths: Sequence[Path] | None = None,
    header: Callable[[int], bytes] | None = None,
    **functions: Callable,
) -> None:
    """From `args.input` to `args.output`: everything that is left to do, and a word on how much there was.

    Args:
      settings: of the program, see `open_output`.
      paths: the files to write; None: `args.output` alone.
      header: number of records -> what stands in front of the first file, equally long for all numbers; None: nothing.
      functions: `tokenise`, `start`, `by_text` and `to_bytes` of `process`.
    """
    paths = paths or [args.output]
    with closing(open_output(args, model, paths, settings)) as output:
        if output.complete:
            return
        if header and not output.state["records"]:
            output.append([header(0), *[b""] * (len(paths) - 1)])
        process(args, output, devices=model.mesh.size, **functions)
        output.finish(header(output.state["records"]) if header else b"")
        report(output, model)


def report(output: Output | StandardOutput, model: Model) -> None:
    """Says on stderr how much there was."""
    records, cut = output.state["records"], output.state["cut"]
    print(
        f"{records:,} records, {cut:,} of them cut at {model.max_length:,} tokens", file=sys.stderr
    )


def _prefetch(items: Iterator) -> Iterator:
    """The same items; a thread makes the next one while one is in use."""
    end = object()
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, items, end)
            yield item


@contextmanager
def _lines(source: Place) -> Iterator[tuple[Iterator[tuple[int, bytes]], Callable[[], int]]]:
    """The lines of a file that are not blank, with their numbers from 1, and how far it is read, in bytes on disk."""
    if source == STANDARD:
        yield _not_blank(sys.stdin.buffer), lambda: 0
        return
    with source.open("rb") as raw:
        yield _content(source, raw), raw.tell if raw.seekable() else lambda: 0


def _content(source: Place, raw: BinaryIO) -> Iterator[tuple[int, bytes]]:
    # Here, not around what is done with the lines, whose own errors are not about the input.
    with readable(source):
        yield from _not_blank(open_decompressed(source, raw))


def _name(source: Place) -> str:
    return "standard input" if source == STANDARD else str(source)


def _not_blank(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(file, start=1):
        if not is_blank(line):
            yield number, line


def _skip(
    lines: Iterator[tuple[int, bytes]], count: int, digest, sha256: str, source: Place
) -> None:
    """Passes over the records that are done; they have to be the ones that the output was made of."""
    for _, line in islice(lines, count):
        digest.update(line)
    if digest.hexdigest() != sha256:
        raise UserError(
            f"{_name(source)} does not begin with the {count:,} records that were read before: give the same input"
            " as before, or another --output"
        )


def _windows(
    lines: Iterator[tuple[int, bytes]],
    position: Callable[[], int],
    digest,
    first: int,
    fields: Fields,
    source: Place,
    tokenise: Tokenise,
    window_tokens: int,
) -> Iterator[Window]:
    """Windows of at least `window_tokens` tokens, but for the last; `first` is the number of the first record."""
    records: list[Record] = []
    sequences: list[list[int]] = []
    cut, read_before = 0, position()
    for chunk in _chunks(lines):
        found = [
            _parse(line, f"{_name(source)}, line {number}", fields, first + i)
            for i, (number, line) in enumerate(chunk)
        ]
        first += len(chunk)
        for _, line in chunk:
            digest.update(line)
        ids, were_cut = tokenise(found)
        records += found
        sequences += ids
        cut += sum(were_cut)
        if sum(map(len, sequences)) >= window_tokens:
            yield Window(records, sequences, cut, digest.hexdigest(), position() - read_before)
            records, sequences, cut, read_before = [], [], 0, position()
    if records:
        yield Window(records, sequences, cut, digest.hexdigest(), position() - read_before)


def _chunks(lines: Iterator[tuple[int, bytes]]) -> Iterator[list[tuple[int, bytes]]]:
    chunk, size = [], 0
    for number, line in lines:
        chunk.append((number, line))
        size += len(line)
        if len(chunk) == CHUNK_RECORDS or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _parse(line: bytes, place: str, fields: Fields, number: int) -> Record:
    value = parse_object(line, place)
    text, _ = string_field(value, fields.text, "--text_field", place)
    if fields.id is not None and fields.id not in value:
        raise UserError(f"{place}: field {fields.id!r} is missing, which --id_field names")
    if fields.pair is not None:
        text = (text, string_field(value, fields.pair, "--pair_field", place)[0])
    return Record(place, value.get(fields.id or "id", number), text)
