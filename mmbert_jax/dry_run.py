"""What can be known before a long run: config, data, checkpoints, room on the disk, and that the step compiles."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from mmbert_jax import checkpoint, run_lock
from mmbert_jax.batches import open_phase
from mmbert_jax.checks import check_resume, check_start, check_tokenizer
from mmbert_jax.checksums import damage, sha256
from mmbert_jax.config import check_run, complete, validate
from mmbert_jax.data.mixture import describe
from mmbert_jax.data.pipeline import PhaseData, held_out_batches
from mmbert_jax.data.tokenizer_identity import is_recorded, short
from mmbert_jax.errors import UserError
from mmbert_jax.files import check_access
from mmbert_jax.metrics import data_size, si
from mmbert_jax.optim.schedules import phase_rows, phase_steps
from mmbert_jax.parallel.mesh import make_mesh
from mmbert_jax.parallel.sharding import local_rows
from mmbert_jax.places import Place, absolute, can_rename
from mmbert_jax.run import checkpoint as checkpoint_folder
from mmbert_jax.run import complete_steps
from mmbert_jax.step import abstract_state, compile_train_step


def dry_run(config: ConfigDict, workdir: Place) -> bool:
    """Checks everything that a run needs, prints each check and its seconds, and writes nothing.

    Checks go on after one that fails, as far as they do not need what it did not find.

    Returns:
      Whether all is well.
    """
    config = complete(config, workdir)
    found: dict[str, Any] = {}
    failed: list[str] = []

    def check(name: str, needs: tuple[str, ...], act: Callable[..., tuple[Any, str]]) -> None:
        if missing := [other for other in needs if other not in found]:
            print(f"  --   {name}: left out, since it needs the {missing[0]}")
            return
        start = time.perf_counter()
        try:
            found[name], text = act(*(found[other] for other in needs))
            verdict = "  ok  "
        except UserError as error:
            failed.append(name)
            verdict, text = "FAILED", str(error)
        print(f"{verdict} {name} ({time.perf_counter() - start:.1f} s): {text}", flush=True)

    check("config", (), lambda: _config(config))
    check("mesh", ("config",), lambda _: _mesh(config))
    check("data", ("config",), lambda _: _data(config))
    check("tokeniser", ("data",), lambda data: _tokenizer(config, data))
    check("same data", ("data",), lambda data: _same_data(config, data, workdir))
    check("held-out rows", ("data",), lambda _: _held_out(config))
    check("run folder", ("config",), lambda _: _run(config, workdir))
    check("lock", ("run folder",), lambda _: _lock(workdir))
    check(
        "start checkpoint",
        ("data", "mesh", "run folder"),
        lambda data, mesh, newest: _start(config, data, mesh, newest),
    )
    check("disk", ("mesh",), lambda mesh: _disk(config, mesh, workdir))
    check("training step", ("mesh",), lambda mesh: _step(config, mesh, found.get("data")))
    print(
        f"{len(failed)} checks failed: {', '.join(failed)}" if failed else "the run can be started"
    )
    return not failed


def _config(config: ConfigDict) -> tuple[bool, str]:
    validate(config)
    length = config.data.row_length
    steps = phase_steps(config.train, length)
    tokens = phase_rows(config.train, length) * length
    return True, f"phase {config.phase}, {steps} steps, {si(tokens)} tokens"


def _mesh(config: ConfigDict) -> tuple[jax.sharding.Mesh, str]:
    mesh = make_mesh(config.mesh)
    local_rows(mesh, config.train.microbatch_rows, "config.train.microbatch_rows")
    abstract_state(config, mesh)  # every dimension divides over its axis
    return mesh, f"{dict(mesh.shape)} on {mesh.size} x {mesh.devices.flat[0].device_kind}"


def _data(config: ConfigDict) -> tuple[PhaseData, str]:
    data = open_phase(config)
    return data, describe(data.mixture)


def _tokenizer(config: ConfigDict, data: PhaseData) -> tuple[bool, str]:
    check_tokenizer(config, data)
    places = Path(config.data.corpus).glob("**/tokenizer/" + data.tokenizer["file"])
    files = sorted(path for path in places if path.is_file())
    if not files:
        return True, "not in the corpus: training does without it, export asks for it"
    for path in files:
        if not is_recorded(path, sha256(path), data.tokenizer):
            raise UserError(
                f"{path} is not the tokeniser that the corpus was prepared with ({short(data.tokenizer)})"
            )
    return True, f"{files[0]}, {data.tokenizer['vocab_size']} entries"


def _same_data(config: ConfigDict, data: PhaseData, workdir: Place) -> tuple[int, str]:
    return check_resume(config, data, workdir)


def _held_out(config: ConfigDict) -> tuple[bool, str]:
    batches = held_out_batches(config.data, 64, config.eval.rows_per_language)
    languages = {name for _, names in batches for name in names} - {""}
    if not languages:
        raise UserError(
            f"{config.data.corpus} has no held-out rows of {config.data.row_length} tokens"
        )
    return True, f"{len(languages)} languages"


def _run(config: ConfigDict, workdir: Place) -> tuple[Place | None, str]:
    for line in check_run(config, workdir):
        print(line)
    steps = complete_steps(workdir)
    if not steps:
        return None, f"{workdir} is free"
    newest = checkpoint_folder(workdir, steps[0])
    if found := damage(newest):
        raise UserError(
            f"the newest checkpoint is damaged: {found}; the one before it would be used"
        )
    return newest, f"{workdir} would be resumed at step {newest.name}"


def _lock(workdir: Place) -> tuple[bool, str]:
    if who := run_lock.holder(workdir):
        raise UserError(
            f"{workdir} is in use by {who}: wait for its end, or choose another --workdir"
        )
    return True, "nobody else trains there"


def _start(
    config: ConfigDict, data: PhaseData, mesh: jax.sharding.Mesh, newest: Place | None
) -> tuple[bool, str]:
    abstract = abstract_state(config, mesh)
    if newest:
        checkpoint.check_fits(newest, abstract["params"])
        return True, str(newest)
    if not config.init_from:
        return True, "none: from scratch"
    check_start(config, data, abstract)
    return True, config.init_from


def _disk(config: ConfigDict, mesh: jax.sharding.Mesh, workdir: Place) -> tuple[bool, str]:
    """Room for the checkpoints that are kept and the one that is being written."""
    kept, forever = config.checkpoint.keep + 1, config.checkpoint.keep_every_steps
    if forever:
        kept += phase_steps(config.train, config.data.row_length) // forever
    one = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract_state(config, mesh)))
    if not can_rename(workdir):
        began = time.perf_counter()
        check_access(workdir)
        return (
            True,
            f"an object was written to {workdir} and removed in {time.perf_counter() - began:.2f} s; checkpoints of"
            f" {data_size(one)}, {kept} at a time",
        )
    folder = absolute(workdir)
    used = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    while not folder.exists():
        folder = folder.parent
    needed = max(kept * one - used, one)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder} has {data_size(free)} free, and {kept} checkpoints of {data_size(one)} need"
            f" {data_size(needed)} more: make room, or keep fewer (config.checkpoint.keep, keep_every_steps)"
        )
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder} cannot be written to: choose another --workdir")
    return (
        True,
        f"{data_size(free)} free, {data_size(needed)} needed for checkpoints of {data_size(one)}",
    )


def _step(config: ConfigDict, mesh: jax.sharding.Mesh, data: PhaseData | None) -> tuple[bool, str]:
    # The program that the run will use, where its data are there: a cache of compiled programs then has it.
    compiled = compile_train_step(config, mesh, data.tokenizer["vocab_size"] if data else None)
    memory = compiled.memory_analysis()
    if memory is None:
        return True, "compiled"
    peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return True, f"compiled; {data_size(peak)} on a device"
