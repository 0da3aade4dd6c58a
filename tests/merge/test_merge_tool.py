"""tools/merge.py: checkpoints in, a checkpoint with its recipe out, and what it refuses."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from mmbert_jax.checkpoint import restore_params, save_params
from mmbert_jax.merge.ties import ties
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.model.heads import init_params

TOOL = Path(__file__).resolve().parents[2] / "tools" / "merge.py"
CONFIG = ModelConfig(vocab_size=50, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=24)


def run(*arguments):
    return subprocess.run(
        [sys.executable, str(TOOL), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        check=False,
    )


def perturb(params, seed, amount):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: (x + amount * rng.normal(size=x.shape)).astype(np.float32), params
    )


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A base and two models around it: (parameters, run folder) each."""
    folder = tmp_path_factory.mktemp("runs")
    base = jax.tree.map(np.asarray, init_params(CONFIG, 0))
    made = []
    for i, name in enumerate(("base", "one", "two")):
        params = perturb(base, seed=i, amount=0.01 * i)
        config = {"model": dataclasses.asdict(CONFIG), "data": {"row_length": 64, "corpus": "c"}}
        meta = {"phase": name, "step": i, "tokens": 100 * i, "config": config, "languages": [name]}
        save_params(folder / name, params, meta)
        made.append((params, folder / name))
    return made


def test_merges(checkpoints, tmp_path):
    (base, base_run), (one, one_run), (two, two_run) = checkpoints
    result = run(
        *(
            "--method",
            "ties",
            "--base",
            base_run,
            "--models",
            one_run,
            two_run / "checkpoints" / "2",
        ),
        *("--density", 0.3, "--weights", 1, 2, "--lambda", 0.9, "--output", tmp_path / "merged"),
    )
    assert result.returncode == 0, result.stderr
    merged, meta = restore_params(tmp_path / "merged")
    expected = jax.tree.map(
        lambda b, *m: ties(b, m, [1, 2], density=0.3, scale=0.9)[0], base, one, two
    )
    jax.tree.map(np.testing.assert_array_equal, merged, expected)
    recipe = meta["merge"]
    assert (recipe["method"], recipe["density"], recipe["lambda"], recipe["weights"]) == (
        "ties",
        0.3,
        0.9,
        [1, 2],
    )
    assert [parent["phase"] for parent in (recipe["base"], *recipe["models"])] == [
        "base",
        "one",
        "two",
    ]
    assert meta["languages"] == ["base", "one", "two"]
    table = result.stdout.splitlines()
    assert table[0].split()[:3] == ["tensors", "entries", "kept"]
    (wqkv,) = (line.split() for line in table if line.startswith("layers/attn/wqkv"))
    assert (wqkv[1], wqkv[2]) == (f"{2 * 32 * 96:,}", "30.0%")


def test_refuses(checkpoints, tmp_path):
    (_, base), (_, one), _ = checkpoints
    config = dataclasses.replace(CONFIG, num_layers=1)
    other = {
        "phase": "x",
        "step": 0,
        "tokens": 0,
        "config": {"model": dataclasses.asdict(config), "data": {}},
    }
    save_params(tmp_path / "smaller", jax.tree.map(np.asarray, init_params(config, 0)), other)
    output = tmp_path / "merged"
    for arguments, message in (
        (("--models", tmp_path / "smaller"), "config.model.num_layers is 1, the base's is 2"),
        (("--models", one, "--weights", 1, 2), "--weights has 2 numbers for 1 models"),
        (("--models", one, "--density", 1.5), "--density 1.5"),
        (("--models", tmp_path / "nowhere"), "nowhere"),
    ):
        result = run("--base", base, *arguments, "--output", output)
        assert result.returncode == 2, result.stdout
        assert result.stderr.startswith("error: ")
        assert message in result.stderr
        assert not output.exists()
    output.mkdir()
    (output / "mine.txt").write_text("")
    result = run("--base", base, "--models", one, "--output", output)
    assert result.returncode == 2
    assert "is not empty" in result.stderr
