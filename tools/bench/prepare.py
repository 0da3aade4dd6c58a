"""How fast tools/prepare_corpus.py is beside the bare tokeniser, and how much memory it takes for more and more text.

The bare tokeniser is one process with all texts in memory that calls encode_batch, on the first part of the same text;
what preparation is measured against is that rate times the number of processes, and what as many such processes reach
together when they run at the same time. The rate of preparation is that of the
whole command, start-up, packing and writing included. Memory is the sum of the resident sets of all of its processes,
looked at ten times a second; pages that they share count for each. With --bucket, text and corpus lie there.
"""

import argparse
import gzip
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import zstandard

from mmbert_jax.data.tokenizer import load_tokenizer
from mmbert_jax.errors import UserError, run_main
from mmbert_jax.files import check_file, read_json, write_json
from mmbert_jax.places import Place, place

EXAMPLE = """example:
  python tools/make_cldr_text.py --output cldr.jsonl --documents 160
  python tools/train_tokenizer.py --input cldr.jsonl --vocab_size 32768 --output tokenizer
  python tools/bench/prepare.py --input cldr.jsonl --megabytes 200 \\
      --tokenizer tokenizer/tokenizer.model tokenizer/tokenizer.json
"""

PREPARE = Path(__file__).resolve().parent.parent / "prepare_corpus.py"
FORMATS = ("jsonl", "jsonl.gz", "jsonl.zst", "parquet")
GROWTH = 4  # the text is measured in whole, and a quarter of it for memory
BARE_BYTES = 20_000_000
BATCH = 1000


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", required=True, type=place, help="JSONL with language and text")
    parser.add_argument(
        "--tokenizer", required=True, nargs="+", type=place, help="*.model or tokenizer.json"
    )
    parser.add_argument(
        "--megabytes",
        type=int,
        default=100,
        help="of text, made of the input again and again with variation (default: 100)",
    )
    parser.add_argument(
        "--row_length", nargs="+", default=["1024"], help="as for prepare_corpus (default: 1024)"
    )
    parser.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores"
    )
    parser.add_argument(
        "--format",
        nargs="+",
        choices=FORMATS,
        default=["jsonl"],
        help="in which the text is stored (default: jsonl)",
    )
    parser.add_argument(
        "--bucket",
        type=place,
        metavar="URL",
        help="an empty folder in a bucket (gs://, s3://) for text and corpus, which is emptied again (default: a disk)",
    )
    parser.add_argument(
        "--repeats", type=int, default=3, help="rates are medians of so many (default: 3)"
    )
    parser.add_argument("--output", type=place, help="JSON file for the figures")
    return parser.parse_args()


def write_text(source: Place, path: Path, size: int) -> None:
    """JSONL of about `size` bytes of text: the n-th copy of a document is turned by n characters and numbered."""
    with source.open("rb") as lines:  # str.splitlines would cut at U+2028
        records = [json.loads(line) for line in lines]
    if not any(record["text"] for record in records):
        raise UserError(f"{source}: no text; name a JSONL file with `language` and `text`")
    written = copy = 0
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            for record in records:
                at = copy % max(len(record["text"]), 1)
                text = f"{record['text'][at:]} {record['text'][:at]} {copy}"
                line = {"language": record["language"], "text": text}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                written += len(text.encode())
                if written >= size:
                    break
            copy += 1


def store_text(text: Path, folder: Place, format: str) -> Place:
    """The same text in a format, in a folder on a disk or in a bucket."""
    stored = text.with_name(f"{text.stem}.{format}")
    if format == "parquet":
        with text.open(encoding="utf-8") as lines:
            table = pa.Table.from_pylist([json.loads(line) for line in lines])
        pyarrow.parquet.write_table(table, stored, row_group_size=1000, compression="zstd")
    elif format == "jsonl.gz":
        stored.write_bytes(gzip.compress(text.read_bytes(), 6))
    elif format == "jsonl.zst":
        stored.write_bytes(zstandard.compress(text.read_bytes(), 3))
    there = folder / stored.name
    if there != stored:
        there.write_bytes(stored.read_bytes())
    return there


def bare_rate(tokenizer_path: Place, text: Path) -> dict[str, float]:
    """MB and tokens a second of one process that only tokenises."""
    texts, size = [], 0
    with text.open(encoding="utf-8") as lines:
        for line in lines:
            texts.append(json.loads(line)["text"])
            size += len(texts[-1].encode())
            if size >= BARE_BYTES:
                break
    tokenizer = load_tokenizer(tokenizer_path)
    tokenizer.encode_batch(texts[:BATCH])
    start = time.perf_counter()
    tokens = 0
    for i in range(0, len(texts), BATCH):
        tokens += sum(map(len, tokenizer.encode_batch(texts[i : i + BATCH])))
    seconds = time.perf_counter() - start
    return {"mb_per_second": size / seconds / 1e6, "tokens_per_second": tokens / seconds}


def prepare(command: list[str], output: Place) -> dict[str, float]:
    """MB and tokens a second of the whole command, and its peak of memory in MB."""
    start = time.perf_counter()
    process = subprocess.Popen([*command, "--output", str(output)], stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, resident_bytes(process.pid))
        time.sleep(0.1)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise UserError(f"{' '.join(command)} ended with status {process.returncode}")
    manifest = read_json(output / "manifest.json")
    return {
        "mb_per_second": manifest["bytes"] / seconds / 1e6,
        "tokens_per_second": manifest["tokens"] / seconds,
        "peak_mb": peak / 1e6,
    }


def resident_bytes(pid: int) -> int:
    """The resident sets of a process and all of its descendants; what ends meanwhile counts as nothing."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        children = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") + sum(map(resident_bytes, children))


def measure(
    tokenizer: Place, texts: dict[str, tuple[Place, Place]], args: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """The figures of one tokeniser, measured in turns.

    Args:
      texts: by format all of the text and a quarter of it.
      folder: has the text as `whole.jsonl`, too.
    """
    plain, output = folder / "whole.jsonl", (args.bucket or folder) / "corpus"
    bare, together = [], []
    rates: dict[str, list[dict[str, float]]] = {kind: [] for kind in texts}
    memory: dict[str, list[float]] = {}
    for repeat in range(args.repeats):
        bare.append(bare_rate(tokenizer, plain))
        with ProcessPoolExecutor(args.workers, multiprocessing.get_context("spawn")) as pool:
            found = list(pool.map(bare_rate, [tokenizer] * args.workers, [plain] * args.workers))
        together.append({name: sum(rate[name] for rate in found) for name in found[0]})
        for kind, (whole, part) in texts.items():
            for text in (whole, part) if repeat == 0 else (whole,):
                command = [sys.executable, str(PREPARE), "--input", str(text), "--overwrite"]
                command += ["--tokenizer", str(tokenizer), "--workers", str(args.workers)]
                command += ["--row_length", *args.row_length]
                found = prepare(command, output)
                memory.setdefault(text.name, []).append(found.pop("peak_mb"))
                if text is whole:
                    rates[kind].append(found)

    def median(of: list[dict[str, float]]) -> dict[str, float]:
        return {name: statistics.median(r[name] for r in of) for name in of[0]}

    result = {"bare": median(bare), "together": median(together), "prepare": {}}
    for kind, (whole, part) in texts.items():
        found = median(rates[kind])
        rate = found["tokens_per_second"]
        result["prepare"][kind] = found | {
            "of_bare": rate / (args.workers * result["bare"]["tokens_per_second"]),
            "of_together": rate / result["together"]["tokens_per_second"],
            "peak_mb": max(memory[whole.name]),
            "peak_mb_of_a_quarter": max(memory[part.name]),
        }
    return result


def main() -> None:
    args = parse_arguments()
    if args.output:
        check_file(args.output)
    if args.bucket and args.bucket.exists():
        raise UserError(f"--bucket: {args.bucket} is there already; name a new folder")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the bare tokeniser is one process, one thread
    where = "disk" if args.bucket is None else str(args.bucket)
    results: dict[str, Any] = {
        "megabytes": args.megabytes,
        "workers": args.workers,
        "where": where,
    }
    print(
        f"{args.megabytes} MB of text, {args.workers} processes, rows of {' and '.join(args.row_length)}, {where}; "
        f"tokens/s\n{'tokeniser':<18}{'text':<11}{'bare':>11}{'together':>11}{'prepare':>11}{'MB/s':>8}"
        f"{'of bare x':>11}{'of together':>13}{'peak MB':>9}{'of 1/4':>8}"
    )
    with tempfile.TemporaryDirectory(prefix="bench_prepare-") as folder:
        try:
            sizes = {"whole": args.megabytes * 1_000_000}
            sizes["part"] = sizes["whole"] // GROWTH
            plain = {stem: Path(folder) / f"{stem}.jsonl" for stem in sizes}
            for stem, path in plain.items():
                write_text(args.input, path, sizes[stem])
            texts = {
                kind: tuple(
                    store_text(path, args.bucket or Path(folder), kind) for path in plain.values()
                )
                for kind in args.format
            }
            for path in args.tokenizer:
                r = results[path.name] = measure(path, texts, args, Path(folder))
                for kind, of in r["prepare"].items():
                    print(
                        f"{path.name:<18}{kind:<11}{r['bare']['tokens_per_second']:>11,.0f}"
                        f"{r['together']['tokens_per_second']:>11,.0f}{of['tokens_per_second']:>11,.0f}"
                        f"{of['mb_per_second']:>8.2f}{of['of_bare']:>11.2f}{of['of_together']:>13.2f}"
                        f"{of['peak_mb']:>9.0f}{of['peak_mb_of_a_quarter']:>8.0f}",
                        flush=True,
                    )
        finally:
            if args.bucket and args.bucket.exists():
                args.bucket.rmtree()
    if args.output:
        write_json(args.output, results)


if __name__ == "__main__":
    run_main(main)
