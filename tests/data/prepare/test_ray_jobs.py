"""Preparation on a Ray cluster: three nodes on this machine, one of which is lost in the middle."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from prepared import ROOT, content, to_jsonl
from ray_cluster import ray_cluster

pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster():
    with ray_cluster() as found:
        yield found


def test_a_node_that_is_lost_changes_no_byte(tmp_path, cluster, model, prepare):
    texts = [("de", f"{i} " + "Wort " * 200) for i in range(12_000)]
    (tmp_path / "text.jsonl").write_bytes(to_jsonl(texts + texts[:500]))
    address, process = cluster
    parts = tmp_path / "out" / "c.parts"
    text = ("--input", tmp_path / "text.jsonl", "--deduplicate", "exact")
    command = (*text, "--ray", address)
    with ThreadPoolExecutor() as pool:
        done = pool.submit(prepare, tmp_path / "out" / "c", *command)
        while not list(parts.glob("*.index")):
            assert not done.done(), done.result().stderr
            time.sleep(0.02)
        process.stdin.write("lose a node\n")
        process.stdin.flush()
        assert done.result().returncode == 0, done.result().stderr
    assert prepare(tmp_path / "c", *text).returncode == 0
    assert content(tmp_path / "out" / "c") == content(tmp_path / "c")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["c"]


def test_faults_of_jobs_and_of_clusters_are_one_line(tmp_path, cluster, prepare):
    (tmp_path / "a.jsonl").write_bytes(to_jsonl([("en", "good text")]) + b"{\n")
    for address, message in (
        (cluster[0], f"{tmp_path}/a.jsonl, line 2: invalid JSON"),
        ("127.0.0.1:9", "--ray 127.0.0.1:9: no Ray cluster answers"),
    ):
        done = prepare(tmp_path / "c", "--input", tmp_path / "a.jsonl", "--ray", address)
        assert done.returncode == 2
        *_, line = done.stderr.splitlines()
        assert line.startswith(f"error: {message}"), done.stderr


def test_without_ray_the_user_is_told_how_to_get_it(tmp_path, model):
    (tmp_path / "a.jsonl").write_bytes(to_jsonl([("en", "good text")]))
    (tmp_path / "ray.py").write_text("raise ImportError")
    tool = ROOT / "tools" / "prepare_corpus.py"
    done = subprocess.run(
        [
            *(sys.executable, str(tool), "--input", str(tmp_path / "a.jsonl"), "--ray", "auto"),
            *("--tokenizer", str(model), "--output", str(tmp_path / "c")),
        ],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.endswith("install it with `bash tools/setup_env.sh ray`\n")
