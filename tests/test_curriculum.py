"""The demo's program at the smallest size: the real commands, from text to a model that `transformers` loads."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from ml_collections import ConfigDict
from shared_data import shared_file
from transformers import AutoModelForMaskedLM, AutoTokenizer

from mmbert_jax import buckets
from mmbert_jax.checkpoint import restore_params
from mmbert_jax.data.language_codes import read_as
from mmbert_jax.data.pipeline import held_out_batches
from mmbert_jax.data.tokenizer import load_tokenizer
from mmbert_jax.hf.export import MARKER
from mmbert_jax.model.masking import mask_tokens
from mmbert_jax.model.row_keys import count_rows, in_words
from mmbert_jax.places import Place, place
from mmbert_jax.recipe import languages
from mmbert_jax.report.runs import language_shares, steps_and_evaluations

ROOT = Path(__file__).resolve().parents[1]
PHASES = ("phase1", "phase2", "decay_english", "decay_110", "decay_all")
GROUPS = ("english", "phase1", "phase2", "last")
# A local and a global layer, in rows of the demo's lengths.
TINY_MODEL = (
    *("--config.model.num_layers=2", "--config.model.hidden_size=64", "--config.model.num_heads=2"),
    *("--config.model.intermediate_size=64", "--config.eval.rows_per_language=2"),
)


def run(*command: str | Place) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True, check=False
    )


def curriculum(output: Place, *options: str | Place) -> subprocess.CompletedProcess:
    return run("tools/curriculum.py", "--output", output, *TINY_MODEL, *options)


def start_curriculum(output: Place, *options: str | Place) -> subprocess.Popen:
    """The same without waiting for it, and what it starts in its process group."""
    words = map(str, ("tools/curriculum.py", "--output", output, *TINY_MODEL, *options))
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def cldr_options(tmp_path_factory) -> tuple[str | Path, ...]:
    """Options for a curriculum on CLDR text of nine languages, two or three of each group."""
    folder = tmp_path_factory.mktemp("cldr")
    made = run("tools/make_cldr_text.py", "--documents", "60", "--output", folder / "all.jsonl")
    assert made.returncode == 0, made.stderr
    chosen = ("en", "de", "ru", "el", "sw", "ka", "fo", "ti", "yo")
    with (folder / "all.jsonl").open() as lines, (folder / "some.jsonl").open("w") as some:
        some.writelines(line for line in lines if json.loads(line)["language"] in chosen)
    return ("--input", folder / "some.jsonl", "--scale", "0.06", "--vocab_size", "1024")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cldr_options) -> tuple[Path, str]:
    """The folder of a finished curriculum, and what was printed."""
    output = tmp_path_factory.mktemp("runs") / "demo"
    done = curriculum(output, *cldr_options)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return output, done.stdout


def test_every_phase_learns_from_the_one_before(finished):
    output, _ = finished
    losses = json.loads((output / "results.json").read_text())
    assert list(losses) == [*PHASES, "merged"]
    counts = {group: losses["merged"][group]["languages"] for group in GROUPS}
    assert counts == {"english": 1, "phase1": 3, "phase2": 2, "last": 3}
    uniform = math.log(1024)
    for phase in losses:
        for group in GROUPS:
            assert 0 < losses[phase][group]["loss"] < uniform
            assert 0 <= losses[phase][group]["accuracy"] <= 1
    for decay in (*PHASES[2:], "merged"):
        assert (
            losses[decay]["all"]["loss"]
            < losses["phase2"]["all"]["loss"]
            < losses["phase1"]["all"]["loss"]
        )


def test_phases_sample_their_own_languages(finished):
    output, _ = finished
    in_phase1 = {"en", "de", "ru", "el"}
    in_phase2 = in_phase1 | {"sw", "ka"}
    for phase in PHASES:
        expected = in_phase1 if phase == "phase1" else in_phase2
        shares = language_shares(output / phase)
        assert set(shares) == (expected | {"fo", "ti", "yo"} if phase == "decay_all" else expected)
        assert sum(shares.values()) == pytest.approx(1)
    assert (
        language_shares(output / "decay_english")["en"]
        > language_shares(output / "decay_110")["en"]
    )


def test_phases_have_the_configured_length(finished):
    output, _ = finished
    for phase, tokens in {"phase1": 72_000, "phase2": 36_000, "decay_all": 24_000}.items():
        steps, _ = steps_and_evaluations(output / phase)
        assert tokens <= steps[-1]["tokens"] < tokens + 8192


def test_table_and_plots_are_written(finished):
    output, printed = finished
    table = (output / "results.txt").read_text()
    assert table in printed
    assert [line.split("  ")[0] for line in table.splitlines()[2:]] == [
        *("phase 1", "phase 2", "decay, English", "decay, 110", "decay, all", "TIES merge")
    ]
    for name in ("shares.png", "losses.png"):
        assert (output / name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_masks_are_filled_in_several_scripts(finished):
    _, printed = finished
    filled = printed[printed.index("The merged model on held-out texts") :]
    assert filled.count("mask 1:") >= 5
    assert "What stood there: en " in filled


@pytest.mark.slow
def test_the_same_in_a_bucket(gs_bucket, finished, cldr_options):
    """Text in a bucket, everything else there, and killed on the way: the files and losses are those of the disk."""
    on_disk, _ = finished
    bucket = place(gs_bucket)
    text, output = bucket / "some.jsonl", bucket / "demo"
    buckets.upload(cldr_options[1], text)
    options = (*cldr_options[:1], text, *cldr_options[2:])
    with start_curriculum(output, *options) as killed:
        while not (output / "phase2" / "checkpoints").exists():
            assert killed.poll() is None
            time.sleep(1)
        os.killpg(killed.pid, signal.SIGKILL)
    done = curriculum(output, *options)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.count("done already") == 3
    for folder in ("tokenizer", "hf"):
        names = [path.name for path in (on_disk / folder).iterdir()]
        assert sorted(names) == sorted(path.name for path in (output / folder).iterdir())
        for name in names:
            ours, theirs = ((run / folder / name).read_bytes() for run in (output, on_disk))
            # Sums of what was merged, whose metas name the corpus, and the sum of the card that tells of them.
            if name in ("README.md", MARKER):
                ours, theirs = (re.sub(rb"[0-9a-f]{12,}", b"", x) for x in (ours, theirs))
            assert ours == theirs, f"{folder}/{name}"
    for name in ("results.json", "results.txt", "merged_held_out.json", "shares.png", "losses.png"):
        assert (output / name).read_bytes() == (on_disk / name).read_bytes(), name
    for phase in PHASES:
        assert losses(output / phase) == losses(on_disk / phase), phase
        equal = jax.tree.leaves(
            jax.tree.map(
                np.array_equal,
                restore_params(output / phase)[0],
                restore_params(on_disk / phase)[0],
            )
        )
        assert all(equal), phase
    words = ("tools/step_documents.py", "--step", "3", "--text", "--run")
    seen = [run(*words, folder / "phase2") for folder in (output, on_disk)]
    assert seen[0].returncode == 0, seen[0].stderr
    assert seen[0].stdout.replace(str(text), str(cldr_options[1])) == seen[1].stdout


def losses(run: Place) -> list[tuple[int, float]]:
    steps, evaluations = steps_and_evaluations(run)
    return [(r["step"], r["loss"]) for r in steps] + [r["held_out_groups"] for r in evaluations]


def test_second_call_does_nothing_again(finished, cldr_options):
    output, _ = finished
    before = {path: path.stat().st_mtime_ns for path in output.rglob("checkpoints/*")}
    done = curriculum(output, *cldr_options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done already") == 10
    assert {path: path.stat().st_mtime_ns for path in output.rglob("checkpoints/*")} == before


def test_other_options_are_refused(finished, cldr_options):
    output, _ = finished
    done = curriculum(output, *cldr_options, "--text_field", "body")
    assert done.returncode == 2
    assert "was made with other options" in done.stderr


def test_transformers_computes_the_same_held_out_loss(finished):
    """Each held-out document alone through the exported model: packing and export leave the loss as it is."""
    output, _ = finished
    model = AutoModelForMaskedLM.from_pretrained(output / "hf").eval()
    config = ConfigDict(json.loads((output / "decay_all" / "config.json").read_text()))
    rows, length = 16, config.data.row_length
    vocabulary = load_tokenizer(output / "tokenizer").vocab_size
    sums: dict[str, np.ndarray] = {}
    for number, (batch, row_languages) in enumerate(
        held_out_batches(config.data, rows, config.eval.rows_per_language)
    ):
        inputs, positions, labels, weights = mask_tokens(
            jax.random.fold_in(jax.random.key(0), 0),
            count_rows(in_words(number * rows), rows),
            jax.numpy.asarray(batch["tokens"]),
            ratio=config.eval.mask_ratio,
            vocabulary=vocabulary,
            reserved=((0, 5),),
            mask_id=4,
        )
        inputs, positions, labels, weights = map(np.array, (inputs, positions, labels, weights))
        for row, language in enumerate(row_languages):
            logits = np.zeros((length, 1024), np.float32)
            for segment in range(1, batch["segment_ids"][row].max() + 1):
                (where,) = np.nonzero(batch["segment_ids"][row] == segment)
                with torch.no_grad():
                    alone = torch.from_numpy(inputs[row, where]).long()
                    logits[where] = model(input_ids=alone[None]).logits[0].numpy()
            losses = torch.nn.functional.cross_entropy(
                torch.from_numpy(logits[positions[row]]),
                torch.from_numpy(labels[row]).long(),
                reduction="none",
            ).numpy()
            of_row = np.array([losses @ weights[row], weights[row].sum()], np.float64)
            sums[language] = sums.get(language, 0) + of_row
    ours = json.loads((output / "merged_held_out.json").read_text())["held_out"]
    assert set(ours) == sums.keys() - {""}
    for language, result in ours.items():
        loss, targets = sums[language]
        assert result["targets"] == targets
        assert result["loss"] == pytest.approx(loss / targets, rel=1e-5)


def test_exported_tokenizer_is_the_corpus_one(finished):
    """Held-out tokens of the corpus, decoded and encoded by `transformers`, are the same tokens between bos and eos."""
    output, _ = finished
    tokenizer = AutoTokenizer.from_pretrained(output / "hf")
    assert tokenizer("A<mask>")["input_ids"][0] == 2
    assert tokenizer("A<mask>")["input_ids"][-2:] == [4, 1]
    config = ConfigDict(json.loads((output / "decay_all" / "config.json").read_text()))
    ours = load_tokenizer(output / "tokenizer")
    batch, _ = next(held_out_batches(config.data, 16, 2))
    whole = 0
    for tokens, segment_ids in zip(batch["tokens"], batch["segment_ids"], strict=True):
        for segment in range(1, segment_ids.max() + 1):
            document = tokens[segment_ids == segment].tolist()
            text = ours.decode(document)
            assert tokenizer(text)["input_ids"] == [2, *ours.encode(text), 1]
            # What is not equal is a part of a document that is longer than a row.
            whole += tokenizer(text)["input_ids"] == document
    assert whole >= 8


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    done = curriculum(tmp_path)
    assert done.returncode == 2
    assert "not made by this program" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.slow
def test_declaration_of_human_rights_by_the_published_lists(tmp_path):
    """Real text in hundreds of languages: which phase sees which of them is the published assignment."""
    text = shared_file("udhr.jsonl.gz")
    small = ("--scale", "0.03", "--vocab_size", "4096")
    done = curriculum(
        *(tmp_path / "udhr", "--input", text, "--languages", "published", *small),
        "--config.eval.rows_per_language=1",
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    results = json.loads((tmp_path / "udhr" / "results.json").read_text())
    for phase, groups in results.items():
        assert set(GROUPS) <= set(groups), phase
        for group in groups.values():
            assert math.isfinite(group["loss"])
    for phase, listed in (
        ("phase1", languages.PHASE1),
        ("phase2", languages.PHASE2),
        ("decay_110", languages.PHASE2),
        ("decay_all", languages.ALL),
    ):
        sampled = set(language_shares(tmp_path / "udhr" / phase))
        assert read_as(sampled, set(listed)).keys() == sampled
        assert (
            len(sampled) == {"phase1": 58, "phase2": 94, "decay_110": 94, "decay_all": 387}[phase]
        )
        # Persian and Filipino, which the lists spell `fas` and `fil`.
        assert {"pes", "tgl"} <= sampled
    assert results["merged"]["all"]["loss"] < results["phase2"]["all"]["loss"]
