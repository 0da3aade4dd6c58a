"""How fast packed rows are read: from a disk, from a store that takes its time, and how a corpus of many shards starts.

disk    microbatches of 32 rows of 1024 tokens from corpora of 60 and of 1,833 languages, in threads of one process, as
        training reads them; shards as they are written now and, `old`, ArrayRecord files. The corpus is in the system's
        cache, so this is what reading costs the processor.
store   the same from a server on the loopback that waits before each answer, by requests under way at a time.
start   a corpus of many small shards: seconds until its first microbatch, memory and open files.

Every measurement has a process of its own.
"""

import argparse
import asyncio
import dataclasses
import itertools
import json
import multiprocessing
import os
import platform
import re
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from mmbert_jax.data import corpus, object_rows
from mmbert_jax.data.pipeline import microbatches, open_data
from mmbert_jax.data.rows import Rows
from mmbert_jax.data.shards import OLD_SUFFIX, SUFFIX, ShardWriter
from mmbert_jax.errors import run_main
from mmbert_jax.files import check_file, write_json
from mmbert_jax.places import place

ROW_LENGTH, MICROBATCH = 1024, 32
LANGUAGES = (60, 1833)
UNDER_WAY = (1, 8, 16, 32, 64, 128, 256)
BUCKET = "gs://bucket"

Result = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python tools/bench/rows.py --output docs/benchmarks/rows.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", type=int, default=20_000, help="of a corpus (default 20,000)")
    parser.add_argument("--shards", type=int, default=200, help="of a corpus (default 200)")
    parser.add_argument(
        "--many",
        type=int,
        default=20_000,
        help="shards of the one that is started (default 20,000)",
    )
    parser.add_argument(
        "--latency", type=float, default=0.03, help="seconds before an answer (default 0.03)"
    )
    parser.add_argument("--output", type=place, help="JSON file to write")
    arguments = parser.parse_args()
    if arguments.output:
        check_file(arguments.output)
    results = []

    def report(name: str, function: Callable[..., Result], *of: Any) -> None:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            result = {"what": name} | process.submit(function, *of).result()
        results.append(result)
        figures = (f"{key} {value:,.4g}" for key, value in result.items() if key != "what")
        print(f"{name:<44}{', '.join(figures)}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        for old in (True, False):
            for languages in LANGUAGES:
                path = Path(folder) / f"{languages}-{'old' if old else 'new'}"
                write_corpus(path, languages, arguments.rows, arguments.shards, old)
                name = f"disk, {languages} languages{', old' if old else ''}"
                report(name, read, str(path), 600)
        path = Path(folder) / f"{LANGUAGES[-1]}-new"
        with store(path, arguments.latency) as url:
            for under_way in UNDER_WAY:
                steps = min(200, 20 * under_way)
                report(f"store, {under_way} under way", read, str(path), steps, url, under_way)
        path = Path(folder) / "many"
        write_corpus(path, LANGUAGES[-1], arguments.many, arguments.many, False)
        report(f"start, {arguments.many} shards", start, str(path))
    if arguments.output:
        of = {"machine": platform.processor(), "cores": os.cpu_count(), "row_length": ROW_LENGTH}
        settings = {key: value for key, value in vars(arguments).items() if key != "output"}
        write_json(arguments.output, of | settings | {"results": results})


# --- what is measured ---


def read(folder: str, steps: int, url: str | None = None, under_way: int = 0) -> Result:
    """Microbatches of a corpus, one after the other; the first are not timed."""
    data = open_data(_config(folder), 1 << 30, seed=0)
    if url:
        os.environ |= {"TENSORSTORE_GCS_HTTP_URL": url, "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x"}
        object_rows.REQUESTS_AT_ONCE = under_way
        (rows,) = data.sources
        moved = [
            dataclasses.replace(shard, path=f"{BUCKET}/{Path(shard.path).name}")
            for shard in rows.shards
        ]
        data = dataclasses.replace(data, sources=(Rows(moved),))
    warm = steps // 10
    ranges = [(i * MICROBATCH, (i + 1) * MICROBATCH) for i in range(warm + steps)]
    stream = microbatches(data, MICROBATCH, ranges)
    for _ in range(warm):
        next(stream)
    begin, before = time.perf_counter(), time.process_time()
    read = sum(len(batch["tokens"]) for batch in stream)
    seconds, of_processor = time.perf_counter() - begin, time.process_time() - before
    return {
        "rows_per_second": read / seconds,
        "million_tokens_per_second": read * ROW_LENGTH / seconds / 1e6,
        "processor_us_per_row": of_processor / read * 1e6,
        "megabytes": _megabytes(),
    }


def start(folder: str) -> Result:
    before = _megabytes()
    begin = time.perf_counter()
    data = open_data(_config(folder), 1 << 30, seed=0)
    opened = time.perf_counter() - begin
    next(microbatches(data, MICROBATCH, [(0, MICROBATCH)]))
    first = time.perf_counter() - begin
    for _ in microbatches(data, MICROBATCH, [(i, i + MICROBATCH) for i in range(0, 20_000, 32)]):
        pass
    files = len(os.listdir("/proc/self/fd"))
    return {
        "seconds_to_open": opened,
        "seconds_to_first_microbatch": first,
        "megabytes": _megabytes(),
        "megabytes_of_imports": before,
        "open_files": files,
    }


def _config(folder: str) -> dict[str, Any]:
    return {
        "corpus": folder,
        "row_length": ROW_LENGTH,
        "temperature": 0.5,
        "max_passes": 1e9,
        "sources": {"web": {"share": 1.0, "languages": ()}},
    }


def _megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# --- what it is measured on ---


def write_corpus(folder: Path, languages: int, rows: int, shards: int, old: bool) -> None:
    """Rows of some documents of random tokens each, drawn as words are, as many of every language."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    words = draw.permutation(250_000)[:60_000] + 10
    tokens = words[np.minimum(draw.zipf(1.3, ROW_LENGTH * 64) - 1, len(words) - 1)]
    entries, suffix = [], OLD_SUFFIX if old else SUFFIX
    bounds = np.linspace(0, rows, shards + 1).astype(int).tolist()
    for index, (first, stop) in enumerate(itertools.pairwise(bounds)):
        path = folder / f"train_{ROW_LENGTH}-{index:05}{suffix}"
        writer = ArrayRecordWriter(str(path), "group_size:1") if old else ShardWriter(path)
        for row in range(first, stop):
            at = int(draw.integers(len(tokens) - ROW_LENGTH))
            ends = [*sorted(draw.choice(ROW_LENGTH - 1, row % 5, False) + 1), ROW_LENGTH]
            ids = np.arange(len(ends)) + row
            writer.write(corpus.encode_row(tokens[at : at + ROW_LENGTH], np.array(ends), ids))
        writer.close()
        entry = {"file": path.name, "rows": stop - first}
        entries.append(entry if old else entry | {"bytes": path.stat().st_size})
    starts = np.linspace(0, rows, languages + 1).astype(int).tolist()
    of_languages = {
        f"l{i:04}": {
            "first_row": a,
            "rows": b - a,
            "tokens": (b - a) * ROW_LENGTH,
            "documents": b - a,
            "bytes": 4 * (b - a) * ROW_LENGTH,
        }
        for i, (a, b) in enumerate(itertools.pairwise(starts))
    }
    train = {"shards": entries, "fill": 1.0, "languages": of_languages}
    manifest = {
        "format": corpus.FORMAT,
        "version": 1 if old else corpus.VERSION,
        "source": "web",
        "inputs": ["text.jsonl"],
        "tokenizer": {"vocab_size": 262_144, "file": "tokenizer.json", "sha256": "0"},
        "row_lengths": {
            str(ROW_LENGTH): {
                "train": train,
                "held_out": {"shards": [], "fill": 0.0, "languages": {}},
            }
        },
    }
    (folder / corpus.MANIFEST).write_text(json.dumps(manifest))


@contextmanager
def store(folder: Path, latency: float) -> Iterator[str]:
    """The address of a server, in a process of its own, that serves a folder as a bucket of Google's kind."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_serve, args=(str(folder.resolve()), latency, theirs), daemon=True
    )
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        process.terminate()
        process.join()


def _serve(folder: str, latency: float, pipe: Any) -> None:
    asyncio.run(_serve_for_ever(folder, latency, pipe))


async def _serve_for_ever(folder: str, latency: float, pipe: Any) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: _Connection(folder, latency), "127.0.0.1", 0, backlog=1024
    )
    pipe.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


class _Connection(asyncio.Protocol):
    """Answers one ranged read after the other, each when the latency is over."""

    def __init__(self, folder: str, latency: float):
        self._folder, self._latency, self._received = folder, latency, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._received.endswith(b"\r\n\r\n"):
            request, self._received = self._received.decode(), b""
            asyncio.get_running_loop().call_later(self._latency, self._answer, request)

    def _answer(self, request: str) -> None:
        name = re.match(r"GET /storage/v1/b/bucket/o/([^?]+)\?", request)[1]
        first, last = map(
            int, re.search(r"range: bytes=(\d+)-(\d+)", request, re.IGNORECASE).groups()
        )
        with open(os.path.join(self._folder, name), "rb", buffering=0) as file:
            content = os.pread(file.fileno(), last + 1 - first, first)
            size = os.fstat(file.fileno()).st_size
        head = (
            "HTTP/1.1 206 Partial Content\r\nx-goog-generation: 1\r\n"
            f"Content-Length: {len(content)}\r\nContent-Range: bytes {first}-{last}/{size}\r\n\r\n"
        )
        self._transport.write(head.encode() + content)


if __name__ == "__main__":
    run_main(main)
