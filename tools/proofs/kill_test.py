"""Kills a training run at random moments, starts it again each time, and compares it with a run that was left alone.

What must be the same, bit for bit: parameters and optimiser state of the last checkpoint, and loss, accuracy and
gradient norm of every step. Prints a table, writes OUTPUT/kill_test.json, and exits with 1 where something differs.
"""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from mmbert_jax.errors import UserError, run_main
from mmbert_jax.files import visible, write_json
from mmbert_jax.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]
COMPARED = ("loss", "masked_accuracy", "grad_norm", "learning_rate", "tokens", "skipped")
EXAMPLE = """example, with the demo's corpus: all its 240 languages, and batches that grow:
  python tools/proofs/kill_test.py --kills 20 --output runs/kill_test -- --config configs/demo.py:decay_all \\
      --config.data.corpus=runs/demo/corpus --config.checkpoint.every_steps=5 \\
      --config.train.batch_warmup_from_rows=16 --config.train.batch_warmup_tokens=200000

What stands after -- goes to python -m mmbert_jax.train; --workdir, and log_every_steps=1, are added.
"""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20, metavar="N")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    parser.add_argument("--output", type=Path, required=True, help="folder for both runs")
    parser.add_argument("train", nargs="+", metavar="-- ARGUMENT", help="of mmbert_jax.train")
    args = parser.parse_args()
    if args.output.exists() and visible(args.output):
        raise UserError(f"{args.output} is not empty: remove it, or choose another --output")
    return args


def start(args: argparse.Namespace, workdir: Path) -> subprocess.Popen:
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(args.output / "compilation_cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    words = [sys.executable, "-m", "mmbert_jax.train", *args.train, "--config.log_every_steps=1"]
    words += ["--workdir", str(workdir)]
    with (args.output / f"{workdir.name}.log").open("ab") as log:
        return subprocess.Popen(words, env=environment, stdout=log, stderr=subprocess.STDOUT)


def is_saving(workdir: Path) -> bool:
    """Whether a checkpoint is being written: a folder under a temporary name, or one that has no sums yet."""
    folder = workdir / "checkpoints"
    paths = list(folder.iterdir()) if folder.is_dir() else []
    return any(
        "tmp" in path.name or (path.name.isdigit() and not (path / "SHA256SUMS").exists())
        for path in paths
    )


def last_step(workdir: Path) -> int:
    if not (workdir / "metrics.jsonl").exists():
        return 0
    return max((record["step"] for record in read_metrics(workdir)), default=0)


def newest_checkpoint(workdir: Path) -> int:
    names = [path.name for path in (workdir / "checkpoints").glob("*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def kill_in_turn(args: argparse.Namespace, workdir: Path, steps: int) -> list[dict[str, Any]]:
    """Starts and kills the run, each time between two chosen steps, every other time in a save."""
    rng = random.Random(args.seed)
    kills = []
    for number in range(args.kills):
        # The kills are spread over the run, so that each start has something left to lose and something left to do.
        target = round(steps * (number + rng.random()) / args.kills)
        in_save, delay = number % 2 == 1, rng.uniform(0, 0.3)
        began, process = time.monotonic(), start(args, workdir)
        while process.poll() is None and is_saving(workdir):
            time.sleep(0.02)  # what the kill before left of its save: the program clears it first
        while process.poll() is None:
            if last_step(workdir) >= target and (not in_save or is_saving(workdir)):
                break
            time.sleep(0.002 if in_save else 0.02)
        if not in_save:
            time.sleep(delay)
        saving = is_saving(workdir)
        process.kill()
        if process.wait() == 0:
            break  # it was done before the moment came
        if process.returncode != -9:
            raise UserError(f"the run failed: see {args.output / workdir.name}.log")
        kills.append(
            {
                "after_step": last_step(workdir),
                "newest_checkpoint": newest_checkpoint(workdir),
                "in_a_save": saving,
                "seconds": round(time.monotonic() - began, 1),
            }
        )
        print(f"killed: {kills[-1]}", flush=True)
    return kills


def run_to_end(args: argparse.Namespace, workdir: Path) -> float:
    began = time.monotonic()
    if start(args, workdir).wait():
        raise UserError(f"the run failed: see {args.output / workdir.name}.log")
    return time.monotonic() - began


def digests(workdir: Path) -> dict[str, str]:
    """SHA-256 of the parameters, the optimiser's state and the sequence of metrics."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    folder = (workdir / "checkpoints" / str(newest_checkpoint(workdir))).absolute()
    found = {}
    for item in ("params", "optimizer"):
        digest = hashlib.sha256()
        tree = ocp.PyTreeCheckpointHandler().restore(folder / item)
        for path, leaf in jax.tree.leaves_with_path(tree):
            array = np.asarray(leaf)
            digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
            digest.update(array.tobytes())
        found[item] = digest.hexdigest()
    lines = [
        json.dumps([record["step"], *(record[name] for name in COMPARED)])
        for record in read_metrics(workdir)
        if "loss" in record
    ]
    found["metrics"] = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    held_out = [[r["step"], r["held_out"]] for r in read_metrics(workdir) if "held_out" in r]
    found["held_out"] = hashlib.sha256(json.dumps(held_out).encode()).hexdigest()
    return found


def main() -> None:
    args = arguments()
    args.output.mkdir(parents=True, exist_ok=True)
    whole, killed = args.output / "uninterrupted", args.output / "killed"
    seconds = run_to_end(args, whole)
    steps = last_step(whole)
    print(f"uninterrupted: {steps} steps in {seconds:.0f} s", flush=True)
    kills = kill_in_turn(args, killed, steps)
    run_to_end(args, killed)

    ours, theirs = digests(killed), digests(whole)
    print(f"\n{len(kills)} kills, {sum(k['in_a_save'] for k in kills)} of them in a save")
    for name, digest in theirs.items():
        verdict = "equal" if ours[name] == digest else "DIFFERENT"
        print(f"{name:<12}{verdict:<11}{digest[:16]}  {ours[name][:16]}")
    report = {
        "train": args.train,
        "seed": args.seed,
        "steps": steps,
        "uninterrupted_seconds": round(seconds, 1),
        "kills": kills,
        "uninterrupted": theirs,
        "killed": ours,
        "equal": ours == theirs,
    }
    write_json(args.output / "kill_test.json", report)
    if ours != theirs:
        sys.exit(1)


if __name__ == "__main__":
    run_main(main)
