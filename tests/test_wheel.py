"""The wheel is complete: what it holds trains from a config file of the user's own, anywhere."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from data.tiny_corpus import write_corpus

from mmbert_jax.metrics import read_metrics

ROOT = Path(__file__).resolve().parent.parent
CONFIG = """
from mmbert_jax.recipe import settings


def get_config():
    config = settings.published("small", "own")
    settings.set_row_length(config, 64)
    settings.set_rope_theta(config, 10_000.0)
    config.model.vocab_size, config.model.hidden_size, config.model.num_heads = 2048, 32, 2
    config.model.num_layers, config.model.intermediate_size = 2, 48
    config.data.sources = {"text": {"share": 1.0, "languages": ("eng",)}}
    config.data.temperature, config.mask.ratio = 0.5, 0.3
    config.data.loader_workers = 0
    config.train.batch_rows = config.train.microbatch_rows = config.train.batch_warmup_from_rows = 8
    config.train.tokens = 3 * 8 * 64
    config.log_every_steps = 1
    config.dtype, config.train.loss_chunk = "float32", 2048
    return config
"""


def test_a_wheel_trains_from_a_users_own_config(tmp_path):
    words = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    source = tmp_path / "source"  # a build leaves files beside what it builds
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "mmbert_jax", "configs", "tests"):
        (source / name).symlink_to(ROOT / name)
    subprocess.run([sys.executable, *words, "--wheel-dir", tmp_path, source], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == {str(path.relative_to(ROOT)) for path in (ROOT / "mmbert_jax").rglob("*.py")}

    home = tmp_path / "elsewhere"
    home.mkdir()
    (home / "own.py").write_text(CONFIG)
    write_corpus(home / "corpora", {"eng": 400}, row_length=64, held_out={"eng": 2})
    done = subprocess.run(
        [sys.executable, "-m", "mmbert_jax.train", "--config", "own.py"],
        cwd=home,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "installed"), "JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "run folder: runs/own-small  (another: --workdir RUN)" in done.stdout
    assert "corpus: corpora  (another: --config.data.corpus=FOLDER)" in done.stdout
    assert [r["step"] for r in read_metrics(home / "runs/own-small") if "loss" in r] == [1, 2, 3]
