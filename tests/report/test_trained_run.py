"""What is told of a run after it, held against a run that was watched: its documents, its trace, its page."""

import gzip
import html
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from data.tiny_corpus import identify, write_corpus
from ml_collections import ConfigDict
from tiny import tiny_config

import mmbert_jax.machine
import mmbert_jax.train
from mmbert_jax.data.pipeline import open_data
from mmbert_jax.errors import UserError
from mmbert_jax.goodput import read_timeline
from mmbert_jax.metrics import read_metrics
from mmbert_jax.optim.schedules import phase_rows
from mmbert_jax.parallel.hardware import peak_flops
from mmbert_jax.profile import parse_steps
from mmbert_jax.report.page import report_page
from mmbert_jax.report.run_figures import MAX_POINTS, thin
from mmbert_jax.report.steps import rows_of_step, seen
from mmbert_jax.step import phase_seed

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = {"deu": 30, "eng": 70, "fao": 9}
LOGGED = 3
# FLOP/s; a CPU's is not known.
PEAK = 1e10


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """(run folder, its config, of each step the tokens of the microbatches that it was fed)."""
    folder = tmp_path_factory.mktemp("watched")
    held_out = dict.fromkeys(LANGUAGES, 1)
    corpus = write_corpus(folder / "corpus", LANGUAGES, row_length=64, held_out=held_out)
    config = tiny_config(
        data__corpus=str(corpus),
        model__vocab_size=2048,
        mesh__data=8,
        log_every_steps=LOGGED,
        eval__every_steps=5,
        eval__groups={"north": ("fao",), "south": ("deu", "eng")},
    )
    fed, read_batches = [], mmbert_jax.train.read_batches

    def watch(*arguments):
        for batch, count, rows in read_batches(*arguments):
            fed.append(np.asarray(batch["tokens"])[:count])
            yield batch, count, rows

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mmbert_jax.train, "read_batches", watch)
        patch.setattr(mmbert_jax.machine, "peak_flops", lambda kind: PEAK)
        mmbert_jax.train.train(config, folder / "run", profile_steps=(2, 3))
    return folder / "run", config, fed


def test_the_documents_of_every_step_are_those_that_it_was_fed(watched):
    """While the batch grows and after; most steps are not logged."""
    run, config, fed = watched
    steps = [r for r in read_metrics(run) if "loss" in r]
    assert len(steps) < len(fed)
    assert {len(batch) for batch in fed} == {1, 2}
    data = open_data(config.data, phase_rows(config.train, 64), phase_seed(config))
    languages = sorted(LANGUAGES)
    for number, batch in enumerate(fed, 1):
        start, stop = rows_of_step(config, steps, number)
        records = list(seen(data, start, stop, config.train.microbatch_rows))
        assert [r["microbatch"] for r in records] == np.repeat(range(len(batch)), 8).tolist()
        for record, (language, row) in zip(records, identify(batch.reshape(-1, 64)), strict=True):
            assert (record["language"], record["row_of_language"]) == (languages[language], row)
            # One input file, a line for every row, language after language.
            line = sum(LANGUAGES[other] for other in languages[:language]) + row + 1
            assert [d["line"] for d in record["documents"]] == [line, line]
            assert record["documents"][0]["file"] == "text.jsonl"
    with pytest.raises(UserError, match=f"the run has logged the steps 1 to {len(fed)}"):
        rows_of_step(config, steps, len(fed) + 1)


def test_skipped_rows_are_no_step_s(watched):
    """Full batches of 16 from row 64 to 192. The run went back to step 9 and left out the 40 rows after it."""
    config = watched[1]
    stretches = [{"step": 9, "first": 112, "stop": 152, "reason": "by hand"}]
    # Step 9 was logged when nothing was left out yet.
    steps = [{"step": 6, "tokens": 64 * 64}, {"step": 9, "tokens": 112 * 64}]
    steps += [{"step": 12, "tokens": 192 * 64}]
    rows = [rows_of_step(config, steps, step, stretches) for step in (8, 9, 10, 12)]
    assert rows == [(80, 96), (96, 112), (152, 168), (184, 192)]
    with pytest.raises(UserError, match="--step 11: by config.json step 12 ends before row 160"):
        rows_of_step(config, steps, 11)


def test_the_command_shows_one_microbatch(watched):
    run, _, fed = watched
    step = next(i for i, batch in enumerate(fed, 1) if len(batch) == 2)
    command = [sys.executable, str(ROOT / "tools" / "step_documents.py"), "--run", str(run)]
    done = subprocess.run(
        [*command, "--step", str(step), "--microbatch", "1", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    records = [json.loads(line) for line in done.stdout.splitlines()]
    rows = [(sorted(LANGUAGES).index(r["language"]), r["row_of_language"]) for r in records]
    assert rows == identify(fed[step - 1][1])


def test_mfu_is_the_rate_of_flops_over_the_peak_of_eight_devices(watched):
    """FLOPs of a token: two a weight and as many a key for scores and for values, three times for the backward pass."""
    model = watched[1].model
    width = model.hidden_size
    layers = 2 * (4 * width * width + 3 * width * model.intermediate_size)
    head = 0.3 * (width * width + width * model.vocab_size)
    # Every row has a document of 5 tokens, one of 57, and two of padding, which see themselves.
    documents = [range(5), range(5, 62), range(62, 63), range(63, 64)]
    pairs = [abs(i - j) for document in documents for i in document for j in document]
    keys = (len(pairs) + sum(distance <= model.attention_window // 2 for distance in pairs)) / 64
    flops = 3 * (2 * layers + 2 * head + 4 * width * keys)
    for record in read_metrics(watched[0]):
        if "loss" in record:
            expected = record["tokens_per_second"] * flops / PEAK / 8
            assert record["mfu"] == pytest.approx(expected, rel=1e-6)


def test_peaks_are_known_by_what_jax_calls_the_devices():
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989.4e12
    assert peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("TPU v5p") == peak_flops("TPU v5") == 459e12
    assert peak_flops("NVIDIA H100 PCIe") is None  # slower, and not in the table
    assert peak_flops("cpu") is None


# --- the profiler's trace ---


def test_the_trace_holds_the_steps_that_were_asked_for(watched):
    (file,) = (watched[0] / "profile").rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    ran = [e for e in events if "ThunkExecutor::Execute" in e.get("name", "")]
    assert ran
    assert file.stat().st_size < 5_000_000


@pytest.mark.parametrize("text", ["5", "5:", "5:4", "0:3", "a:b", "-1:2"])
def test_steps_to_trace_that_are_none(text):
    with pytest.raises(UserError, match=f"--profile_steps={re.escape(text)}: write FIRST:LAST"):
        parse_steps(text)


def test_steps_to_trace():
    assert parse_steps("10:12") == (10, 12)
    assert parse_steps(None) is None


# --- the page ---


class Page(HTMLParser):
    """Everything that the page would load, and its text."""

    def __init__(self, text):
        super().__init__()
        self.loaded, self.ids, self.parts, self.styles = [], [], [], []
        self.open = []
        self.feed(text)
        self.text = re.sub(r"\s+", " ", " ".join(self.parts))

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "action", "data", "srcset"):
                self.loaded.append((tag, value))
            if name == "id":
                self.ids.append(value)
            if name == "style":
                self.styles.append(value)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        (self.styles if self.open[-1:] == ["style"] else self.parts).append(data)


@pytest.fixture(scope="module")
def page(watched, tmp_path_factory):
    """(text of a page about the run and one that goes on from it, the second run's folder)."""
    run, config, _ = watched
    later = tmp_path_factory.mktemp("later") / "run"
    later.mkdir()
    second = ConfigDict(config.to_dict())
    second.phase, second.init_from, second.mask.ratio = "second <phase>", str(run), 0.05
    (later / "config.json").write_text(json.dumps(second.to_dict()))
    (later / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text())
    records = [
        {"event": "start", "time": 1002.0, "step": 0, "seconds": {"start_up": 2.0}},
        {"event": "progress", "time": 1010.0, "step": 8, "seconds": {"step": 8.0}},
        {"event": "start", "time": 1031.0, "step": 4, "seconds": {"start_up": 1.0}},
        {"event": "progress", "time": 1040.0, "step": 13, "seconds": {"step": 9.0}},
    ]
    (later / "timeline.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return report_page([run, later]), later


def test_the_page_needs_nothing_but_itself(page):
    parsed = Page(page[0])
    assert parsed.open == []
    for tag, target in parsed.loaded:
        assert target.startswith(("#", "data:image/png;base64,")), (tag, target)
    assert not re.search(r"<(script|link|iframe|object|base)\b|@import|url\((?!#)", page[0])
    assert len(parsed.ids) == len(set(parsed.ids))
    for target in re.findall(r'(?:href="#|url\(#)([^")]*)', page[0]):
        assert target in parsed.ids


def test_the_page_shows_what_the_files_say(watched, page):
    run, config, _ = watched
    text = Page(page[0]).text
    records = read_metrics(run)
    last = [r for r in records if "loss" in r][-1]
    held_out = [r for r in records if "held_out" in r][-1]["held_out_groups"]["all"]["loss"]
    rates = [r["tokens_per_second"] for r in records if "loss" in r]
    assert f"{last['loss']:.4f} training loss" in text
    assert f"{held_out:.4f} held-out loss" in text
    assert f"{np.median(rates) / 1e3:.1f}k tokens/s, median" in text
    assert f"{last['tokens'] / 1e3:.1f}k tokens" in text
    times = read_timeline(run)
    wall = times[-1]["time"] - times[0]["time"] + sum(times[0]["seconds"].values())
    assert f"wall time {wall:,.1f} 100.0%" in text
    evaluation = sum(r["seconds"].get("evaluation", 0) for r in times)
    assert f"evaluation, its compiling included {evaluation:,.1f} {evaluation / wall:.1%}" in text
    for name, value in config.optimizer.items():
        assert f"optimizer.{name} = {value!r}" in text
    # In the figures, which are text as well.
    assert {"north", "south"} <= set(re.findall(r">([^<>]+)</text>", page[0]))
    assert set(LANGUAGES) <= set(re.findall(r">([^<>]+)</text>", page[0]))


def test_the_page_has_the_restarts_and_lost_steps_of_each_run(page):
    """8 s for 8 steps, of which the restart did 4 again; 20 s between the two; 13 steps in 9 s after that."""
    text = Page(page[0]).text
    assert "training steps 13.0 32.5%" in text
    assert "steps that were done again later 4.0 10.0%" in text
    assert "between a death and the next start 20.0 50.0%" in text
    assert "1 1970-01-01 00:16:40 0 8 4 0m10s" in text
    assert "2 1970-01-01 00:17:10 0m20s 4 13 0 0m10s" in text
    assert "3 of them other than in tiny" in text
    assert html.escape("second <phase>") in page[0]


def test_a_run_without_corpus_or_timeline_has_a_page_all_the_same(page, tmp_path):
    config = json.loads((page[1] / "config.json").read_text())
    config["data"]["corpus"] = "/nowhere"
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "metrics.jsonl").write_text((page[1] / "metrics.jsonl").read_text())
    text = Page(report_page([tmp_path])).text
    assert "No sampling shares: config.data.corpus=/nowhere: no such folder" in text
    assert "there is no timeline.jsonl" in text
    assert "goodput" not in text
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match=r"metrics.jsonl holds no step"):
        report_page([tmp_path])


def test_long_curves_are_drawn_by_means_and_ranges():
    values = np.arange(5 * MAX_POINTS, dtype=float)
    values[7] = np.inf
    steps, mean, low, high = thin(range(1, len(values) + 1), values.tolist())
    assert len(steps) == MAX_POINTS
    assert steps[:3].tolist() == [5, 10, 15]
    assert mean[0] == 2
    assert mean[1] == np.mean([5, 6, 8, 9])
    assert (low[-1], high[-1]) == (len(values) - 5, len(values) - 1)
    assert thin([3], [np.nan])[1].tolist() == pytest.approx([np.nan], nan_ok=True)
