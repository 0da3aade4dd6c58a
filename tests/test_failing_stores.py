"""Runs in stores that misbehave: they go on, or end in one line with everything complete still there."""

import asyncio
import itertools
import time
import types

import aiobotocore.endpoint
import gcsfs.retry
import jax
import numpy as np
import pytest
from object_stores import RESET
from short_runs import losses

from mmbert_jax import buckets, checkpoint, run_lock
from mmbert_jax.checksums import damage
from mmbert_jax.errors import UserError
from mmbert_jax.goodput import read_timeline
from mmbert_jax.places import place
from mmbert_jax.run import LOCK, complete_steps
from mmbert_jax.run import checkpoint as checkpoint_folder

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(scope="module")
def local_run(go, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "local"
    go(run, 4)
    return run


@pytest.fixture
def failing(faulty_bucket, monkeypatch):
    """A run folder in a bucket, and the store to be told how to fail; clients wait a hundredth of their time."""
    sleep = asyncio.sleep

    async def short(seconds):
        await sleep(seconds / 100)

    for module in (gcsfs.retry, aiobotocore.endpoint):
        monkeypatch.setattr(module, "asyncio", types.SimpleNamespace(sleep=short))
    quick = {"max_retries": 16, "initial_delay": "1ms", "max_delay": "8ms"}
    monkeypatch.setattr(buckets, "RETRIES", quick)
    bucket, store = faulty_bucket
    return place(bucket) / "run", store


def in_order(run, reference):
    """The same losses and parameters, every checkpoint whole, and nothing left of the lock."""
    assert losses(run) == losses(reference)
    assert all(damage(checkpoint_folder(run, step)) is None for step in complete_steps(run))
    ours, theirs = (checkpoint.restore_params(r)[0] for r in (run, reference))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert len(read_timeline(run)) == len(read_timeline(reference))
    assert not any(LOCK in path.name for path in run.iterdir())


@pytest.mark.parametrize("failure", [503, 429, RESET])
def test_a_run_goes_on_where_one_request_in_five_fails(go, local_run, failing, failure):
    run, store = failing
    requests = itertools.count(1)
    store.fault = lambda method, path: None if next(requests) % 5 else failure
    go(run, 4)
    assert next(requests) > 200
    store.fault = lambda method, path: None
    assert complete_steps(run) == [4, 2]
    in_order(run, local_run)


def test_a_run_goes_on_when_a_store_stalls(go, local_run, failing):
    run, store = failing
    saving, stalled = [], []

    def fault(method, path):
        # A write of the lock's that stalls may be there when the run has ended.
        if "checkpoints/2/" not in path:
            return
        saving.append(path)
        if len(saving) > 5 and method in ("PUT", "POST") and not stalled:
            stalled.append(path)
            time.sleep(20)

    store.fault = fault
    go(run, 4)
    assert stalled
    in_order(run, local_run)


def test_what_is_complete_stays_where_writes_are_refused(go, local_run, failing, monkeypatch):
    run, store = failing
    monkeypatch.setattr(run_lock, "PATIENCE_SECONDS", 2.0)
    go(run, 2)
    writes = []

    def fault(method, path):
        if method in ("PUT", "POST") and "checkpoints/4/" in path:
            writes.append(path)
        return 403 if len(writes) > 5 and method not in ("GET", "HEAD") else None

    store.fault = fault
    with pytest.raises(UserError, match=rf"^saving to {run}/checkpoints failed: [^\n]*$"):
        go(run, 4)
    store.fault = lambda method, path: None
    assert complete_steps(run) == [2]
    assert damage(checkpoint_folder(run, 2)) is None
    go(run, 4)
    assert losses(run) == losses(local_run)


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_a_bucket_that_is_not_there_is_named(scheme, request):
    request.getfixturevalue(f"{scheme}_bucket")
    with pytest.raises(UserError, match=f"^{scheme}://nobucket/run[^\n]*$"):
        run_lock.take(place(f"{scheme}://nobucket/run"))
