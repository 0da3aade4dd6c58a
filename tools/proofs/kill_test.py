"""Kills a training run at random moments, starts it again each time, and compares it with a run that was left alone.

With --processes, the run is a job of several processes under launch/local.py, and what is sent to a random one of them,
at random moments, is SIGKILL or SIGSTOP; a stopped process goes on after a while, or is left for the others to miss.

What must be the same, bit for bit: parameters and optimiser state of the last checkpoint, and loss, accuracy and
gradient norm of every step. The run that is killed may lie in a bucket, and is then compared with one on the disk.
Prints a table, writes OUTPUT/kill_test.json, and exits with 1 where something differs.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jobs
from jobs import is_saving, last_step

from mmbert_jax.errors import UserError, run_main
from mmbert_jax.files import write_json
from mmbert_jax.metrics import read_metrics
from mmbert_jax.orbax_stores import let_orbax_reach_stores
from mmbert_jax.places import Place, is_remote, place
from mmbert_jax.run import complete_steps, locate

COMPARED = ("loss", "masked_accuracy", "grad_norm", "learning_rate", "tokens", "skipped")
# Seconds after which a silent process of a job counts as dead, and that a stopped one is stopped.
HEARTBEAT, STOPPED = 8, (0.5, 4.0)
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
    parser.add_argument("--kills", type=int, default=20, metavar="N", help="signals (default 20)")
    parser.add_argument(
        "--processes",
        type=int,
        metavar="N",
        help="of a job, each with one CPU device; default: no job",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    parser.add_argument("--output", type=Path, required=True, help="folder for both runs")
    parser.add_argument(
        "--killed", type=place, metavar="RUN", help="run folder to kill in (default OUTPUT/killed)"
    )
    parser.add_argument("train", nargs="+", metavar="-- ARGUMENT", help="of mmbert_jax.train")
    args = parser.parse_args()
    jobs.refuse_used_folder(args.output)
    args.killed = args.killed or args.output / "killed"
    jobs.refuse_used_folder(args.killed)
    return args


def log_of(args: argparse.Namespace, workdir: Place) -> Path:
    return args.output / ("killed.log" if workdir == args.killed else "uninterrupted.log")


def start(args: argparse.Namespace, workdir: Place) -> subprocess.Popen:
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str(args.output / "compilation_cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    train = [*args.train, "--config.log_every_steps=1"]
    if not args.processes:
        return jobs.start(train, workdir, log_of(args, workdir), **environment)
    train.append(f"--heartbeat_seconds={HEARTBEAT}")
    job = {"processes": args.processes, "devices": 1, "max_restarts": args.kills}
    return jobs.start(train, workdir, log_of(args, workdir), **job, **environment)


def newest_checkpoint(workdir: Place) -> int:
    return max(complete_steps(workdir), default=0)


def wait_for_the_moment(
    process: subprocess.Popen, args: argparse.Namespace, target: int, in_save: bool, begin: int = 0
) -> bool:
    """Waits for a step, or for the first save after it; False if the run is over before.

    Args:
      begin: where in its log the process has begun to write.
    """
    log = log_of(args, args.killed)
    pause = 0.002 if in_save and not is_remote(args.killed) else 0.02
    while process.poll() is None:
        if last_step(log, begin) >= target and (not in_save or is_saving(args.killed)):
            return True
        time.sleep(pause)
    return False


def kill_in_turn(args: argparse.Namespace, steps: int) -> list[dict[str, Any]]:
    """Starts and kills the run, each time between two chosen steps, every other time in a save."""
    rng, workdir, log = random.Random(args.seed), args.killed, log_of(args, args.killed)
    kills = []
    for number in range(args.kills):
        # The kills are spread over the run, so that each start has something left to lose and something left to do.
        target = round(steps * (number + rng.random()) / args.kills)
        in_save, delay = number % 2 == 1, rng.uniform(0, 0.3)
        begin = log.stat().st_size if log.exists() else 0
        began, process = time.monotonic(), start(args, workdir)
        while process.poll() is None and is_saving(workdir):
            time.sleep(0.02)  # what the kill before left of its save: the program clears it first
        wait_for_the_moment(process, args, target, in_save, begin)
        if not in_save:
            time.sleep(delay)
        saving = is_saving(workdir)
        process.kill()
        if process.wait() == 0:
            break  # it was done before the moment came
        if process.returncode != -9:
            raise UserError(f"the run failed: see {log}")
        kills.append(
            {
                "after_step": last_step(log),
                "newest_checkpoint": newest_checkpoint(workdir),
                "in_a_save": saving,
                "seconds": round(time.monotonic() - began, 1),
            }
        )
        print(f"killed: {kills[-1]}", flush=True)
    return kills


def signal_in_turn(args: argparse.Namespace, steps: int) -> list[dict[str, Any]]:
    """Runs a job to its end, and sends signals to its processes meanwhile, every other one in a save."""
    rng, workdir, log = random.Random(args.seed), args.killed, log_of(args, args.killed)
    signals = []
    launcher = start(args, workdir)
    for number in range(args.kills):
        target = round(steps * (number + rng.random()) / args.kills)
        if not wait_for_the_moment(launcher, args, target, number % 2 == 1):
            break  # it was done before the moment came
        while len(found := children(launcher)) < args.processes and launcher.poll() is None:
            time.sleep(0.05)
        began, saving = time.monotonic(), is_saving(workdir)
        index = rng.randrange(args.processes)
        how = rng.choice(["killed", "stopped", "left stopped"])
        os.kill(found[index], signal.SIGKILL if how == "killed" else signal.SIGSTOP)
        if how == "stopped":
            time.sleep(rng.uniform(*STOPPED))
            os.kill(found[index], signal.SIGCONT)
        else:  # the launcher starts others, which first clear what is left of a save
            while launcher.poll() is None and set(children(launcher)) & set(found):
                time.sleep(0.05)
            while launcher.poll() is None and is_saving(workdir):
                time.sleep(0.05)
        signals.append(
            {
                "process": index,
                "how": how,
                "after_step": last_step(log),
                "newest_checkpoint": newest_checkpoint(workdir),
                "in_a_save": saving,
                "seconds": round(time.monotonic() - began, 1),
            }
        )
        print(f"{number + 1}: {signals[-1]}", flush=True)
    jobs.wait_for_end(launcher, log)
    return signals


def children(process: subprocess.Popen) -> list[int]:
    """Processes that a launcher has started, in the order in which it did."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True)
    return sorted(map(int, listed.stdout.split()))


def run_to_end(args: argparse.Namespace, workdir: Place) -> float:
    began = time.monotonic()
    jobs.wait_for_end(start(args, workdir), log_of(args, workdir))
    return time.monotonic() - began


def digests(workdir: Place) -> dict[str, str]:
    """SHA-256 of the parameters, the optimiser's state and the sequence of metrics."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    let_orbax_reach_stores()
    folder = locate(workdir)
    found = {}
    for item in ("params", "optimizer"):
        digest = hashlib.sha256()
        stored = ocp.StandardCheckpointHandler().metadata(folder / item).tree
        # As arrays of the host: the devices of a job of several processes are not here.
        how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
        tree = ocp.PyTreeCheckpointHandler().restore(
            folder / item, args=ocp.args.PyTreeRestore(restore_args=how)
        )
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
    whole, killed = args.output / "uninterrupted", args.killed
    seconds = run_to_end(args, whole)
    steps = last_step(log_of(args, whole))
    print(f"uninterrupted: {steps} steps in {seconds:.0f} s", flush=True)
    if args.processes:
        kills = signal_in_turn(args, steps)
    else:
        kills = kill_in_turn(args, steps)
        run_to_end(args, killed)

    ours, theirs = digests(killed), digests(whole)
    print(f"\n{len(kills)} signals, {sum(k['in_a_save'] for k in kills)} of them in a save")
    for name, digest in theirs.items():
        verdict = "equal" if ours[name] == digest else "DIFFERENT"
        print(f"{name:<12}{verdict:<11}{digest[:16]}  {ours[name][:16]}")
    report = {
        "train": args.train,
        "killed_in": str(killed),
        "seed": args.seed,
        "processes": args.processes,
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
