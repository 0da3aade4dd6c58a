"""Trains with several processes on one machine, over loopback; restarts the job when it can go on.

    python launch/local.py --processes 2 --devices_per_process 4 -- --config configs/phase1.py --workdir runs/phase1

What stands after `--` goes to `python -m mmbert_jax.train`. A job that ends with status 75 (it was interrupted, or
rolled back), or by a signal, is started again and resumes from its newest checkpoint. SIGTERM and SIGINT are passed on:
the job saves, and nothing is restarted.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time

# None of these imports jax, which would take the job's devices.
from mmbert_jax.config import complete
from mmbert_jax.config_file import read, split_overrides
from mmbert_jax.errors import UserError
from mmbert_jax.places import Place, place
from mmbert_jax.run import complete_steps

RESTART = 75  # mmbert_jax.parallel.processes.RESTART
# Seconds that the processes that are left have to say why, when one has ended, before SIGKILL.
GRACE_SECONDS = 20


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, required=True, metavar="N")
    parser.add_argument(
        "--devices_per_process",
        type=int,
        metavar="N",
        help="devices of the CPU, or GPUs, of each process; default: jax's, for a CPU 1",
    )
    parser.add_argument(
        "--max_restarts",
        type=int,
        default=3,
        metavar="N",
        help="restarts in a row without a new checkpoint (default 3)",
    )
    parser.add_argument("train", nargs="+", metavar="-- ARGUMENT", help="of mmbert_jax.train")
    args = parser.parse_args()
    if args.processes < 1 or (args.devices_per_process or 1) < 1:
        parser.error("--processes and --devices_per_process must be above 0")
    return args


class Job:
    """The processes of one start of the job."""

    def __init__(self, args: argparse.Namespace):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self.processes = []
        for index in range(args.processes):
            environment = os.environ | {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(args.processes),
                "JAX_PROCESS_ID": str(index),
            }
            if n := args.devices_per_process:
                environment["JAX_NUM_CPU_DEVICES"] = str(n)
                environment["JAX_LOCAL_DEVICE_IDS"] = ",".join(
                    str(i) for i in range(index * n, (index + 1) * n)
                )
            process = subprocess.Popen(
                [sys.executable, "-m", "mmbert_jax.train", *args.train],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                # A Ctrl-C in the terminal reaches them through this program, once.
                start_new_session=True,
            )
            self.processes.append(process)
        self.printers = [
            threading.Thread(target=_print_lines, args=(f"[{index}] ", process.stdout))
            for index, process in enumerate(self.processes)
        ]
        for printer in self.printers:
            printer.start()

    def signal(self, number: int) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def wait(self) -> int:
        """Waits until all have ended, ending the others when one has failed; the exit status of the first that did."""
        first = 0
        while first == 0 and any(process.poll() is None for process in self.processes):
            time.sleep(0.1)
            first = next((p.returncode for p in self.processes if p.poll()), 0)
        deadline = time.monotonic() + GRACE_SECONDS
        while any(p.poll() is None for p in self.processes) and time.monotonic() < deadline:
            time.sleep(0.1)  # those that leave by themselves have time to say why
        self.signal(signal.SIGKILL)
        for process in self.processes:
            process.wait()
        for printer in self.printers:
            printer.join()
        return first


def _print_lines(prefix: str, lines) -> None:
    for line in lines:
        sys.stdout.write(prefix + line.decode(errors="replace"))
        sys.stdout.flush()


def run_folder(train_arguments: list[str]) -> Place | None:
    """Where the run is to be found, as mmbert_jax.train has it; None where its arguments are wrong, as it will say."""
    overrides, others = split_overrides(train_arguments)
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--workdir", "-workdir", type=place)
    parser.add_argument("--config", "-config")
    known, _ = parser.parse_known_args(others)
    if known.workdir or not known.config:
        return known.workdir
    try:
        return place(complete(read(known.config, overrides)).workdir)
    except UserError:
        return None


def newest_checkpoint(train_arguments: list[str]) -> int:
    """Step of the newest complete checkpoint in the run folder; -1 where there is none."""
    workdir = run_folder(train_arguments)
    return -1 if workdir is None else max(complete_steps(workdir), default=-1)


def main() -> int:
    args = arguments()
    asked_to_stop, job, tries = [], None, 0

    def pass_on(number, frame):
        asked_to_stop.append(number)
        if job:
            job.signal(signal.SIGTERM)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    while True:
        before = newest_checkpoint(args.train)
        job = Job(args)
        if asked_to_stop:  # while the job was being started
            job.signal(signal.SIGTERM)
        status = job.wait()
        if asked_to_stop or not (status == RESTART or status < 0):
            break
        tries = 1 if newest_checkpoint(args.train) > before else tries + 1
        if tries > args.max_restarts:
            print(f"gave up after {args.max_restarts} restarts without a new checkpoint")
            break
        print(f"the job ended with status {status}: starting it again", flush=True)
    # A signal's number, as a shell reports it.
    return 128 - status if status < 0 else status


if __name__ == "__main__":
    sys.exit(main())
