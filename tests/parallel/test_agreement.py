"""Two processes of a job that read different text end before a step; tests/test_fingerprint.py has all other kinds."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from data.tiny_corpus import write_corpus
from tiny import tiny_config

ROOT = Path(__file__).resolve().parents[2]


def test_an_older_copy_of_the_corpus_is_refused_by_name(tmp_path):
    rows = {"l0": 200, "l1": 90}
    for name, of_copy in (("new", rows), ("old", rows | {"l1": 89})):
        write_corpus(tmp_path / name / "text", of_copy, row_length=64)
    config = tiny_config(model__vocab_size=2048, mesh__data=-1)
    (tmp_path / "tiny.py").write_text(
        "import json\nfrom ml_collections import ConfigDict\n\n\ndef get_config():\n"
        f"    return ConfigDict(json.loads({config.to_json()!r}))\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    words = [sys.executable, "-m", "mmbert_jax.train", "--workdir", str(tmp_path / "run")]
    words += ["--config", str(tmp_path / "tiny.py"), f"--coordinator_address={address}"]
    started = []
    for index, copy in enumerate(("new", "old")):
        own = ["--num_processes=2", f"--process_id={index}"]
        own.append(f"--config.data.corpus={tmp_path / copy / 'text'}")
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
        pipes = {"stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen([*words, *own], cwd=ROOT, env=environment, **pipes))
    for process in started:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 2, errors
        assert (
            "error: the processes of this job differ: corpus 'text' has other languages or rows:"
            " l1 (90 rows in process 0, 89 in process 1). Start all of them with the same"
        ) in " ".join(errors.split())
    assert not (tmp_path / "run").exists()
