"""The jobs of a preparation on a Ray cluster. What a job makes lies on shared storage; only sizes come back."""

import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from mmbert_jax.data.prepare.in_order import in_order
from mmbert_jax.errors import UserError, brief

# A job is done again where the machine that had it is gone; so often at most.
_TRIES = 10


@contextmanager
def ray_jobs(
    address: str, begin: Callable[..., None], state: tuple[Any, ...]
) -> Iterator[Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]]:
    """Gives `run(function, jobs)` as `workers.run_jobs` does.

    Args:
      address: of the cluster, as `ray.init` takes it.
      begin: what a process calls with `state` before its jobs.

    Raises:
      UserError: there is no Ray, or no cluster; a job's machine was lost again and again.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise UserError(
            "--ray: there is no Ray here; install it with `bash tools/setup_env.sh ray`"
        ) from None
    try:
        _check_answers(address)
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"--ray {address}: no Ray cluster answers ({brief(error)})") from None
    kept = ray.put(state)

    def call(state: tuple[Any, ...], function: Callable[[Any], Any], job: Any) -> Any:
        begin(*state)
        return function(job)

    remote = ray.remote(call).options(max_retries=_TRIES, scheduling_strategy="SPREAD")

    def wait(reference: Any) -> Any:
        try:
            return ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayError as error:
            raise UserError(f"--ray {address}: a job was lost ({brief(error)})") from None

    def run(function: Callable[[Any], Any], jobs: Iterable[Any]) -> Iterator[Any]:
        at_once = 2 * max(int(ray.cluster_resources().get("CPU", 1)), 1)
        return in_order(lambda job: remote.remote(kept, function, job), wait, jobs, at_once)

    try:
        yield run
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """OSError where nobody listens: Ray tries again for minutes, then ends the whole program."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=20).close()
