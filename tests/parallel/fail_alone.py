"""Run by test_processes.py as each process of two: trains once for each stage, and in process 1 alone that stage fails.

    python fail_alone.py FOLDER CONFIG_JSON STAGE=PORT:WORKDIR...

A stage's job is a fork of this program, which has imported everything already; what it prints is in FOLDER/STAGE.INDEX.
Prints a line for each stage: its name, its exit status and when it ended. What is harmed is as deep in the program as
can be: a file's manifest, the disk.
"""

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

from absl import app
from ml_collections import ConfigDict

import mmbert_jax.checkpoint
import mmbert_jax.data.pipeline
import mmbert_jax.evaluate.heldout
import mmbert_jax.run_lock
import mmbert_jax.step
from mmbert_jax import train
from mmbert_jax.errors import UserError, run_main


def refuses(*arguments, **named):
    say_when()
    raise UserError("the injected fault")


def crashes(*arguments, **named):
    say_when()
    raise RuntimeError("the injected fault")


def say_when() -> None:
    print("FAULT", time.time(), flush=True)


def harm(stage: str, config: ConfigDict) -> None:
    if stage == "config":
        config.mask.ratio = -1.0
    elif stage == "corpus":
        mmbert_jax.data.pipeline.find_corpora = refuses
    elif stage == "init_from":
        mmbert_jax.checkpoint.damage = lambda folder: say_when() or "the injected fault"
    elif stage == "restore":
        mmbert_jax.checkpoint._restore = crashes
    elif stage == "compile":
        mmbert_jax.step.make_train_step = crashes
    elif stage == "data":
        read = mmbert_jax.data.pipeline._Microbatches.__getitem__
        mmbert_jax.data.pipeline._Microbatches.__getitem__ = lambda self, index: (
            read(self, index) if index < 4 else crashes()
        )
    elif stage == "save":
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, resource.RLIM_INFINITY))
    elif stage == "evaluation":
        mmbert_jax.evaluate.heldout.held_out_losses = refuses
    elif stage == "folders":
        mmbert_jax.run_lock.SIGHT_SECONDS = 2.0
    else:
        raise AssertionError(stage)


def run(stage: str, port: str, workdir: str, config: ConfigDict, index: int) -> None:
    """What `python -m mmbert_jax.train` does, with a config that only this program knows."""
    if stage != "init_from":
        config.init_from = ""
    if index == 1:
        harm(stage, config)
    file = Path(f"{workdir}.{index}.py")
    file.write_text(
        "import json\nfrom ml_collections import ConfigDict\n\n\ndef get_config():\n"
        f"    return ConfigDict(json.loads({config.to_json()!r}))\n"
    )
    words = ["train", "--config", str(file), "--workdir", workdir]
    words += ["--coordinator_address", f"127.0.0.1:{port}", "--num_processes", "2"]
    words += ["--process_id", str(index)]
    run_main(lambda: app.run(train.main, argv=words, flags_parser=train.parse_flags))


def wait(pid: int, seconds: float) -> int:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main() -> None:
    folder, config, index = Path(sys.argv[1]), Path(sys.argv[2]), int(os.environ["JAX_PROCESS_ID"])
    for words in sys.argv[3:]:
        stage, _, place = words.partition("=")
        port, _, workdir = place.partition(":")
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            with (folder / f"{stage}.{index}").open("wb") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            run(stage, port, workdir, ConfigDict(json.loads(config.read_text())), index)
            sys.exit(0)
        # Whoever is not there in time hangs, which the test is about.
        print(stage, wait(pid, 120), time.time(), flush=True)


if __name__ == "__main__":
    main()
