"""Every command that the documentation tells a user to type is one that starts.

README.md and the headers of launchers and config files are read for commands. Each is parsed by the program that it
names, and a training command's config is checked as training would, against as many devices as stand beside it.
"""

import argparse
import ast
import functools
import importlib
import importlib.util
import json
import math
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from absl import flags
from jax.sharding import AbstractMesh

import mmbert_jax.train  # noqa: F401, defines its flags
from mmbert_jax.axes import AXES
from mmbert_jax.config import validate
from mmbert_jax.config_file import load, split_overrides
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.optim.schedules import phase_steps
from mmbert_jax.parallel.mesh import mesh_shape
from mmbert_jax.parallel.sharding import check_rows, param_shardings

ROOT = Path(__file__).resolve().parents[2]
SHELL = sorted((ROOT / "launch").glob("*.sh"))
PROGRAMS = [ROOT / "launch/local.py", ROOT / "mmbert_jax/train.py"]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
# What passes words of the form --config.x.y=value on to a config.
TAKES_FIELDS = ("tools/curriculum.py", "tools/compile_ahead.py")
# Accelerators of the machines that the published phases are planned for, and what the demo needs.
PUBLISHED, DEMO = 8, 1


def texts() -> dict[str, str]:
    """Name of a document -> its text: of a program the docstring, of a launcher the header."""
    found = {"README.md": (ROOT / "README.md").read_text()}
    for path in (*PROGRAMS, *CONFIGS):
        found[str(path.relative_to(ROOT))] = ast.get_docstring(ast.parse(path.read_text()))
    for path in (*SHELL, ROOT / "launch/gke_jobset.yaml"):
        comments = (line[1:] for line in path.read_text().splitlines() if line.startswith("#"))
        found[str(path.relative_to(ROOT))] = "\n".join(comments)
    jobset = yaml.safe_load((ROOT / "launch/gke_jobset.yaml").read_text())
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    found["launch/gke_jobset.yaml, command"] = pod["containers"][0]["command"][2]
    return found


def commands(text: str) -> list[str]:
    """The commands in a text, continuation lines joined, without what stands behind them; mentions are left out."""
    text = re.sub(r"\\\n\s*", "", text)
    starts = r"(?<![\w./])(?:[\w./]*python (?:-m mmbert_jax\.|tools/|launch/)|bash (?:tools|launch)/|sbatch --)"
    found = []
    for command in re.findall(rf"{starts}[^\n`]*", text):
        command = re.split(r"  +#|  +[A-Za-z(]|; ", command)[0].strip()
        if command.count('"') % 2:  # the command stood in quotation marks
            command = command.rpartition('"')[0]
        if "..." not in command and not command.endswith("mmbert_jax.train"):
            found.append(command)
    return found


ALL = [(name, command) for name, text in texts().items() for command in commands(text)]


def test_commands_are_found():
    """Those that are known to be there, whatever else; a launcher without one would be a fault of this file."""
    assert {name.partition(",")[0] for name, _ in ALL} >= {
        "README.md",
        *(str(path.relative_to(ROOT)) for path in (*PROGRAMS, *CONFIGS, *SHELL)),
        "launch/gke_jobset.yaml",
    }
    trained = [command for _, command in ALL if training(command)]
    assert len(trained) >= 17
    assert any("configs/decay_all.py" in command for command in trained)
    assert commands("say `python tools/a.py --b \\\n   c` and bash launch/x.sh d  # why")[0] == (
        "python tools/a.py --b c"
    )


def training(command: str) -> list[str] | None:
    """The words that reach mmbert_jax.train, of a command that starts it; None of another."""
    words = shlex.split(command)
    if "mmbert_jax.train" in words:
        return words[words.index("mmbert_jax.train") + 1 :]
    if words[0] == "sbatch":
        return words[words.index("launch/slurm.sh") + 1 :]
    if words[1:3] == ["launch/tpu_pod.sh", "train"]:
        return words[3:]
    if words[1] == "launch/local.py":
        return words[words.index("--") + 1 :]
    return None


def devices(name: str, command: str) -> int:
    """The number of devices that a training command is meant for, from what stands beside it."""
    text = texts()[name.partition(",")[0]]
    if name.startswith("configs/demo"):
        return DEMO
    if name.startswith(("configs/continue", "configs/own_language")):
        return 1
    if name.startswith("launch/tpu_pod.sh"):
        return int(re.search(r"export .*ACCELERATOR=v5litepod-(\d+)", text)[1])
    if name.startswith("launch/gke_jobset.yaml"):
        whole = (ROOT / "launch/gke_jobset.yaml").read_text()
        topology = re.search(r"gke-tpu-topology: (\S+)", whole)[1]
        return math.prod(map(int, topology.split("x")))
    if name.startswith("launch/slurm.sh"):
        nodes = re.search(r"--nodes (\d+)", command)
        gpus = re.search(r"#SBATCH --gpus-per-node=(\d+)", (ROOT / "launch/slurm.sh").read_text())
        return int(nodes[1] if nodes else 1) * int(gpus[1])
    if name == "launch/local.py":
        processes, each = re.search(r"--processes (\d+) --devices_per_process (\d+)", text).groups()
        return int(processes) * int(each)
    return PUBLISHED


@functools.cache
def check_model(model: str, shape: tuple[int, ...]) -> None:
    """Every dimension of the model divides over its axis; once for a model and a mesh."""
    param_shardings(ModelConfig.from_config(json.loads(model)), AbstractMesh(shape, AXES))


@pytest.mark.parametrize(("name", "command"), [x for x in ALL if training(x[1])])
def test_a_training_command_starts(name, command, monkeypatch):
    monkeypatch.chdir(ROOT)
    # What configs/continue.py and own_language.py start from, which take its shape.
    model = load(f"{ROOT}/configs/phase2.py").model.to_dict()
    monkeypatch.setattr(
        "mmbert_jax.checkpoint.read_meta", lambda path: {"config": {"model": model}}
    )
    overrides, others = split_overrides(training(command))
    given = dict(zip(others[::2], others[1::2], strict=True))  # no switches in these
    assert all(word.startswith("--") for word in given), others
    assert {word.removeprefix("--") for word in given} <= set(flags.FLAGS), others
    config = load(given["--config"], overrides)
    validate(config)
    assert phase_steps(config.train, config.data.row_length) > 0
    shape = mesh_shape(config.mesh, devices(name, command))
    mesh = AbstractMesh(shape, AXES)
    # Held-out rows are evaluated in batches of as many.
    check_rows(mesh, config.train.microbatch_rows, "config.train.microbatch_rows")
    check_model(json.dumps(config.model.to_dict()), shape)


class Parsed(Exception):
    """A program has parsed its arguments; `args[0]` is what it did not know."""


@pytest.mark.parametrize(
    ("name", "command"), [x for x in ALL if "python " in x[1] and "mmbert_jax.train" not in x[1]]
)
def test_a_tools_command_is_one_that_it_parses(name, command, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(command)
    if words[1] == "-m":
        program, module = f"{words[2]}", importlib.import_module(words[2])
        words = words[3:]
    else:
        program = words[1]
        spec = importlib.util.spec_from_file_location(Path(program).stem, ROOT / program)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        words = words[2:]
    parse = argparse.ArgumentParser.parse_known_args

    def stop(self, *args, **kwargs):
        raise Parsed(parse(self, *args, **kwargs)[1])

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
    monkeypatch.setattr(sys, "argv", [program, *words])
    with pytest.raises(Parsed) as parsed:
        module.main()
    unknown = parsed.value.args[0]
    if program in TAKES_FIELDS:
        unknown = split_overrides(unknown)[1]
    assert unknown == []


def test_shell_commands_name_what_is_there():
    """Scripts by their path, extras by their name; also the files that a text names without a command."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for name, text in texts().items():
        for path in re.findall(r"\b(?:tools|launch|configs|mmbert_jax|tests)/[\w/]+\.\w+\b", text):
            assert (ROOT / path).exists(), (name, path)
    for name, command in ALL:
        words = shlex.split(command)
        if words[:2] == ["bash", "tools/setup_env.sh"]:
            assert {word.strip("[]") for word in words[2:]} <= set(extras), (name, command)
