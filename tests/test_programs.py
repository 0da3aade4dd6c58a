"""Every program that writes: on a disk that is full, on one that can only be read, in buckets, and with numbers that
are none.

A disk that refuses gives one line with the place and the reason, and nothing half written; the same command works when
there is room. With everything in a bucket, what is written is what is written on a disk.
"""

import dataclasses
import importlib
import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from data.tiny_corpus import write_corpus
from flax.traverse_util import flatten_dict
from programs import call, module
from small_tokenizer import write_small_tokenizer
from tiny import tiny_config

from mmbert_jax import buckets
from mmbert_jax.checkpoint import restore_params, save_params
from mmbert_jax.checksums import sha256
from mmbert_jax.config import to_json
from mmbert_jax.data.tokenizer import load_tokenizer
from mmbert_jax.data.tokenizer_identity import describe_tokenizer
from mmbert_jax.files import read_json, write_json
from mmbert_jax.goodput import Timeline
from mmbert_jax.hf.config import to_hf
from mmbert_jax.hf.export import MARKER
from mmbert_jax.hf.names import to_theirs
from mmbert_jax.hf.weights import save_weights
from mmbert_jax.inference.classes import Class
from mmbert_jax.inference.compile_cache import use_compile_cache
from mmbert_jax.inference.stream import Record
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.model.heads import SEQUENCES, HeadConfig, init_params
from mmbert_jax.places import Place, files_under, place
from mmbert_jax.run import TIMELINE, is_run
from mmbert_jax.train import train

CONFIG = ModelConfig(
    vocab_size=332, hidden_size=64, num_layers=2, num_heads=2, intermediate_size=48
)
SIZE = 8 << 20  # bytes of the disk
WORDS = "the cat and the dog is a land is the end of an island and that is all there is".split()
RESULTS = {"eng": {"loss": 1.0, "accuracy": 0.5, "targets": 7}}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """What the programs read: a run, a Hugging Face folder, texts, a corpus, a config."""
    folder = tmp_path_factory.mktemp("made")
    make(folder, folder)
    return folder


def make(folder: Path, lies_at: Place) -> None:
    """Writes it; the run knows its corpus where the folder is going to lie."""
    tokenizer = load_tokenizer(write_small_tokenizer(folder / "hf"))
    params = init_params(CONFIG, 0)
    tensors = to_theirs(params, CONFIG)
    save_weights(folder / "hf", {name: np.asarray(x) for name, x in tensors.items()}, 10**9)
    write_json(folder / "hf" / "config.json", to_hf(CONFIG, 128, "float32"))
    rows = {"eng": 20, "fao": 5}
    corpus = write_corpus(folder / "corpus", rows, row_length=64, held_out=rows)
    write_small_tokenizer(corpus / "tokenizer")
    manifest = json.loads((corpus / "manifest.json").read_text())
    manifest["tokenizer"] = describe_tokenizer(tokenizer)
    write_json(corpus / "manifest.json", manifest)
    config = tiny_config(data__corpus=str(lies_at / "corpus"), model__vocab_size=2048)
    trained = config.copy_and_resolve_references()
    trained.model = dataclasses.asdict(CONFIG)
    meta = {
        "phase": "tiny",
        "step": 3,
        "tokens": 5,
        "tokenizer": {"sha256": tokenizer.sha256, "vocab_size": tokenizer.vocab_size},
        "config": trained.to_dict(),
    }
    save_params(folder / "run", params, meta)
    (folder / "run" / "config.json").write_text(to_json(trained))
    head = HeadConfig(SEQUENCES, ("no", "yes"))
    config = trained.to_dict() | {"head": dataclasses.asdict(head)}
    save_params(folder / "classes", init_params(CONFIG, 1, head), meta | {"config": config})
    step = {"step": 1, "tokens": 512, "loss": 6.0, "learning_rate": 1e-3, "grad_norm": 1.0}
    line = json.dumps(step | {"tokens_per_second": 1.0, "data_wait": 0.0})
    (folder / "run" / "metrics.jsonl").write_text(line + "\n")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 20)) + f" {i}." for i in range(60)]
    for name, end in (("text", ""), ("masked", " <mask>")):
        lines = (json.dumps({"text": text + end, "language": "eng"}) + "\n" for text in texts)
        (folder / f"{name}.jsonl").write_text("".join(lines))
    lines = (json.dumps({"text": f"ខ្មែរ ភាសា {i}", "language": "khm"}) + "\n" for i in range(30))
    (folder / "khmer.jsonl").write_text("".join(lines))
    write_json(folder / "held_out.json", {"held_out": RESULTS})
    (folder / "counts.csv").write_text("language,tokens\neng,700\nfao,300\n")
    (folder / "tiny.py").write_text(
        "from tests.tiny import tiny_config\n\n\ndef get_config():\n    return tiny_config()\n"
    )


ENCODE, FILL_MASK = "mmbert_jax.inference.encode", "mmbert_jax.inference.fill_mask"
PREDICT = "mmbert_jax.inference.predict"
HELD_OUT = "mmbert_jax.evaluate.heldout"
FOLDERS = "--method linear --models {made}/hf {made}/hf"
CHECKPOINTS = "--method linear --models {made}/run {made}/run"
COMMANDS = {
    "encode": (ENCODE, "--checkpoint {made}/hf --input {made}/text.jsonl --output {out}.jsonl"),
    "encode to npy": (
        ENCODE,
        "--checkpoint {made}/hf --input {made}/text.jsonl --output {out}.npy",
    ),
    "fill_mask": (
        FILL_MASK,
        "--checkpoint {made}/hf --input {made}/masked.jsonl --output {out}.jsonl",
    ),
    "predict": (
        PREDICT,
        "--checkpoint {made}/classes --tokenizer {made}/hf --input {made}/text.jsonl --output {out}.jsonl",
    ),
    "heldout": (HELD_OUT, "--checkpoint {made}/run --output {out}.json"),
    "make_cldr_text": ("make_cldr_text", "--documents 1 --output {out}.jsonl"),
    "train_tokenizer": (
        "train_tokenizer",
        "--input {made}/text.jsonl --vocab_size 300 --output {out}",
    ),
    "prepare_corpus": (
        "prepare_corpus",
        "--input {made}/text.jsonl --tokenizer {made}/hf --workers 1 --row_length 64 --output {out}",
    ),
    "curriculum": ("curriculum", "--input {made}/text.jsonl --languages published --output {out}"),
    "import_hf": ("import_hf", "--model {made}/hf --output {out}"),
    "export_hf": ("export_hf", "--checkpoint {made}/run --tokenizer {made}/hf --output {out}"),
    "merge of folders": ("merge", f"{FOLDERS} --output {{out}}"),
    "merge of checkpoints": ("merge", f"{CHECKPOINTS} --output {{out}}"),
    "merge_sweep": ("merge_sweep", f"{CHECKPOINTS} --output {{out}}"),
    "shrink": ("shrink", "--checkpoint {made}/run --hidden_size 32 --output {out}"),
    "trim_vocabulary": (
        "trim_vocabulary",
        "--model {made}/hf --input {made}/text.jsonl --output {out}",
    ),
    "trim_vocabulary of a run": (
        "trim_vocabulary",
        "--model {made}/run --tokenizer {made}/hf --input {made}/text.jsonl --output {out}",
    ),
    "extend_vocabulary": (
        "extend_vocabulary",
        "--checkpoint {made}/run --tokenizer {made}/hf --input {made}/khmer.jsonl --keep_text {made}/text.jsonl"
        " --output {out}",
    ),
    "language_report": (
        "language_report",
        "--before {made}/held_out.json --after {made}/held_out.json --output {out}",
    ),
    "run_report": ("run_report", "--run {made}/run --output {out}.html"),
    "mixture_report": (
        "mixture_report",
        "--config {made}/tiny.py --corpus {made}/corpus --counts {made}/counts.csv:tokens --output {out}",
    ),
    "train": (None, ""),
}
# What they have appended is kept, and gone on with.
GROWING = {
    "encode",
    "encode to npy",
    "fill_mask",
    "predict",
    "curriculum",
    "merge_sweep",
    "prepare_corpus",
    "train",
}
# Those that take long when they succeed, or whose parts are replaced here.
NOT_AGAIN = {"curriculum", "export_hf", "trim_vocabulary of a run", "train"}


def replace_what_takes_long(name, program, monkeypatch, evaluation=True):
    """What computes, and is not what this is about."""
    if name == "heldout" and evaluation:
        monkeypatch.setattr(
            program, "evaluate", lambda config, mesh, draws=1: lambda params: RESULTS
        )
    elif name == "merge_sweep":
        monkeypatch.setattr(program, "make_score", lambda config, model: lambda params: RESULTS)
    elif name == "curriculum":
        monkeypatch.setattr(program, "execute", lambda command, out: 0.0)
    elif name == "make_cldr_text":
        cldr_text = importlib.import_module("mmbert_jax.data.cldr_text")
        monkeypatch.setattr(cldr_text, "languages", lambda: ["de", "en"])


def run(name, made, out, monkeypatch, evaluation=True) -> int:
    """Runs a program in this process, with an `evaluation` that is replaced or real; its exit status."""
    program_name, arguments = COMMANDS[name]
    if name == "train":
        config = tiny_config(
            data__corpus=str(made / "corpus"), model__vocab_size=2048, mesh__data=8
        )

        def main():
            train(config, out)
    else:
        program = module(program_name if "." in program_name else f"tools/{program_name}")
        replace_what_takes_long(name, program, monkeypatch, evaluation)
        main = program.main
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", os.environ["JAX_COMPILATION_CACHE_DIR"])
    return call(main, [name, *arguments.format(made=made, out=out).split()], monkeypatch)


@pytest.fixture(scope="module", params=["full", "read-only"])
def disk(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    words = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("needs a mount of its own")
    yield request.param, folder
    subprocess.run(["umount", str(folder)], check=True)


def remount(folder, how):
    subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)


def fill(folder, room):
    """Leaves so many bytes on the disk."""
    (folder / "filler").write_bytes(bytes(shutil.disk_usage(folder).free - room))


# orbax leaves what it had begun when a save fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", COMMANDS)
def test_one_line_and_nothing_half_there(name, disk, made, monkeypatch, capsys):
    kind, folder = disk
    if name == "make_cldr_text":
        pytest.importorskip("babel")
    if kind == "full":
        reason = "No space left on device"
        # No page is left, or one: room for a small file, and for the beginning of a large one.
        fill(folder, 4096 if name in ("import_hf", "export_hf", "prepare_corpus") else 0)
    else:
        reason = "Read-only file system"
        remount(folder, "ro")
    out = folder / "out"
    try:
        assert run(name, made, out, monkeypatch) == 2
        *_, line = capsys.readouterr().err.splitlines()
        assert re.match(f"error: .*{re.escape(str(folder))}.*{reason}", line), line
        assert ".partial" not in line
        left = {path.name for path in folder.iterdir()} - {"filler"}
        assert not left or name in GROWING
        assert not [path for path in folder.rglob("*") if path.name.startswith(".")]
        if name not in NOT_AGAIN:
            remount(folder, "rw")
            (folder / "filler").unlink(missing_ok=True)
            assert run(name, made, out, monkeypatch) == 0
    finally:
        remount(folder, "rw")
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


# --- buckets ---


@pytest.fixture(scope="module", params=["gs", "s3"])
def bucket(request, tmp_path_factory) -> Place:
    """A folder in a bucket, with what the programs read in its folder `made`."""
    request.getfixturevalue(f"_{request.param}_store")
    folder, found = tmp_path_factory.mktemp("made"), place(f"{request.param}://bucket/programs")
    make(folder, found / "made")
    buckets.upload_folder(folder, found / "made", None)
    return found


@pytest.fixture(scope="module")
def on_disk() -> dict[str, dict[str, bytes]]:
    """Program -> what it has written on a disk."""
    return {}


# `train` and `curriculum`, which are made of many parts, have tests of their own.
IN_BUCKETS = [name for name in COMMANDS if name not in ("train", "curriculum")]


@pytest.mark.parametrize("name", IN_BUCKETS)
def test_everything_in_a_bucket(name, bucket, made, on_disk, tmp_path, monkeypatch, capsys):
    if name == "make_cldr_text":
        pytest.importorskip("babel")
    if name not in on_disk:
        assert run(name, made, tmp_path / "out", monkeypatch, evaluation=False) == 0
        on_disk[name] = written(tmp_path, made) | printed(tmp_path, made, capsys)
    folder = bucket / name.replace(" ", "-")
    assert run(name, bucket / "made", folder / "out", monkeypatch, evaluation=False) == 0
    found = written(folder, bucket / "made") | printed(folder, bucket / "made", capsys)
    assert found.keys() == on_disk[name].keys()
    for file, data in found.items():
        assert data == on_disk[name][file], file


def written(folder: Place, made: Place) -> dict[str, bytes]:
    """File -> its bytes, with the inputs' paths spelled alike; of a checkpoint every parameter and the meta."""
    found = {}
    for path in files_under(folder):
        name = str(path).removeprefix(f"{folder}/")
        if path.name == MARKER:
            files = read_json(path)["files"]
            assert files == {name: sha256(path.parent / name) for name in files}
            found[name] = json.dumps(sorted(files)).encode()
        elif path.suffix == ".png":  # paths are in the legends
            found[name] = path.read_bytes()[:8]
        elif "/checkpoints/" not in name:
            data = path.read_bytes().replace(str(made).encode(), b"MADE")
            found[name] = re.sub(rb"figure\d+-", b"", data)  # counted in each process
    if is_run(folder / "out"):
        params, meta = restore_params(folder / "out")
        told = json.dumps(meta).replace(str(made), "MADE").replace(str(folder), "FOLDER")
        found["meta"] = told.encode()
        found |= {name: x.tobytes() for name, x in flatten_dict(params, sep="/").items()}
    # Such as names the models that were merged: the digest of a meta that has another path.
    for name in found.keys() & {"out/sweep.json", "out/merge.json", "meta"}:
        found[name] = re.sub(rb'"sums": "\w+"', b"", found[name])
    assert found
    return found


def printed(folder: Place, made: Place, capsys) -> dict[str, bytes]:
    """What stands on standard output, but for how long it took."""
    text = capsys.readouterr().out.replace(str(made), "MADE").replace(str(folder), "FOLDER")
    text = re.sub(r"in [\d.]+ s \([\d,]+ tokens/s\)", "", text)
    return {"printed": re.sub("[ -]+", " ", text).encode()}  # tables are as wide as paths


READ_FROM = {
    "hf": ("encode", "fill_mask", "import_hf", "merge of folders", "trim_vocabulary"),
    "classes": ("predict",),
    "run": ("heldout", "export_hf", "merge of checkpoints", "shrink", "trim_vocabulary of a run"),
}


@pytest.mark.parametrize(("part", "name"), [(x, name) for x in READ_FROM for name in READ_FROM[x]])
def test_a_folder_whose_upload_has_not_ended_is_named(
    part, name, bucket, tmp_path, monkeypatch, capsys
):
    mark = bucket / "made" / part / buckets.UPLOADING
    mark.write_bytes(b"")
    try:
        assert run(name, bucket / "made", tmp_path / "out", monkeypatch) == 2
    finally:
        mark.unlink()
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {mark.parent}: its upload has not ended")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [name for name in IN_BUCKETS if name != "make_cldr_text"])
def test_what_is_not_in_a_bucket_is_named(name, bucket, tmp_path, monkeypatch, capsys):
    assert run(name, bucket / "nowhere", tmp_path / "out", monkeypatch) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert re.match(rf"error: .*{bucket}/nowhere/", line), line
    assert not list(tmp_path.iterdir())


def test_paths_that_no_program_writes_to(bucket, tmp_path, monkeypatch, capsys):
    """Where a launcher looks for checkpoints, where programs are kept, and a scheme that nothing here knows."""
    local = module("launch/local")
    assert local.newest_checkpoint(["--workdir", str(bucket / "made" / "run")]) == 3
    monkeypatch.setattr("jax.config.update", lambda name, value: None)
    assert use_compile_cache(str(bucket / "compiled")) == bucket / "compiled"
    assert use_compile_cache("~/compiled") == Path.home() / "compiled"
    assert run("import_hf", "http://there", tmp_path / "out", monkeypatch) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert "http://there/hf: http:// is not read or written here, unless it is text" in line
    assert "use gs://BUCKET/..." in line


# --- JSON ---


@pytest.fixture
def not_finite(monkeypatch):
    for name, value in (("loss", math.nan), ("accuracy", math.inf)):
        monkeypatch.setitem(RESULTS["eng"], name, value)


@pytest.mark.parametrize("name", ["heldout", "merge_sweep"])
def test_results_that_are_not_finite_are_null(name, not_finite, made, tmp_path, monkeypatch):
    """A sweep that goes on reads them again."""
    for _ in range(1 + (name == "merge_sweep")):
        assert run(name, made, tmp_path / "out", monkeypatch) == 0
    (file,) = [path for path in tmp_path.rglob("*.json") if path.is_file()]
    found = json.loads(file.read_text(), parse_constant=pytest.fail)
    held_out = [found] if name == "heldout" else list(found["points"].values())
    for point in held_out:
        assert point["held_out"]["eng"] == {"loss": None, "accuracy": None, "targets": 7}
        assert point["held_out_groups"]["all"]["loss"] is None


def test_lines_of_records_are_json(tmp_path):
    encode, fill_mask, predict = map(importlib.import_module, (ENCODE, FILL_MASK, PREDICT))
    record = Record("line 1", math.nan, "text")
    mask = [fill_mask.Prediction(5, "a", math.nan)]
    vector = np.ones(2, np.float32)
    clock = Timeline()
    clock.open(tmp_path, 0)
    clock._unwritten["step"] = math.inf
    clock.record(1)
    clock.close()
    lines = [
        *fill_mask.jsonl_bytes(record, [5], [mask]),
        *encode.jsonl_bytes(record, [5], vector),
        encode.npy_bytes(record, [5], vector)[1],
        predict.jsonl_bytes(record, [Class("a", math.nan)]),
        *(tmp_path / TIMELINE).read_bytes().splitlines(),
    ]
    found = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert found[0]["masks"][0][0]["probability"] is None
    assert found[1]["id"] is found[2] is None
    assert found[3]["classes"][0]["score"] is None
    assert found[-1]["seconds"]["step"] is None
