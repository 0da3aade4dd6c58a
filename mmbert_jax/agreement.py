"""Processes of one job that do not have the same config, code, packages or data are stopped before the first step."""

import hashlib
import json
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from mmbert_jax.config import flatten
from mmbert_jax.fingerprint import NAMED, difference
from mmbert_jax.parallel.processes import JobError, gather

Account = dict[str, dict[str, Any]]

# Fields that a process may have to itself: where it sees the run folder (run_lock.py checks that it is one), and
# where its copy of the corpus lies and how it reads that.
OF_A_PROCESS = ("workdir", "data.corpus", "data.loader_workers", "data.prefetch")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_PACKAGE = Path(__file__).parent


def check_agreement(account: Account) -> None:
    """Compares the accounts of all processes; every process has to call it at the same place.

    Raises:
      JobError: in all of them, naming what differs and where.
    """
    if jax.process_count() == 1:
        return
    text = json.dumps(account, sort_keys=True)
    if len(set(gather(hashlib.sha256(text.encode()).hexdigest()))) == 1:
        return
    if found := differences([json.loads(text) for text in gather(text)]):
        raise JobError(found)


def job_account(config: ConfigDict, **arguments: Any) -> Account:
    """What is known before anything is opened: config, arguments of the command line, the package's files, versions."""
    return {
        "config.": {
            name: repr(value)
            for name, value in flatten(config.to_dict())
            if name not in OF_A_PROCESS
        },
        "--": {name: repr(value) for name, value in arguments.items()},
        "package ": {name: _version(name) for name in PACKAGES},
        "file mmbert_jax/": {
            path.relative_to(_PACKAGE).as_posix(): _digest(path)
            for path in sorted(_PACKAGE.rglob("*.py"))
        },
    }


def differences(accounts: Sequence[Account]) -> str | None:
    """What the processes' accounts have otherwise, naming the processes; None where they are alike.

    Args:
      accounts: by process. Section -> name -> value; a section `data` is an account of `fingerprint`.
    """
    found = []
    for section in sorted({section for account in accounts for section in account} - {"data"}):
        of_section = [account.get(section, {}) for account in accounts]
        for name in sorted({name for account in of_section for name in account}):
            values = [account.get(name, "absent") for account in of_section]
            if len(set(values)) > 1:
                found.append(f"{section}{name} is {_by_process(values)}")
    for process, account in enumerate(accounts):
        if found or "data" not in account:
            break
        sides = ("in process 0", f"in process {process}")
        if what := difference(accounts[0]["data"], account["data"], sides):
            found.append(what)
    if not found:
        return None
    more = f"; and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return (
        f"the processes of this job differ: {'; '.join(found[:NAMED])}{more}."
        " Start all of them with the same command, code, packages and data"
    )


def _by_process(values: Sequence[str]) -> str:
    processes: dict[str, list[int]] = {}
    for process, value in enumerate(values):
        processes.setdefault(value, []).append(process)
    return ", ".join(f"{value} in {_processes(of)}" for value, of in processes.items())


def _processes(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:NAMED])) + (", ..." if len(numbers) > NAMED else "")
    return f"process {shown}" if len(numbers) == 1 else f"processes {shown}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def _digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=4).hexdigest()
