"""What kill_test and compare_meshes share: starting training as a user would, and looking into a run folder."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmbert_jax.errors import UserError
from mmbert_jax.files import visible
from mmbert_jax.metrics import read_metrics
from mmbert_jax.places import Place
from mmbert_jax.run import SUMS, checkpoints

ROOT = Path(__file__).resolve().parents[2]


def refuse_used_folder(output: Place) -> None:
    if output.exists() and visible(output):
        raise UserError(f"{output} is not empty: remove it, or choose another")


def start(
    train: Sequence[str],
    workdir: Place,
    log: Path,
    processes: int = 1,
    devices: int | None = None,
    max_restarts: int = 0,
    **environment: str,
) -> subprocess.Popen:
    """Starts training in a run folder, in one process or under launch/local.py; output is added to `log`.

    Args:
      train: arguments of mmbert_jax.train.
      devices: of each process, simulated on a CPU; None: one process with what there is.
    """
    words = [sys.executable]
    if devices is None:
        words += ["-m", "mmbert_jax.train"]
    else:
        words += [str(ROOT / "launch/local.py"), "--processes", str(processes)]
        words += ["--devices_per_process", str(devices), "--max_restarts", str(max_restarts), "--"]
        environment["JAX_PLATFORMS"] = "cpu"
    words += [*train, "--workdir", str(workdir)]
    with log.open("ab") as file:
        return subprocess.Popen(
            words, env=os.environ | environment, stdout=file, stderr=subprocess.STDOUT
        )


def wait_for_end(process: subprocess.Popen, log: Path) -> None:
    if process.wait():
        raise UserError(f"the run failed: see {log}")


def steps(workdir: Place) -> list[dict[str, Any]]:
    """The metrics of every step."""
    return [record for record in read_metrics(workdir) if "loss" in record]


def last_step(log: Path, start: int = 0) -> int:
    """The last step that a log tells of, from byte `start` on: metrics in a bucket come later."""
    with log.open("rb") as file:
        file.seek(start)
        said = re.findall(rb"^step (\d+)/", file.read(), re.MULTILINE)
    return int(said[-1]) if said else 0


def is_saving(workdir: Place) -> bool:
    """Whether a checkpoint is being written: a folder under a temporary name, or one that has no sums yet."""
    folder = checkpoints(workdir)
    try:
        paths = list(folder.iterdir())
    except FileNotFoundError:
        return False
    return any(
        "tmp" in path.name or (path.name.isdigit() and not (path / SUMS).exists()) for path in paths
    )
