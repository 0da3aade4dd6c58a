"""How fast tools/prepare_corpus.py is beside the bare tokeniser, and how much memory it takes for more and more text.

The bare tokeniser is one process with all texts in memory that calls encode_batch, on the first part of the same text;
what preparation is measured against is that rate times the number of processes, and what as many such processes reach
together when they run at the same time. The rate of preparation is that of the
whole command, start-up, packing and writing included. Memory is the sum of the resident sets of all of its processes,
looked at ten times a second; pages that they share count for each.
"""

import argparse
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

from mmbert_jax.data.tokenizer import load_tokenizer
from mmbert_jax.errors import UserError, run_main
from mmbert_jax.files import check_file, write_json
from mmbert_jax.places import Place, place

EXAMPLE = """example:
  python tools/make_cldr_text.py --output cldr.jsonl --documents 160
  python tools/train_tokenizer.py --input cldr.jsonl --vocab_size 32768 --output tokenizer
  python tools/bench/prepare.py --input cldr.jsonl --megabytes 200 \\
      --tokenizer tokenizer/tokenizer.model tokenizer/tokenizer.json
"""

PREPARE = Path(__file__).resolve().parent.parent / "prepare_corpus.py"
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
        "--repeats", type=int, default=3, help="rates are medians of so many (default: 3)"
    )
    parser.add_argument("--output", type=place, help="JSON file for the figures")
    return parser.parse_args()


def write_text(source: Place, path: Path, size: int) -> None:
    """JSONL of about `size` bytes of text: the n-th copy of a document is turned by n characters and numbered."""
    records = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
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


def prepare(command: list[str], output: Path) -> dict[str, float]:
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
    manifest = json.loads((output / "manifest.json").read_text(encoding="utf-8"))
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


def measure(tokenizer: Place, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The figures of one tokeniser."""
    whole, part = folder / "whole.jsonl", folder / "part.jsonl"
    bare, together, rates, memory = [], [], [], {}
    for repeat in range(args.repeats):
        bare.append(bare_rate(tokenizer, whole))
        with ProcessPoolExecutor(args.workers, multiprocessing.get_context("spawn")) as pool:
            found = list(pool.map(bare_rate, [tokenizer] * args.workers, [whole] * args.workers))
        together.append({name: sum(rate[name] for rate in found) for name in found[0]})
        for text in (whole, part) if repeat == 0 else (whole,):
            command = [sys.executable, str(PREPARE), "--input", str(text), "--overwrite"]
            command += ["--tokenizer", str(tokenizer), "--workers", str(args.workers)]
            command += ["--row_length", *args.row_length]
            found = prepare(command, folder / "corpus")
            memory.setdefault(text.stem, []).append(found.pop("peak_mb"))
            if text is whole:
                rates.append(found)

    def median(of: list[dict[str, float]]) -> dict[str, float]:
        return {name: statistics.median(r[name] for r in of) for name in of[0]}

    result = {"bare": median(bare), "together": median(together), "prepare": median(rates)}
    rate = result["prepare"]["tokens_per_second"]
    return result | {
        "of_bare": rate / (args.workers * result["bare"]["tokens_per_second"]),
        "of_together": rate / result["together"]["tokens_per_second"],
        "peak_mb": max(memory["whole"]),
        "peak_mb_of_a_quarter": max(memory["part"]),
    }


def main() -> None:
    args = parse_arguments()
    if args.output:
        check_file(args.output)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the bare tokeniser is one process, one thread
    results: dict[str, Any] = {"megabytes": args.megabytes, "workers": args.workers}
    print(
        f"{args.megabytes} MB of text, {args.workers} processes, rows of {' and '.join(args.row_length)}; tokens/s\n"
        f"{'tokeniser':<18}{'bare':>12}{'together':>12}{'prepare':>12}{'MB/s':>8}{'of bare x':>11}{'of together':>13}"
        f"{'peak MB':>9}{'of 1/4':>8}"
    )
    with tempfile.TemporaryDirectory(prefix="bench_prepare-") as folder:
        size = args.megabytes * 1_000_000
        write_text(args.input, Path(folder) / "whole.jsonl", size)
        write_text(args.input, Path(folder) / "part.jsonl", size // GROWTH)
        for path in args.tokenizer:
            r = results[path.name] = measure(path, args, Path(folder))
            print(
                f"{path.name:<18}{r['bare']['tokens_per_second']:>12,.0f}"
                f"{r['together']['tokens_per_second']:>12,.0f}{r['prepare']['tokens_per_second']:>12,.0f}"
                f"{r['prepare']['mb_per_second']:>8.2f}{r['of_bare']:>11.2f}{r['of_together']:>13.2f}"
                f"{r['peak_mb']:>9.0f}{r['peak_mb_of_a_quarter']:>8.0f}",
                flush=True,
            )
    if args.output:
        write_json(args.output, results)


if __name__ == "__main__":
    run_main(main)
