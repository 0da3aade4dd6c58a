"""Trains one config on every mesh shape and on several processes, and compares all losses with those of one device.

The devices are simulated on a CPU. Batches do not depend on the mesh, so losses may differ by the order of float32 sums
alone. Prints a table, writes JSON, and exits with 1 where a loss differs by more than --tolerance.
"""

import argparse
import itertools
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import jobs

from mmbert_jax.axes import AXES
from mmbert_jax.errors import UserError, run_main
from mmbert_jax.files import write_json
from mmbert_jax.run import checkpoints

EXAMPLE = """example, with the demo's corpus, 50 steps of a small model:
  python tools/proofs/compare_meshes.py --output runs/meshes -- --config configs/demo.py:phase1 \\
      --config.data.corpus=runs/demo/corpus --config.train.tokens=204800 --config.model.num_layers=3 \\
      --config.model.hidden_size=64 --config.model.num_heads=8

What stands after -- goes to python -m mmbert_jax.train; --workdir, log_every_steps=1, the mesh, and checkpoints and
held-out losses at the end only, are added.
"""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the runs")
    parser.add_argument(
        "--devices", type=int, nargs="+", default=[1, 2, 4, 8], help="of one process (1 2 4 8)"
    )
    parser.add_argument(
        "--processes",
        nargs="*",
        default=["2x1", "2x4", "4x1", "4x2"],
        metavar="PROCESSESxDEVICES",
        help="jobs of several processes, data parallel and on a mixed mesh (2x1 2x4 4x1 4x2)",
    )
    parser.add_argument(
        "--tolerance", type=float, default=1e-4, help="of a loss, relative (default 1e-4)"
    )
    parser.add_argument("train", nargs="+", metavar="-- ARGUMENT", help="of mmbert_jax.train")
    args = parser.parse_args()
    jobs.refuse_used_folder(args.output)
    return args


def all_jobs(args: argparse.Namespace) -> list[tuple[int, int, tuple[int, ...]]]:
    """(processes, devices of each, mesh shape): one device first."""
    found = [
        (1, devices, shape) for devices in sorted({1, *args.devices}) for shape in shapes(devices)
    ]
    for text in args.processes:
        processes, devices = map(int, text.split("x"))
        total = processes * devices
        mixed = (total // 4, 2, 2) if total % 4 == 0 else (1, total, 1)
        found += [(processes, devices, (total, 1, 1)), (processes, devices, mixed)]
    return found


def shapes(devices: int) -> list[tuple[int, ...]]:
    """All mesh shapes of this many devices, data parallelism first."""
    sizes = [n for n in range(1, devices + 1) if devices % n == 0]
    whole = [s for s in itertools.product(sizes, repeat=3) if s[0] * s[1] * s[2] == devices]
    return sorted(whole, reverse=True)


def losses(args, processes: int, devices: int, shape: tuple[int, ...]) -> list[dict[str, Any]]:
    workdir = args.output / f"{processes}x{devices}_{'x'.join(map(str, shape))}"
    mesh = [f"--config.mesh.{axis}={size}" for axis, size in zip(AXES, shape, strict=True)]
    rarely = [
        f"--config.{name}={n}"
        for name, n in (
            ("checkpoint.every_steps", 10**9),
            ("eval.every_steps", 0),
            ("log_every_steps", 1),
        )
    ]
    log = args.output / f"{workdir.name}.log"
    process = jobs.start([*args.train, *mesh, *rarely], workdir, log, processes, devices)
    jobs.wait_for_end(process, log)
    shutil.rmtree(checkpoints(workdir))
    return jobs.steps(workdir)


def main() -> None:
    args = arguments()
    args.output.mkdir(parents=True, exist_ok=True)
    print(
        f"{'processes x devices':<21}{'mesh (' + ', '.join(AXES) + ')':<26}{'last loss':>12}"
        f"{'largest relative difference':>30}{'seconds':>9}"
    )
    rows, reference = [], None
    for processes, devices, shape in all_jobs(args):
        began = time.monotonic()
        records = losses(args, processes, devices, shape)
        reference = reference or records
        same = [(r["step"], r["tokens"], r["targets"]) for r in records]
        if same != [(r["step"], r["tokens"], r["targets"]) for r in reference]:
            raise UserError(f"mesh {shape}: the batches differ from those of one device")
        difference = max(
            abs(ours["loss"] - theirs["loss"]) / abs(theirs["loss"])
            for ours, theirs in zip(records, reference, strict=True)
        )
        rows.append(
            {
                "processes": processes,
                "devices_per_process": devices,
                "mesh": dict(zip(AXES, shape, strict=True)),
                "steps": len(records),
                "last_loss": records[-1]["loss"],
                "largest_relative_difference": difference,
                "seconds": round(time.monotonic() - began, 1),
            }
        )
        print(
            f"{f'{processes} x {devices}':<21}{shape!s:<26}{records[-1]['loss']:>12.6f}{difference:>30.1e}"
            f"{rows[-1]['seconds']:>9.1f}",
            flush=True,
        )
    report = {"train": args.train, "tolerance": args.tolerance, "runs": rows}
    write_json(args.output / "compare_meshes.json", report)
    worst = max(row["largest_relative_difference"] for row in rows)
    print(f"{len(rows)} runs, largest relative difference of a loss {worst:.1e}")
    if worst > args.tolerance:
        sys.exit(1)


if __name__ == "__main__":
    run_main(main)
