"""Who does the jobs of a preparation: processes of this machine, or of a Ray cluster; each keeps its tokeniser."""

import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmbert_jax.data.prepare.in_order import in_order
from mmbert_jax.data.prepare.ray_jobs import ray_jobs
from mmbert_jax.data.prepare.settings import Settings
from mmbert_jax.data.sources import OtherTokenizer, load_other
from mmbert_jax.data.special_ids import SpecialIds
from mmbert_jax.data.tokenizer import Tokenizer, load_tokenizer
from mmbert_jax.errors import UserError
from mmbert_jax.places import Place

Run = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]
# A number of processes, or the address of a Ray cluster.
Engine = int | str


@dataclass
class _Worker:
    """What a process keeps between jobs."""

    settings: Settings | None = None
    tokenizer: Tokenizer | None = None
    tokens_of: OtherTokenizer | None = None
    special: SpecialIds | None = None
    notes: Path | None = None  # a file for what it reads now


_worker = _Worker()


def settings() -> Settings:
    """What this process works with."""
    assert _worker.settings is not None
    return _worker.settings


def special() -> SpecialIds:
    """The special ids of the settings' tokeniser, which need not be loaded for them."""
    assert _worker.special is not None
    return _worker.special


def tokenizer() -> Tokenizer:
    """The tokeniser of the settings, loaded when the first job asks for it."""
    if _worker.tokenizer is None:
        _worker.tokenizer = load_tokenizer(settings().tokenizer)
    return _worker.tokenizer


def tokens_of() -> OtherTokenizer | None:
    """The tokeniser that made the inputs' tokens, where the settings name one; loaded when first asked for."""
    path = settings().tokens_of
    if path is not None and _worker.tokens_of is None:
        _worker.tokens_of = load_other(path)
    return _worker.tokens_of


def begin(given: Settings, special: SpecialIds) -> None:
    """What this process works with from now on."""
    if (given, special) != (_worker.settings, _worker.special):
        _worker.settings, _worker.special = given, special
        _worker.tokenizer = _worker.tokens_of = None
    # One process per core: threads inside of them would only get in each other's way.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def note(reading: Place | None) -> None:
    """Leaves word of what this process reads from now on, for whoever finds it dead."""
    if _worker.notes is not None:
        _worker.notes.write_bytes(os.fsencode(str(reading or "")))


def _start_worker(start: Callable[..., None], state: tuple[Any, ...], notes: Path) -> None:
    # Ctrl-C reaches the whole group of processes; the parent alone decides what follows.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    start(*state)
    _worker.notes = notes / str(os.getpid())


def _end_with_parent() -> None:
    # A pool's processes would wait for ever for jobs from a parent that was killed.
    multiprocessing.parent_process().join()
    os._exit(1)


@contextmanager
def run_jobs(engine: Engine, given: Settings, special: SpecialIds) -> Iterator[Run]:
    """Gives `run(function, jobs)`, which yields the results in the order of the jobs, a bounded number at a time."""
    if engine == 1:
        _worker.settings, _worker.special = given, special
        _worker.tokenizer = _worker.tokens_of = None
        yield map
    elif isinstance(engine, str):
        with ray_jobs(engine, begin, (given, special)) as run:
            yield run
    else:
        with pool_jobs(engine, begin, (given, special)) as run:
            yield run


@contextmanager
def pool_jobs(workers: int, start: Callable[..., None], state: tuple[Any, ...]) -> Iterator[Run]:
    """Gives `run` as `run_jobs` does, with processes of this machine, each of which calls `start(*state)` first."""
    notes = Path(tempfile.mkdtemp())
    # Not fork: a tokeniser's threads would be lost in the copy.
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(start, state, notes),
    )
    # The pool forgets its processes when one has ended.
    processes: set[multiprocessing.process.BaseProcess] = set()

    def submit(function: Callable[[Any], Any], job: Any) -> Future[Any]:
        future = pool.submit(function, job)
        processes.update(multiprocessing.active_children())
        return future

    def run(function: Callable[[Any], Any], jobs: Iterable[Any]) -> Iterator[Any]:
        return in_order(lambda job: submit(function, job), Future.result, jobs, 2 * workers)

    try:
        yield run
    except BrokenProcessPool:
        pool.shutdown(cancel_futures=True)
        raise UserError(_why(processes, notes)) from None
    finally:
        pool.shutdown(cancel_futures=True)
        shutil.rmtree(notes, ignore_errors=True)


def _why(processes: Iterable[multiprocessing.process.BaseProcess], notes: Path) -> str:
    """What a process ended of, in whose midst the pool broke: it ends the others by SIGTERM."""
    ended = [p for p in processes if p.exitcode not in (None, 0, -signal.SIGTERM)]
    memory = "memory was short: try fewer --workers"
    if not ended:
        return f"a worker process was killed; most likely {memory}"
    code, note = ended[0].exitcode, notes / str(ended[0].pid)
    by = f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"
    file = os.fsdecode(note.read_bytes()) if note.exists() else ""
    if not file:
        return f"a worker process ended by {by}; most likely {memory}"
    damaged = "the file is damaged: compare its checksum, or copy or download it again"
    reasons = [memory, damaged] if code == -signal.SIGKILL else [damaged, memory]
    return (
        f"a worker process ended by {by} while it read {file}; either {reasons[0]}; or {reasons[1]}"
    )
