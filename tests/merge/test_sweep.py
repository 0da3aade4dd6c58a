"""tools/merge_sweep.py: every score is that of the merge by itself, and a sweep goes on where it stopped."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from data.tiny_corpus import write_corpus
from ml_collections import ConfigDict
from stored_models import perturbed, write_checkpoint
from tiny import tiny_config

from mmbert_jax.checkpoint import open_manager, restore_params, save, save_params
from mmbert_jax.errors import UserError
from mmbert_jax.evaluate.heldout import by_group, evaluate
from mmbert_jax.merge.merge import merge
from mmbert_jax.merge.models import open_model
from mmbert_jax.merge.output import write_merged
from mmbert_jax.merge.recipe import make_recipe
from mmbert_jax.merge.sweep import best_by_group, grid, sweep
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.model.heads import init_params
from mmbert_jax.parallel.mesh import make_mesh

TOOL = Path(__file__).resolve().parents[2] / "tools" / "merge_sweep.py"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A base and two models around it, with a corpus that has held-out rows: run folders."""
    folder = tmp_path_factory.mktemp("runs")
    held_out = {"eng": 3, "fra": 2}
    corpus = write_corpus(folder / "corpus", held_out, row_length=64, held_out=held_out)
    config = tiny_config(data__corpus=str(corpus))
    config.model.vocab_size = 2048
    config.eval.groups = {"first": ("eng",), "second": ("fra",)}
    rng = np.random.default_rng(0)
    start = init_params(ModelConfig.from_config(config.model), 0)
    paths = []
    for i, name in enumerate(("base", "one", "two")):
        params = jax.tree.map(
            lambda x, i=i: (np.asarray(x) + 0.1 * i * rng.normal(size=x.shape)).astype(np.float32),
            start,
        )
        meta = {"phase": name, "step": i, "tokens": i, "config": config.to_dict()}
        save_params(folder / name, params, meta)
        paths.append(folder / name)
    return paths


def run(runs, output, *arguments):
    base, *models = runs
    command = [TOOL, "--base", base, "--models", *models, "--output", output, *arguments]
    return subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        check=False,
    )


def test_scores_are_those_of_the_merges(runs, tmp_path):
    output = tmp_path / "sweep"
    result = run(runs, output, "--density", 0.2, 1.0, "--weights", "1,1", "0.5,2")
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in output.iterdir()) == ["sweep.json", "sweep.png"]
    assert (output / "sweep.png").read_bytes().startswith(b"\x89PNG")
    points = json.loads((output / "sweep.json").read_text())["points"]
    assert list(points) == [
        *("base", str(runs[1]), str(runs[2])),
        *(f"ties {w} density {d} lambda 1" for w in ("1:1", "0.5:2") for d in ("0.2", "1")),
    ]

    # By way of the disk, as tools/merge.py and mmbert_jax.evaluate.heldout go.
    base, *models = (open_model(path) for path in runs)
    recipe = make_recipe("ties", 2, [0.5, 2.0], {"density": 0.2})
    write_merged(tmp_path / "merged", recipe, base, models, merge(recipe, base, models))
    score = evaluate(
        ConfigDict(base.meta["config"]),
        make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1]),
    )
    for name, path in (("base", runs[0]), ("ties 0.5:2 density 0.2 lambda 1", tmp_path / "merged")):
        results = score(restore_params(path)[0])
        assert points[name]["held_out"].keys() == {"eng", "fra"}
        for language, of_language in results.items():
            assert points[name]["held_out"][language] == pytest.approx(of_language, rel=1e-6)
        groups = by_group(results, base.meta["config"]["eval"]["groups"])
        assert points[name]["held_out_groups"]["first"] == pytest.approx(groups["first"], rel=1e-6)
    assert len({point["held_out_groups"]["all"]["loss"] for point in points.values()}) == 7

    # More values: what is there is not computed again, which a changed score would show.
    changed = json.loads((output / "sweep.json").read_text())
    changed["points"]["base"]["held_out_groups"]["all"]["loss"] = -1.0
    (output / "sweep.json").write_text(json.dumps(changed))
    result = run(runs, output, "--density", 0.2, 0.5)
    assert result.returncode == 0, result.stderr
    again = json.loads((output / "sweep.json").read_text())["points"]
    assert again["base"]["held_out_groups"]["all"]["loss"] == -1.0
    assert again.keys() - points.keys() == {"ties 1:1 density 0.5 lambda 1"}

    result = run(runs[:2], output, "--density", 0.2)
    assert result.returncode == 2
    assert "choose another --output" in result.stderr


def test_a_sweep_knows_its_models_and_its_text(tmp_path):
    """A run that was trained on, weights that were written anew and another text: refused, and by name."""
    for name in ("base", "one"):
        write_checkpoint(tmp_path / name, 1, 0.1)
    (tmp_path / "sweep").mkdir()
    scored = []

    def score(flat):
        scored.append(flat)
        return {"eng": {"loss": 1.0, "accuracy": 0.5, "targets": 10}}

    def go_on(text="a"):
        base, one = (open_model(tmp_path / name) for name in ("base", "one"))
        recipes = grid("ties", 1, [[1]], {"density": [0.5]})
        folder, evaluated_on = tmp_path / "sweep", {"text": {"corpus": text}}
        return sweep(folder, recipes, base, [one], score, {}, evaluated_on, lambda _: None)

    go_on()
    assert len(scored) == 3
    go_on()
    assert len(scored) == 3
    with pytest.raises(UserError, match="text corpus was a, and is b; choose another --output"):
        go_on("b")
    _, meta = restore_params(tmp_path / "one")
    with open_manager(tmp_path / "one", keep=2) as manager:
        save(manager, 5, {"params": perturbed(1, 0.1)}, meta | {"step": 5})
    with pytest.raises(UserError, match="models 1 step was 1, and is 5; choose another --output"):
        go_on()
    shutil.rmtree(tmp_path / "one")
    write_checkpoint(tmp_path / "one", 1, 0.2)
    with pytest.raises(UserError, match="models 1 sums was "):
        go_on()
    assert len(scored) == 3


def test_the_best_of_each_group():
    def point(first, second, **recipe):
        return {"held_out_groups": {"a": {"loss": first}, "b": {"loss": second}}, **recipe}

    points = {
        "base": point(0.0, 0.0),
        "x": point(1.0, 5.0, weights=[1]),
        "y": point(2.0, 4.0, weights=[2]),
    }
    assert best_by_group(points) == {"a": ("x", 1.0), "b": ("y", 4.0)}


def test_the_grid_is_every_combination():
    recipes = grid("ties", 2, [[1, 1], [1, 2]], {"density": [0.1, 0.2], "lambda": [0.5, 1.0, 2.0]})
    assert len({(r.weights, *r.settings.values()) for r in recipes}) == 12
    with pytest.raises(UserError, match="3 numbers for 2 models"):
        grid("ties", 2, [[1, 1, 1]], {})


def test_refuses_an_output_of_something_else(runs, tmp_path):
    (tmp_path / "mine.txt").write_text("")
    result = run(runs, tmp_path)
    assert result.returncode == 2
    assert "no sweep" in result.stderr
