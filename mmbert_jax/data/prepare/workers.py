"""Who does the jobs of a preparation: processes of this machine, or of a Ray cluster; each keeps its tokeniser."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mmbert_jax.data.prepare.in_order import in_order
from mmbert_jax.data.prepare.ray_jobs import ray_jobs
from mmbert_jax.data.prepare.settings import Settings
from mmbert_jax.data.special_ids import SpecialIds
from mmbert_jax.data.tokenizer import Tokenizer, load_tokenizer
from mmbert_jax.errors import UserError

Run = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]
# A number of processes, or the address of a Ray cluster.
Engine = int | str


@dataclass
class _Worker:
    """What a process keeps between jobs."""

    settings: Settings | None = None
    tokenizer: Tokenizer | None = None
    special: SpecialIds | None = None


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


def begin(given: Settings, special: SpecialIds) -> None:
    """What this process works with from now on."""
    if (given, special) != (_worker.settings, _worker.special):
        _worker.settings, _worker.special, _worker.tokenizer = given, special, None
    # One process per core: threads inside of them would only get in each other's way.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _start_worker(start: Callable[..., None], state: tuple[Any, ...]) -> None:
    # Ctrl-C reaches the whole group of processes; the parent alone decides what follows.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    start(*state)


def _end_with_parent() -> None:
    # A pool's processes would wait for ever for jobs from a parent that was killed.
    multiprocessing.parent_process().join()
    os._exit(1)


@contextmanager
def run_jobs(engine: Engine, given: Settings, special: SpecialIds) -> Iterator[Run]:
    """Gives `run(function, jobs)`, which yields the results in the order of the jobs, a bounded number at a time."""
    if engine == 1:
        _worker.settings, _worker.tokenizer, _worker.special = given, None, special
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
    # Not fork: a tokeniser's threads would be lost in the copy.
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(start, state),
    )

    def run(function: Callable[[Any], Any], jobs: Iterable[Any]) -> Iterator[Any]:
        return in_order(lambda job: pool.submit(function, job), Future.result, jobs, 2 * workers)

    try:
        yield run
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, most likely for want of memory; try fewer --workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
