"""What reports say of run folders that are written here by hand."""

import json

import numpy as np
import pytest
from data.tiny_corpus import write_corpus
from matplotlib.image import imread
from tiny import tiny_config

from mmbert_jax.errors import UserError
from mmbert_jax.metrics import read_set_aside
from mmbert_jax.report import plots
from mmbert_jax.report.run_figures import curve_figure
from mmbert_jax.report.runs import (
    final_groups,
    language_shares,
    read_config,
    steps_and_evaluations,
)
from mmbert_jax.report.table import held_out_table

TITLES = {"first": "English", "late": "others", "absent": "never seen"}


def groups(first, late):
    return {
        "first": {"loss": first, "accuracy": 0.5, "languages": 1},
        "late": {"loss": late, "accuracy": 0.125, "languages": 12},
    }


def write_run(folder, losses, held_out):
    """A run with a step every million tokens and evaluations {step: (first, late)}."""
    folder.mkdir()
    with (folder / "metrics.jsonl").open("w") as file:
        for step, loss in enumerate(losses, 1):
            record = {"step": step, "tokens": step * 1_000_000}
            file.write(json.dumps(record | {"loss": loss}) + "\n")
            if step in held_out:
                evaluation = {"held_out": {}, "held_out_groups": groups(*held_out[step])}
                file.write(json.dumps(record | evaluation) + "\n")
    return folder


@pytest.fixture
def runs(tmp_path):
    return {
        "one": write_run(tmp_path / "one", [9.0, 8.0, 7.0], {2: (5.0, 6.0), 3: (4.0, 5.5)}),
        "two": write_run(tmp_path / "two", [6.0, 5.0], {2: (3.0, 5.0)}),
        "other": write_run(tmp_path / "other", [6.5], {1: (3.5, 4.0)}),
    }


# --- run folders ---


def test_steps_and_evaluations_are_told_apart(runs):
    steps, evaluations = steps_and_evaluations(runs["one"])
    assert [s["loss"] for s in steps] == [9.0, 8.0, 7.0]
    assert [e["step"] for e in evaluations] == [2, 3]
    assert final_groups(runs["one"]) == groups(4.0, 5.5)


def test_runs_that_are_none_or_unfinished(tmp_path):
    run = write_run(tmp_path / "run", [9.0], {})
    with pytest.raises(
        UserError, match="run/metrics.jsonl holds no evaluation: has the run come to"
    ):
        final_groups(run)
    with pytest.raises(
        UserError, match=r"config.json is missing: .*run is not the folder of a run"
    ):
        read_config(run)
    with pytest.raises(UserError, match="metrics.jsonl is missing"):
        final_groups(tmp_path)


def test_shares_of_a_run_are_those_of_its_mixture(tmp_path):
    """Rows 400 : 100 at temperature 0.5 are 2 : 1; a source of its own for English takes a quarter."""
    corpus = write_corpus(tmp_path / "corpus", {"eng": 9, "deu": 400, "fao": 100}, row_length=64)
    config = tiny_config(
        data__corpus=str(corpus),
        data__sources={
            "web": {"share": 3.0, "languages": ()},
            "english": {"share": 1.0, "languages": ("eng",)},
        },
    )
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    shares = language_shares(tmp_path)
    assert shares == pytest.approx({"eng": 0.25, "deu": 0.5, "fao": 0.25})


# --- the table ---


def test_table():
    rows = [("phase 1", groups(4.0, 5.5)), ("merged", {"first": groups(3.21049, 0)["first"]})]
    lines = held_out_table(rows, TITLES).splitlines()
    assert lines[0].split() == ["English", "(1)", "others", "(12)"]
    assert "never seen" not in lines[0]
    assert lines[2].split() == ["phase", "1", "4.000", "50.0%", "5.500", "12.5%"]
    assert lines[3].split() == ["merged", "3.210", "50.0%", "-"]
    assert len({len(line) for line in lines}) == 1


# --- plots ---


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved."""
    figures, save = [], plots.save_figure
    monkeypatch.setattr(
        plots, "save_figure", lambda figure, path: (figures.append(figure), save(figure, path))
    )
    return figures


def test_shares_are_drawn_in_percent_language_by_language(tmp_path, drawn):
    shares = {"one": {"eng": 0.75, "deu": 0.25}, "two": {"eng": 0.5, "fao": 0.5}}
    plots.plot_shares(shares, ["eng", "deu", "fao"], tmp_path / "shares.png")
    one, two = drawn[0].axes[0].lines
    np.testing.assert_allclose(one.get_ydata(), [75, 25, np.nan])
    np.testing.assert_allclose(two.get_ydata(), [50, np.nan, 50])
    assert one.get_label() == "one: 2 languages"
    assert imread(tmp_path / "shares.png").shape[:2] == (600, 1200)
    assert [path.name for path in tmp_path.iterdir()] == ["shares.png"]


def test_losses_are_drawn_over_the_tokens_of_the_curriculum(tmp_path, runs, drawn):
    """`two` goes on from the end of `one`, at three million tokens, and `other` from that of `two`, at five."""
    starts = {"one": None, "two": "one", "other": "two"}
    plots.plot_losses(runs, starts, TITLES, tmp_path / "losses.png")
    left, right = drawn[0].axes
    curves = {line.get_label(): line.get_xydata().tolist() for line in left.lines}
    assert curves == {
        "one": [[1, 9], [2, 8], [3, 7]],
        "two": [[4, 6], [5, 5]],
        "other": [[6, 6.5]],
    }
    held_out = [line.get_xydata().tolist() for line in right.lines]
    assert [curve for curve in held_out if curve] == [
        *([[2, 5], [3, 4]], [[2, 6], [3, 5.5]]),
        *([[5, 3]], [[5, 5]]),
        *([[6, 3.5]], [[6, 4]]),
    ]
    assert imread(tmp_path / "losses.png").shape[:2] == (600, 1680)


def test_steps_that_were_gone_back_behind_are_drawn_faintly(tmp_path):
    steps = [{"step": i, "loss": 5.0 - i / 10} for i in range(1, 9)]
    note = {"time": 1.0, "back_to_step": 4, "why": "rolled back: by hand"}
    lines = [json.dumps({"step": i, "loss": 9.0, "set_aside": note}) + "\n" for i in (5, 6)]
    (tmp_path / "metrics_set_aside.jsonl").write_text("".join(lines))
    gone = [record for record, _ in read_set_aside(tmp_path)]
    assert "set-aside" in curve_figure(steps, "loss", "nats", set_aside=[gone])
    assert "set-aside" not in curve_figure(steps, "loss", "nats")
