"""What is made of a speedrun's runs, against cases worked by hand and SciPy's distribution."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t as student

from mmbert_jax.config import validate
from mmbert_jax.config_file import load
from mmbert_jax.errors import UserError
from mmbert_jax.files import read_json
from mmbert_jax.report.speedrun import (
    Finished,
    bits_a_byte,
    compare,
    plot_speedrun,
    speedrun_table,
    steps_to,
)

ROOT = Path(__file__).resolve().parents[2]


def test_bits_a_byte_is_a_mean_over_languages():
    results = {"a": {"loss": math.log(4)}, "b": {"loss": math.log(2)}, "few": {"loss": 9.0}}
    languages = {"a": {"tokens": 10, "bytes": 40}, "b": {"tokens": 10, "bytes": 20}}
    # 2 bits a token and 4 bytes a token; 1 bit and 2 bytes.
    assert bits_a_byte(results, languages) == pytest.approx(0.5)
    with pytest.raises(UserError, match="held-out rows"):
        bits_a_byte(results, {})


def test_steps_to_a_result():
    curve = ((10, 4.0), (20, 3.0), (30, 3.5), (40, 2.0))
    assert steps_to(curve, 3.25) == pytest.approx(17.5)
    assert steps_to(curve, 2.5) == pytest.approx(30 + 10 * 2 / 3)
    assert steps_to(curve, 4.5) == 10
    assert steps_to(curve, 1.9) is None


def finished(bits: list[float]) -> list[Finished]:
    return [Finished(20, 2000, 1e12, 3.0, ((10, 2 * b), (20, b))) for b in bits]


def test_p_is_welchs():
    before, after = np.array([3.1, 3.0, 3.2, 3.05, 3.15]), np.array([2.9, 2.7, 3.0])
    table = compare({"first": finished(before.tolist()), "second": finished(after.tolist())})
    # Welch 1947, one-sided.
    of = [x.var(ddof=1) / len(x) for x in (after, before)]
    freedom = sum(of) ** 2 / sum(
        v**2 / (len(x) - 1) for v, x in zip(of, (after, before), strict=True)
    )
    expected = student.cdf((after.mean() - before.mean()) / math.sqrt(sum(of)), freedom)
    assert table["first"]["p"] is None
    assert table["second"]["p"] == pytest.approx(expected)
    assert table["second"]["spread"] == pytest.approx(after.std(ddof=1))
    assert table["second"]["seeds"] == 3
    # Each seed's straight line from twice its result down to it, to the first's mean.
    goal = before.mean()
    assert table["second"]["steps_to_first"] == pytest.approx(
        np.mean([10 + 10 * (2 * b - goal) / b for b in after])
    )
    assert compare({"only": finished([3.0])})["only"]["spread"] is None


def test_table_and_plot(tmp_path):
    table = compare({"first": finished([3.0, 3.1]), "second": finished([4.0, 4.2])})
    lines = speedrun_table(table).splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
    assert "| - |" in lines[-1]  # it does not get to the first's result
    plot_speedrun(table, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_entries_are_valid_and_leave_what_is_fixed():
    module = {}
    exec((ROOT / "configs" / "speedrun.py").read_text(), module)
    track = load(f"{ROOT / 'configs' / 'speedrun.py'}:published")
    for entry in module["ENTRIES"]:
        config = load(f"{ROOT / 'configs' / 'speedrun.py'}:{entry}")
        validate(config)
        assert config.data == track.data
        assert config.eval == track.eval
        assert config.train.tokens == track.train.tokens
    module["ENTRIES"]["unfair"] = {"data.max_passes": 1.0}
    with pytest.raises(UserError, match=r"data\.max_passes"):
        module["get_config"]("unfair")
    with pytest.raises(UserError, match="no entry"):
        module["get_config"]("unknown")


@pytest.mark.slow
def test_one_run_goes_on_and_is_read(tmp_path):
    """Text to table at the track's own shape, a step of it."""

    def call(*arguments):
        command = [sys.executable, str(ROOT / "tools" / "speedrun.py"), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True)

    data = tmp_path / "data"
    made = call("data", "--output", data)
    assert made.returncode == 0, made.stderr
    assert call("data", "--output", data).stdout == ""
    options = ("--data", data, "--entries", "stable_adamw", "--seeds", 1)
    options += ("--set", "train.tokens=16384,8192")
    ran = call("run", *options)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("bits a byte") == 2
    assert call("run", *options).stdout == ""
    shown = call("table", "--data", data, "--output", tmp_path / "table.json")
    assert shown.returncode == 0, shown.stderr
    two = read_json(tmp_path / "table.json")["stable_adamw,train.tokens=16384"]
    assert two["steps"] == 2
    assert two["tokens"] == 16384
    # A model that knows nothing needs 13 bits for one of 8,192 pieces.
    assert 0.5 < two["bits"] < 13
    assert (tmp_path / "table.png").exists()
    missing = call("table", "--data", data, "--entries", "muon")
    assert missing.returncode == 2
    assert "run it first" in missing.stderr
