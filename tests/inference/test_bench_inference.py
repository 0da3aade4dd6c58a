"""The benchmark compares engines that compute the same, and counts what it says."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("matplotlib")

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools/bench"))
import inference as bench_inference  # noqa: E402


def test_writes_table_json_and_plot(environment, tmp_path):
    words = "--size tiny --vocab_size 300 --lengths normal_256 --sequences 5 --runs 2 --threads 1"
    command = [sys.executable, ROOT / "tools/bench/inference.py", *words.split()]
    command += ["--batch_tokens", 1024, "--output", tmp_path / "out"]
    result = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "out" / "inference.json").read_text())
    assert found["largest_difference_of_hidden_states"]["transformers sdpa"] < 1e-4
    engines = {r["engine"]: r for r in found["results"]}
    assert engines.keys() == {"mmbert_jax", "transformers sdpa, 3 at once"}
    tokens = sum(map(len, bench_inference.draw_sequences("normal_256", 5, 300)))
    for r in engines.values():
        assert len(r["seconds"]) == 2
        assert r["tokens"] == tokens
        assert r["tokens_per_second"] == pytest.approx(tokens / np.median(r["seconds"]))
    table = (tmp_path / "out" / "inference.md").read_text()
    assert table.count("| normal_256 |") == 2
    assert table in result.stdout
    assert (tmp_path / "out" / "inference.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("kind", "mean"), [("fixed_512", 512), ("normal_4096", 4096)])
def test_lengths_are_those_of_the_protocol(kind, mean):
    lengths = [len(ids) for ids in bench_inference.draw_sequences(kind, 1000, 300)]
    assert np.mean(lengths) == pytest.approx(mean, rel=0.03)
    assert np.std(lengths) == pytest.approx(bench_inference.LENGTHS[kind][1], rel=0.1)
    assert max(lengths) <= 8192


def test_halves_the_batch_until_it_fits():
    """As on a device with room for 3000 tokens; other errors are not taken for a lack of memory."""
    torch = bench_inference.torch
    sequences = [np.zeros(256, np.int32)] * 100

    def engine(_, batch_tokens):
        if batch_tokens > 3000:
            raise torch.OutOfMemoryError
        yield [], None

    assert bench_inference.largest_batch(engine, sequences, 1 << 14) == 2048

    def broken(_, batch_tokens):
        raise bench_inference.jax.errors.JaxRuntimeError("INTERNAL: something else")
        yield

    with pytest.raises(bench_inference.jax.errors.JaxRuntimeError):
        bench_inference.largest_batch(broken, sequences, 1 << 14)
    with pytest.raises(bench_inference.UserError, match="does not fit"):
        bench_inference.largest_batch(engine, [np.zeros(8192, np.int32)], 1 << 14)
