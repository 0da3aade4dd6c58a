"""tools/merge.py: models in, a model of the same kind with its recipe out, and what it refuses."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from by_recipe import ties
from safetensors.numpy import load_file
from stored_models import CONFIG, write_checkpoint, write_folder

from mmbert_jax.checkpoint import open_manager, restore_params, save
from mmbert_jax.hf.load import load_hf
from mmbert_jax.hf.names import to_theirs
from mmbert_jax.hf.weights import load_weights, open_weights
from mmbert_jax.merge.averages import slerp

TOOL = Path(__file__).resolve().parents[2] / "tools" / "merge.py"


def run(*arguments):
    return subprocess.run(
        [sys.executable, str(TOOL), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        check=False,
    )


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A base and two models around it: (parameters, run folder) each."""
    folder = tmp_path_factory.mktemp("runs")
    return [
        (write_checkpoint(folder / name, seed=i, amount=0.01 * i), folder / name)
        for i, name in enumerate(("base", "one", "two"))
    ]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same as Hugging Face folders in shards, the first in bfloat16."""
    folder = tmp_path_factory.mktemp("folders")
    names = (("base", "bfloat16"), ("one", "float32"), ("two", "float32"))
    return [
        (write_folder(folder / name, seed=i, amount=0.01 * i, dtype=dtype), folder / name)
        for i, (name, dtype) in enumerate(names)
    ]


def test_merges_checkpoints(checkpoints, tmp_path):
    (base, base_run), (one, one_run), (two, two_run) = checkpoints
    result = run(
        *("--method", "ties", "--base", base_run, "--density", 0.3, "--lambda", 0.9),
        *("--models", one_run, two_run / "checkpoints" / "2", "--weights", 1, 2),
        *("--output", tmp_path / "merged"),
    )
    assert result.returncode == 0, result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]
    merged, meta = restore_params(tmp_path / "merged")
    expected = jax.tree.map(
        lambda b, *m: ties(b, m, [1, 2], density=0.3, scale=0.9)[0], base, one, two
    )
    jax.tree.map(np.testing.assert_array_equal, merged, expected)
    recipe = meta["merge"]
    assert [recipe[key] for key in ("method", "density", "lambda")] == ["ties", 0.3, 0.9]
    assert recipe["weights"] == [1, 2]
    assert recipe["base"].items() >= {"path": str(base_run), "step": 0, "tokens": 0}.items()
    assert [parent["phase"] for parent in recipe["models"]] == ["one", "two"]
    assert meta["languages"] == ["base", "one", "two"]
    assert (meta["config"]["data"]["row_length"], meta["step"], meta["phase"]) == (66, 0, "merged")

    table = result.stdout.splitlines()
    assert table[0].split() == ["tensors", "entries", "moved", "kept", "changed", "conflicts"]
    (wqkv,) = (line.split() for line in table if line.startswith("layers/*/attn/wqkv"))
    assert (wqkv[1], wqkv[3]) == (f"{2 * 64 * 192:,}", "30.00%")
    report = json.loads((tmp_path / "merged" / "merge.json").read_text())
    assert report["method"] == "ties"
    assert len(report["tensors"]) == 17
    assert report["tensors"]["layers/1/attn/wqkv"]["kept"] == pytest.approx(0.3, abs=1e-4)
    deltas = [
        ties(
            base["layers"]["1"]["attn"]["wqkv"],
            [m["layers"]["1"]["attn"]["wqkv"]],
            [1],
            density=0.3,
        )
        for m in (one, two)
    ]
    signs = np.sign([d - base["layers"]["1"]["attn"]["wqkv"] for d, _ in deltas])
    conflicts = np.count_nonzero(signs[0] * signs[1] < 0) / np.count_nonzero(signs.any(axis=0))
    assert report["tensors"]["layers/1/attn/wqkv"]["conflicts"] == pytest.approx(
        conflicts, abs=1e-4
    )


def test_averages_all_checkpoints_of_runs_exponentially(checkpoints, tmp_path):
    """The oldest first, through the runs in their order; a single checkpoint stands for itself."""
    (base, base_run), (one, one_run), (two, _) = checkpoints
    longer = tmp_path / "longer"
    _, meta = restore_params(base_run)
    with open_manager(longer, keep=3) as manager:
        for step, params in ((10, base), (20, two)):
            save(manager, step, {"params": params}, meta | {"step": step})
    output = tmp_path / "averaged"
    models = (one_run / "checkpoints" / "1", longer)
    result = run("--method", "ema", "--decay", 0.5, "--models", *models, "--output", output)
    assert result.returncode == 0, result.stderr
    merged, meta = restore_params(output)
    assert meta["merge"]["weights"] == pytest.approx([1 / 7, 2 / 7, 4 / 7])
    assert [parent["step"] for parent in meta["merge"]["models"]] == [1, 10, 20]
    jax.tree.map(
        lambda m, x, y, z: np.testing.assert_allclose(m, (x + 2 * y + 4 * z) / 7, atol=1e-6),
        *(merged, one, base, two),
    )


def test_merges_hugging_face_folders(folders, tmp_path):
    """A folder that is complete: weights in the base's dtype, config, tokeniser; no pickle, and nothing of the inputs'
    other files."""
    (_, base), (one, one_folder), (two, two_folder) = folders
    result = run(
        "--base", base, "--models", one_folder, two_folder, "--output", tmp_path / "merged"
    )
    assert result.returncode == 0, result.stderr
    names = sorted(path.name for path in (tmp_path / "merged").iterdir())
    assert names == [
        *("README.md", "config.json", "merge.json", "mmbert_jax_export.json"),
        *("model.safetensors", "tokenizer.json"),
    ]
    for name in ("config.json", "tokenizer.json"):
        assert (tmp_path / "merged" / name).read_bytes() == (base / name).read_bytes()
    tensors = load_file(tmp_path / "merged" / "model.safetensors")
    stored = load_weights(base)
    theirs = [to_theirs(params, CONFIG) for params in (one, two)]
    for name, tensor in tensors.items():
        assert tensor.dtype == ml_dtypes.bfloat16
        expected, _ = ties(
            stored[name].astype(np.float32), [t[name] for t in theirs], [1, 1], density=0.5
        )
        np.testing.assert_array_equal(tensor, expected.astype(ml_dtypes.bfloat16), err_msg=name)
    assert load_hf(tmp_path / "merged")[1].hidden_size == 64
    # Its own folder may be written again, in another way.
    result = run(
        *("--method", "slerp", "--t", 0.25, "--models", one_folder, two_folder),
        *("--output", tmp_path / "merged"),
    )
    assert result.returncode == 0, result.stderr
    again = load_file(tmp_path / "merged" / "model.safetensors")
    for name, tensor in again.items():
        np.testing.assert_array_equal(tensor, slerp(theirs[0][name], theirs[1][name], 0.25))
    assert json.loads((tmp_path / "merged" / "merge.json").read_text())["weights"] == [0.75, 0.25]


def test_reads_one_tensor_at_a_time(folders):
    """Shards are opened for one tensor; shapes come without reading any."""
    _, (one, one_folder), _ = folders
    shapes, read = open_weights(one_folder)
    theirs = to_theirs(one, CONFIG)
    assert shapes == {name: x.shape for name, x in theirs.items()}
    assert len(list(one_folder.glob("*.safetensors"))) > 2
    np.testing.assert_array_equal(
        read("model.layers.1.mlp.Wi.weight"), theirs["model.layers.1.mlp.Wi.weight"]
    )


RECIPE = """\
merge_method: ties
base_model: {base}
models:
  - model: {one}
    parameters: {{weight: 1}}
  - model: {two}
    parameters: {{weight: 2}}
parameters:
  density: 0.3
"""


def test_a_recipe_is_what_its_flags_are(checkpoints, tmp_path):
    (_, base), (_, one), (_, two) = checkpoints
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(base=base, one=one, two=two))
    flags = ("--base", base, "--models", one, two, "--weights", 1, 2, "--density", 0.3)
    for name, arguments in (("a", flags), ("b", ("--recipe", tmp_path / "recipe.yaml"))):
        result = run(*arguments, "--output", tmp_path / name)
        assert result.returncode == 0, result.stderr
    (a, of_a), (b, of_b) = (restore_params(tmp_path / name) for name in ("a", "b"))
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert of_a["merge"] | {"density": [0.3, 0.3]} == of_b["merge"]


REFUSED = {
    "a model of another shape": ("--models {smaller} --base {base}", "has shape"),
    "a model of other layers": ("--models {deeper} --base {base}", "num_layers is 3, that of"),
    "another head": ("--models {classifier} --base {base}", "config.json: architectures is"),
    "another tokeniser": ("--models {spelled} --base {base}", "has another tokeniser than"),
    "two kinds": ("--models {one} {run} --method linear", "is a checkpoint and"),
    "weights that do not fit": ("--models {one} --base {base} --weights 1 2", "--weights has 2 numbers for 1"),
    "a weight of 0": ("--models {one} --base {base} --weights 0", "above 0"),
    "a density above 1": ("--models {one} --base {base} --density 1.5", "--density 1.5"),
    "a setting of another method": ("--models {one} --method linear --density 0.5", "--density says nothing"),
    "no base": ("--models {one}", "needs --base"),
    "a base that nothing is added to": ("--models {one} --method linear --base {base}", "leave it out"),
    "three models on an arc": ("--models {one} {one} {one} --method slerp", "give two --models"),
    "weights of an average by age": ("--models {one} {two} --method ema --weights 1 2", "--decay does"),
    "a model that is not there": ("--models nowhere --base {base}", "nowhere"),
    "itself as output": ("--models {one} --base {base} --output {base}", "would overwrite"),
    "pickled weights": ("--models {pickled} --base {base}", "pickled weights"),
    "a recipe and more": ("--recipe {recipe} --models {one}", "--models and --recipe: write it into"),
    "a recipe's mistake": ("--recipe {recipe}", "recipe.yaml: parameters.density 2 is outside"),
    "a checkpoint in another dtype": ("--models {run} --method linear --dtype float16", "checkpoints are float32"),
    "somebody's folder as output": ("--models {one} --base {base} --output {mine}", "no export wrote"),
}  # fmt: skip


def test_refuses(folders, checkpoints, tmp_path):
    """In one process, since starting one takes longer than all refusals together."""
    places = {name: path for name, (_, path) in zip(("base", "one", "two"), folders, strict=True)}
    places["run"] = checkpoints[1][1]
    for name in ("smaller", "deeper", "classifier", "spelled", "pickled", "mine"):
        places[name] = tmp_path / name
    for name in ("smaller", "deeper", "classifier", "spelled", "pickled"):
        shutil.copytree(places["one"], places[name])
    tokenizer = json.loads((places["spelled"] / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (places["spelled"] / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = json.loads((places["deeper"] / "config.json").read_text())
    config |= {"num_hidden_layers": 3, "layer_types": None}
    (places["deeper"] / "config.json").write_text(
        json.dumps({k: v for k, v in config.items() if v is not None})
    )
    config = json.loads((places["classifier"] / "config.json").read_text())
    config |= {"architectures": ["ModernBertForSequenceClassification"]}
    (places["classifier"] / "config.json").write_text(json.dumps(config))
    for shard in places["pickled"].glob("model*"):
        shard.unlink()
    (places["pickled"] / "pytorch_model.bin").write_bytes(b"")
    index = json.loads((places["smaller"] / "model.safetensors.index.json").read_text())
    del index["weight_map"]["model.layers.1.mlp.Wi.weight"]
    (places["smaller"] / "model.safetensors.index.json").write_text(json.dumps(index))
    places["mine"].mkdir()
    (places["mine"] / "mine.txt").write_text("")
    places["recipe"] = tmp_path / "recipe.yaml"
    places["recipe"].write_text(
        RECIPE.format(**places | {"two": places["one"]}).replace("0.3", "2")
    )
    output = tmp_path / "merged"
    lines = [arguments.format(**places) for arguments, _ in REFUSED.values()]
    script = """
import sys
from mmbert_jax.errors import UserError
sys.path.insert(0, sys.argv[1])
from merge import main
for line in sys.stdin.read().splitlines():
    sys.argv[1:] = line.split()
    try:
        main()
    except UserError as error:
        print("refused:", str(error).replace(chr(10), " "), flush=True)
"""
    lines = [line if "--output" in line else f"{line} --output {output}" for line in lines]
    result = subprocess.run(
        [sys.executable, "-c", script, str(TOOL.parent)],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    refusals = result.stdout.splitlines()
    assert len(refusals) == len(REFUSED), result.stdout
    for (what, (_, message)), refusal in zip(REFUSED.items(), refusals, strict=True):
        assert refusal.startswith("refused: "), what
        assert message in refusal, what
    assert not output.exists()
    assert [path.name for path in places["mine"].iterdir()] == ["mine.txt"]
    assert not list(tmp_path.glob(".*"))


def test_the_command_line_refuses_in_one_line(checkpoints, tmp_path):
    result = run("--models", checkpoints[1][1], "--output", tmp_path / "merged")
    assert result.returncode == 2
    assert result.stderr.startswith("error: --method ties needs --base")
    assert not (tmp_path / "merged").exists()
