"""Another process that holds a run folder's lock, on a disk or in a bucket."""

import subprocess
import sys

_PROGRAM = """
import json, os, signal, sys
from mmbert_jax import run_lock
from mmbert_jax.places import place
run = place(sys.argv[1])
vars(run_lock).update(json.loads(sys.argv[3]))
run_lock.take(run)
print("held", flush=True)
if sys.argv[2] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
while True:
    sys.stdin.readline()
    run_lock.check()
    (run / "written").touch()
"""


def start_holder(run, how: str, constants: str) -> subprocess.Popen:
    """Starts it, and returns when it has the lock; it writes a file at every line that it is given.

    Args:
      how: "killed" for one that gets a SIGKILL at once.
      constants: of run_lock, in JSON.
    """
    words = [sys.executable, "-W", "ignore", "-c", _PROGRAM, str(run), how, constants]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    return process
