"""What can be known before a long run: config, data, checkpoints, room on the disk, and that the step compiles."""

import resource
import shutil
import time
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from mmbert_jax import checkpoint, run_lock
from mmbert_jax.batches import open_phase
from mmbert_jax.checks import check_resume, check_start, check_tokenizer
from mmbert_jax.checksums import damage, sha256
from mmbert_jax.config import check_run, complete, validate
from mmbert_jax.data.mixture import describe
from mmbert_jax.data.open_files import most_open
from mmbert_jax.data.pipeline import PhaseData, find_corpora, held_out_rows, records_of
from mmbert_jax.data.tokenizer_identity import is_recorded, short
from mmbert_jax.errors import UserError
from mmbert_jax.files import check_access
from mmbert_jax.machine import describe_mesh
from mmbert_jax.metrics import data_size, si
from mmbert_jax.optim.schedules import phase_rows, phase_steps
from mmbert_jax.parallel.mesh import make_mesh
from mmbert_jax.parallel.sharding import local_rows
from mmbert_jax.places import Place, absolute, can_rename
from mmbert_jax.run import checkpoint as checkpoint_folder
from mmbert_jax.run import complete_steps
from mmbert_jax.step import abstract_state, compile_train_step

# Checkpoints are written with as many files at a time, beside the loader's and the program's own.
_FEWEST_OPEN = 128


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
    check("reading rows", ("data",), lambda data: _rows(config, data))
    check("open files", (), _open_files)
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
    return mesh, describe_mesh(config, mesh).replace("\n", "; ")


def _data(config: ConfigDict) -> tuple[PhaseData, str]:
    data = open_phase(config)
    return data, describe(data.mixture)


def _tokenizer(config: ConfigDict, data: PhaseData) -> tuple[bool, str]:
    check_tokenizer(config, data)
    folders, _ = find_corpora(config.data)
    files = [folder / "tokenizer" / data.tokenizer["file"] for folder in folders]
    files = [path for path in files if path.is_file()]
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
    rows, sources, _ = held_out_rows(config.data, config.eval.rows_per_language)
    if not rows:
        raise UserError(
            f"{config.data.corpus} has no held-out rows of {config.data.row_length} tokens"
        )
    _, source, row = rows[-1]
    sources[source][row]
    return True, f"{len(rows)} of {len({language for language, *_ in rows})} languages"


def _rows(config: ConfigDict, data: PhaseData) -> tuple[bool, str]:
    """How long storage takes for a row, and what it gives where many are asked for, as a run does.

    They are from all over the phase, so that no cache has them; the first row's reading opens what all need.
    """
    rows = phase_rows(config.train, config.data.row_length)
    records_of(data, 0, 1)
    began = time.perf_counter()
    records_of(data, rows - 1, rows)
    one = time.perf_counter() - began
    many = min(rows // 2, 16 * max(source.in_flight for source in data.sources if source))
    if not many:
        return True, f"a row takes {1e3 * one:.1f} ms"
    began = time.perf_counter()
    records_of(data, rows // 2, rows // 2 + many)
    rate = many / (time.perf_counter() - began)
    return True, (
        f"a row takes {1e3 * one:.1f} ms; {si(rate)} rows/s, {si(rate * config.data.row_length)} tokens/s of one thread"
        f" where {many} are asked for together"
    )


def _open_files() -> tuple[bool, str]:
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < _FEWEST_OPEN:
        raise UserError(
            f"a process may open {most} files (ulimit -n), and a run wants {_FEWEST_OPEN}: raise it for this user"
        )
    return True, f"a process may open {most}; the loader keeps at most {most_open()} shards open"


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
    check_access(folder)
    return (
        True,
        f"{data_size(free)} free, {data_size(needed)} needed for checkpoints of {data_size(one)}",
    )


def _step(config: ConfigDict, mesh: jax.sharding.Mesh, data: PhaseData | None) -> tuple[bool, str]:
    # The program that the run will use, where its data are there: a cache of compiled programs then has it.
    compiled = compile_train_step(
        config, mesh, *((data.tokenizer["vocab_size"], data.special) if data else ())
    )
    memory = compiled.memory_analysis()
    if memory is None:
        return True, "compiled"
    peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return True, f"compiled; {data_size(peak)} on a device"
