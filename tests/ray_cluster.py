"""A Ray cluster of three nodes on this machine, in a process of its own: Ray forks, which a process with JAX may not.

Run as a program it prints the cluster's address, loses a node for a line on its standard input, and ends with that.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def ray_cluster() -> Iterator[tuple[str, subprocess.Popen]]:
    """Its address, and the process to write a line to when a node is to be lost."""
    process = subprocess.Popen(
        [sys.executable, __file__],
        env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    for line in process.stdout:  # Ray prints, too
        if line.startswith("cluster "):
            break
    else:
        raise AssertionError("the Ray cluster has ended")
    try:
        yield line.split()[1], process
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()


def _run() -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    _, lost = [cluster.add_node(num_cpus=1) for _ in range(2)]
    print("cluster", cluster.address, flush=True)
    if sys.stdin.readline():
        cluster.remove_node(lost, allow_graceful=False)
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    _run()
