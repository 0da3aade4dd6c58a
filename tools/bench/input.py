"""How fast packed rows become batches: from a disk, from a store that takes its time, and from very many shards.

disk    microbatches of 32 rows of 1024 tokens (4 of 8192) from corpora of 60, 110 and 1,833 languages, in threads of
        one process, as training reads them. Tokens are those of texts, padding does not count. The corpus is in the
        system's cache, so this is what reading costs the processor: `a_core` is tokens by the processor's time,
        `a_process` by the clock's. A jump opens the corpus anew and reads a microbatch from the midst of the phase.
store   the same from a server on the loopback that waits before each answer, by requests under way at a time.
start   a corpus of many small shards: seconds until its first microbatch, memory and open files.

Every measurement has a process of its own; those of one row length take turns.
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
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mmbert_jax.data import corpus, object_rows
from mmbert_jax.data.packing import best_fit, piece_bounds
from mmbert_jax.data.pipeline import PhaseData, microbatches, open_data
from mmbert_jax.data.rows import Rows
from mmbert_jax.data.shards import ShardWriter
from mmbert_jax.errors import run_main
from mmbert_jax.files import check_file, write_json
from mmbert_jax.places import place

MICROBATCH = {1024: 32, 8192: 4}
LANGUAGES = (60, 110, 1833)
UNDER_WAY = (1, 8, 16, 32, 64, 128, 256)
BUCKET = "gs://bucket"
PHASE_ROWS = 1 << 30  # 1.1T tokens in rows of 1024, 8.8T in rows of 8192

Result = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python tools/bench/input.py --output docs/benchmarks/input.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--tokens", type=int, default=100_000_000, help="of a corpus (default 100,000,000)"
    )
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
    parser.add_argument(
        "--repeats", type=int, default=5, help="medians of so many, of a disk (default 5)"
    )
    parser.add_argument("--output", type=place, help="JSON file to write")
    arguments = parser.parse_args()
    if arguments.output:
        check_file(arguments.output)
    results = []

    def report(name: str, result: Result) -> None:
        results.append({"what": name} | result)
        figures = (f"{key} {value:,.4g}" for key, value in result.items())
        print(f"{name:<36}{', '.join(figures)}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        for length in MICROBATCH:
            of_disk: dict[int, list[Result]] = {languages: [] for languages in LANGUAGES}
            for languages in LANGUAGES:
                path = Path(folder) / f"{languages}-{length}"
                write_corpus(path, languages, arguments.tokens, arguments.shards, length)
            for _ in range(arguments.repeats):
                for languages, found in of_disk.items():
                    path = Path(folder) / f"{languages}-{length}"
                    found.append(alone(read, str(path), length, 600))
            for languages, found in of_disk.items():
                median = {key: statistics.median(r[key] for r in found) for key in found[0]}
                report(f"disk, rows of {length}, {languages} languages", median)
        for length in MICROBATCH:
            path = Path(folder) / f"{LANGUAGES[-1]}-{length}"
            with store(path, arguments.latency) as url:
                for under_way in UNDER_WAY if length == min(MICROBATCH) else UNDER_WAY[-1:]:
                    steps = min(200, 20 * under_way)
                    found = alone(read, str(path), length, steps, url, under_way)
                    report(f"store, rows of {length}, {under_way} under way", found)
        path = Path(folder) / "many"
        write_corpus(path, LANGUAGES[-1], 1024 * arguments.many, arguments.many, 1024)
        report(f"start, {arguments.many} shards", alone(start, str(path)))
    if arguments.output:
        of = {"machine": platform.processor(), "cores": os.cpu_count()}
        settings = {key: value for key, value in vars(arguments).items() if key != "output"}
        write_json(arguments.output, of | settings | {"results": results})


def alone(function: Callable[..., Result], *of: Any) -> Result:
    """What a function gives in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *of).result()


# --- what is measured ---


def read(
    folder: str, length: int, steps: int, url: str | None = None, under_way: int = 0
) -> Result:
    """Microbatches of a corpus, one after the other; the first are not timed."""
    if url:
        os.environ |= {"TENSORSTORE_GCS_HTTP_URL": url, "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x"}
        object_rows.REQUESTS_AT_ONCE = under_way
    size = MICROBATCH[length]
    begin = time.perf_counter()
    data = _open(folder, length, url is not None)
    next(microbatches(data, size, [(0, size)]))
    first = time.perf_counter() - begin
    begin = time.perf_counter()
    middle = PHASE_ROWS // 2 + 12_345
    next(microbatches(_open(folder, length, url is not None), size, [(middle, middle + size)]))
    jump = time.perf_counter() - begin
    warm = steps // 10
    stream = microbatches(data, size, [(i * size, (i + 1) * size) for i in range(warm + steps)])
    for _ in range(warm):
        next(stream)
    begin, before = time.perf_counter(), time.process_time()
    tokens = sum(int(np.count_nonzero(batch["segment_ids"])) for batch in stream)
    seconds, of_processor = time.perf_counter() - begin, time.process_time() - before
    return {
        "million_tokens_per_second_a_core": tokens / of_processor / 1e6,
        "million_tokens_per_second_a_process": tokens / seconds / 1e6,
        "processor_us_per_row": of_processor / (steps * size) * 1e6,
        "rows_per_second": steps * size / seconds,
        "fill": tokens / (steps * size * length),
        "seconds_to_first_microbatch": first,
        "seconds_to_jump": jump,
        "megabytes": _megabytes(),
        "open_files": len(os.listdir("/proc/self/fd")),
    }


def start(folder: str) -> Result:
    before = _megabytes()
    begin = time.perf_counter()
    data = _open(folder, 1024, False)
    opened = time.perf_counter() - begin
    next(microbatches(data, 32, [(0, 32)]))
    first = time.perf_counter() - begin
    for _ in microbatches(data, 32, [(i, i + 32) for i in range(0, 20_000, 32)]):
        pass
    return {
        "seconds_to_open": opened,
        "seconds_to_first_microbatch": first,
        "megabytes": _megabytes(),
        "megabytes_of_imports": before,
        "open_files": len(os.listdir("/proc/self/fd")),
    }


def _open(folder: str, length: int, in_store: bool) -> PhaseData:
    config = {
        "corpus": folder,
        "row_length": length,
        "temperature": 0.5,
        "max_passes": 1e9,
        "sources": {"web": {"share": 1.0, "languages": ()}},
    }
    data = open_data(config, PHASE_ROWS, seed=0)
    if not in_store:
        return data
    (rows,) = data.sources
    moved = [
        dataclasses.replace(shard, path=f"{BUCKET}/{Path(shard.path).name}")
        for shard in rows.shards
    ]
    return dataclasses.replace(data, sources=(Rows(moved),))


def _megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# --- what it is measured on ---


def write_corpus(folder: Path, languages: int, tokens: int, shards: int, length: int) -> None:
    """Documents of random tokens, drawn as words are, packed into rows; as many of every language.

    Documents have a log-normal number of tokens, of median 300 and mean 500, as help pages and web pages have.
    """
    folder.mkdir()
    draw = np.random.default_rng(0)
    words = draw.permutation(250_000)[:60_000] + 10
    text = words[np.minimum(draw.zipf(1.3, 1 << 20) - 1, len(words) - 1)].astype(np.uint32)
    rows, of_languages = [], {}
    for i in range(languages):
        lengths = draw.lognormal(np.log(300), 1.0, max(tokens // languages // 500, 1)).astype(int)
        document, begins, ends = piece_bounds(lengths + 1, length)
        pieces = ends - begins + 1
        packed = best_fit(pieces, length)
        of_languages[f"l{i:04}"] = {
            "first_row": len(rows),
            "rows": len(packed),
            "tokens": int(pieces.sum()),
            "documents": len(lengths),
            "bytes": 4 * int(pieces.sum()),
        }
        rows += [(np.cumsum(pieces[row]), document[row]) for row in packed]
    entries = []
    bounds = np.linspace(0, len(rows), shards + 1).astype(int).tolist()
    for index, (first, stop) in enumerate(itertools.pairwise(bounds)):
        path = folder / f"train_{length}-{index:05}.npy"
        writer = ShardWriter(path)
        for ends, ids in rows[first:stop]:
            at = int(draw.integers(len(text) - length))
            writer.write(corpus.encode_row(text[at : at + ends[-1]], ends, ids))
        writer.close()
        entries.append({"file": path.name, "rows": stop - first, "bytes": path.stat().st_size})
    filled = sum(of["tokens"] for of in of_languages.values())
    train = {
        "shards": entries,
        "fill": filled / (len(rows) * length),
        "languages": of_languages,
    }
    manifest = {
        "format": corpus.FORMAT,
        "version": corpus.VERSION,
        "source": "web",
        "inputs": ["text.jsonl"],
        "tokenizer": {"vocab_size": 262_144, "file": "tokenizer.json", "sha256": "0"},
        "row_lengths": {
            str(length): {
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
