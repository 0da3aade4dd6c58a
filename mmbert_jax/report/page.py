"""One page of HTML about one or several runs, with everything in it: no script, no font, nothing from a network."""

import base64
import datetime
import html
import itertools
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmbert_jax.config import flatten
from mmbert_jax.errors import UserError
from mmbert_jax.goodput import KINDS, Goodput, goodput, read_timeline
from mmbert_jax.metrics import duration, read_set_aside, si
from mmbert_jax.places import Place, resolved
from mmbert_jax.report.plots import plot_losses, plot_shares
from mmbert_jax.report.run_figures import curve_figure, held_out_figure, shares_figure
from mmbert_jax.report.runs import language_shares, steps_and_evaluations
from mmbert_jax.run import TIMELINE, read_config

KIND_COLOURS = {
    "step": "#3c8d53",
    "lost": "#a33b3b",
    "start_up": "#7d8fa3",
    "compile": "#7058b0",
    "data_wait": "#d1722b",
    "checkpoint": "#2563a8",
    "evaluation": "#8a7322",
    "down": "#3d434a",
}

_STYLE = """
body { margin: 0; background: #f4f6f8; color: #1d242b;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 24px 60px; }
h1 { font-size: 27px; margin: 0; }
h2 { font-size: 21px; margin: 46px 0 4px; padding-top: 18px; border-top: 2px solid #d5dbe1; }
h3 { font-size: 14px; margin: 0 0 8px; color: #37414b; }
.note { color: #66717c; margin: 2px 0 16px; overflow-wrap: anywhere; }
.cards { display: flex; flex-wrap: wrap; gap: 12px; margin-bottom: 14px; }
.card, .box { background: white; border: 1px solid #e1e6ea; border-radius: 10px; }
.card { padding: 9px 14px; flex: 1; }
.card b { display: block; font-size: 19px; font-weight: 600; white-space: nowrap; }
.card span { color: #66717c; font-size: 12px; white-space: nowrap; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(460px, 1fr)); gap: 14px; }
.box { padding: 14px 16px; margin-bottom: 14px; overflow-x: auto; }
.grid .box { margin: 0; }
.grid + .box { margin-top: 14px; }
.box svg, .box img { display: block; width: 100%; height: auto; }
.bar { display: flex; height: 26px; border-radius: 6px; overflow: hidden; margin-bottom: 12px; }
.dot { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 8px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { text-align: right; padding: 4px 10px; border-bottom: 1px solid #edf0f2; white-space: nowrap; }
th { color: #66717c; font-weight: 500; font-size: 13px; }
th:first-child, td:first-child { text-align: left; }
.config { columns: 2 440px; font: 13px/1.6 ui-monospace, "DejaVu Sans Mono", monospace; margin-top: 10px; }
.config div { break-inside: avoid; overflow-wrap: anywhere; }
.config .changed { background: #fdf3d8; }
summary { cursor: pointer; color: #37414b; font-weight: 600; font-size: 14px; }
"""


@dataclass(frozen=True)
class Run:
    """What a run folder says; `shares` and `time` are None where that cannot be known, and `notes` say why."""

    folder: Place
    name: str
    config: dict[str, Any]
    steps: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    shares: dict[str, float] | None
    time: Goodput | None
    notes: tuple[str, ...]
    set_aside: tuple[
        list[dict[str, Any]], ...
    ] = ()  # steps behind which the run went back, each time


def read_run(folder: Place) -> Run:
    """Reads a run.

    Raises:
      UserError: the folder is not that of a run, or not one step is logged.
    """
    config = read_config(folder)
    steps, evaluations = steps_and_evaluations(folder)
    if not steps:
        raise UserError(
            f"{folder}/metrics.jsonl holds no step: the run has not logged anything yet"
        )
    notes, shares, time = [], None, None
    try:
        shares = language_shares(folder)
    except UserError as error:
        notes.append(f"No sampling shares: {error}")
    if (folder / TIMELINE).is_file():
        time = goodput(read_timeline(folder))
    else:
        notes.append(f"No account of time: there is no {TIMELINE}")
    gone = [(note["time"], record) for record, note in read_set_aside(folder) if "loss" in record]
    set_aside = tuple(
        [record for _, record in stretch] for _, stretch in itertools.groupby(gone, lambda x: x[0])
    )
    return Run(
        folder, config["phase"], config, steps, evaluations, shares, time, tuple(notes), set_aside
    )


def report_page(folders: Sequence[Place]) -> str:
    """The page about runs, in this order.

    Raises:
      UserError: one of them cannot be read.
    """
    runs = [read_run(folder) for folder in folders]
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} phases"
    parts = [
        f"<h1>Training report: {html.escape(title)}</h1>",
        f'<p class="note">{html.escape(", ".join(str(run.folder) for run in runs))}</p>',
    ]
    if len(runs) > 1:
        parts.append(_overview(runs))
    for before, run in zip([None, *runs], runs, strict=False):
        if len(runs) > 1:
            parts.append(
                f'<h2>{html.escape(run.name)}</h2><p class="note">{html.escape(str(run.folder))}</p>'
            )
        parts.append(_section(run, before))
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def facts(run: Run) -> dict[str, str]:
    """The figures of a run that stand at its head."""
    last = run.steps[-1]
    shown = {
        "last step": f"{last['step']:,}",
        "tokens": si(last["tokens"]),
        "training loss": f"{last['loss']:.4f}",
    }
    if run.evaluations:
        shown["held-out loss"] = f"{run.evaluations[-1]['held_out_groups']['all']['loss']:.4f}"
    rate = statistics.median(r["tokens_per_second"] for r in run.steps)
    shown["tokens/s, median"] = si(rate)
    if "mfu" in last:
        shown["MFU, median"] = f"{statistics.median(r['mfu'] for r in run.steps if 'mfu' in r):.1%}"
    if run.time:
        shown |= {
            "goodput": f"{run.time.share:.1%}",
            "wall time": duration(run.time.wall),
            "starts": str(len(run.time.starts)),
        }
    return shown


def _overview(runs: Sequence[Run]) -> str:
    """A line for each run, and the plots of a whole curriculum."""
    table = _table(
        ["phase", *dict.fromkeys(name for run in runs for name in facts(run))],
        [{"phase": html.escape(run.name)} | facts(run) for run in runs],
    )
    names = _names(runs)
    starts = {
        names[i]: next((names[j] for j in range(i) if _starts_from(run, runs[j])), None)
        for i, run in enumerate(runs)
    }
    groups = dict.fromkeys(g for run in runs for e in run.evaluations for g in e["held_out_groups"])
    boxes = [_box("Runs", table)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plot.png"
        plot_losses(
            {name: run.folder for name, run in zip(names, runs, strict=True)},
            starts,
            {group: group for group in groups},
            path,
        )
        boxes.append(_box("Losses over the tokens that the model has seen", _png(path)))
        shares = {
            name: run.shares
            for name, run in zip(names, runs, strict=True)
            if run.shares is not None
        }
        if shares:
            order = [
                language
                for of_language in shares.values()
                for language in sorted(of_language, key=lambda k: -of_language[k])
            ]
            plot_shares(shares, list(dict.fromkeys(order)), path)
            boxes.append(_box("What the phases sample", _png(path)))
    return "".join(boxes)


def _names(runs: Sequence[Run]) -> list[str]:
    """Phases' names; the folder's where several have the same."""
    phases = [run.name for run in runs]
    return [run.name if phases.count(run.name) == 1 else str(run.folder) for run in runs]


def _starts_from(run: Run, other: Run) -> bool:
    start = run.config["init_from"]
    return bool(start) and resolved(other.folder) in (
        resolved(start),
        *resolved(start).parents,
    )


def _section(run: Run, before: Run | None) -> str:
    cards = "".join(
        f'<div class="card"><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>'
        for name, value in facts(run).items()
    )
    boxes = [
        _box(
            f"Training loss, {run.config['mask']['ratio']:.0%} masked",
            curve_figure(run.steps, "loss", "nats a target", set_aside=run.set_aside),
        )
    ]
    if run.evaluations:
        boxes.append(_box("Held-out loss by group of languages", held_out_figure(run.evaluations)))
    boxes += [
        _box("Learning rate", curve_figure(run.steps, "learning_rate", "learning rate")),
        _box("Gradient norm", curve_figure(run.steps, "grad_norm", "norm", log=True)),
        _box(
            "Throughput",
            curve_figure(run.steps, "tokens_per_second", "thousand tokens/s", scale=1e-3),
        ),
    ]
    with_mfu = [record for record in run.steps if "mfu" in record]
    if with_mfu:
        boxes.append(_box("MFU", curve_figure(with_mfu, "mfu", "% of the peak", scale=100)))
    else:
        wait = curve_figure(run.steps, "data_wait", "% of the time", scale=100)
        boxes.append(_box("Waiting for data", wait))
    parts = [
        *(f'<p class="note">{html.escape(note)}</p>' for note in run.notes),
        f'<div class="cards">{cards}</div><div class="grid">{"".join(boxes)}</div>',
    ]
    if run.shares:
        parts.append(
            _box(f"Sampling shares of {len(run.shares)} languages", shares_figure(run.shares))
        )
    if run.time:
        parts.append(_box("Where the time went", _time_table(run.time)))
        parts.append(_box("Starts", _starts_table(run.time)))
    parts.append(f'<div class="box">{_config(run, before)}</div>')
    return "".join(parts)


def _time_table(time: Goodput) -> str:
    kinds = {kind: time.seconds[kind] for kind in KINDS if time.seconds[kind]}
    bar = "".join(
        f'<div title="{kind}" style="width:{seconds / time.wall:.4%};background:{KIND_COLOURS[kind]}"></div>'
        for kind, seconds in kinds.items()
    )
    rows = [
        {
            "kind": f'<span class="dot" style="background:{KIND_COLOURS[kind]}"></span>{html.escape(KINDS[kind])}',
            "seconds": f"{seconds:,.1f}",
            "share": f"{seconds / time.wall:.1%}",
        }
        for kind, seconds in kinds.items()
    ]
    rows.append({"kind": "wall time", "seconds": f"{time.wall:,.1f}", "share": "100.0%"})
    return f'<div class="bar">{bar}</div>' + _table(["kind", "seconds", "share"], rows)


def _starts_table(time: Goodput) -> str:
    rows, ended = [], None
    for number, start in enumerate(time.starts, 1):
        began = datetime.datetime.fromtimestamp(start.began, datetime.UTC)
        rows.append(
            {
                "start": str(number),
                "at (UTC)": f"{began:%Y-%m-%d %H:%M:%S}",
                "after, down": "" if ended is None else duration(max(start.began - ended, 0)),
                "from step": f"{start.first_step:,}",
                "to step": f"{start.last_step:,}",
                "steps lost": f"{start.lost_steps:,}",
                "lasted": duration(start.ended - start.began),
            }
        )
        ended = start.ended
    return _table(list(rows[0]), rows)


def _config(run: Run, before: Run | None) -> str:
    """All fields, folded up; what differs from the run before is marked."""
    fields = dict(flatten(run.config))
    old = dict(flatten(before.config)) if before else fields
    lines = "".join(
        f"<div{'' if old.get(name, None) == value else ' class=changed'}>{html.escape(name)} ="
        f" {html.escape(_value(value))}</div>"
        for name, value in fields.items()
    )
    changed = sum(old.get(name) != value for name, value in fields.items())
    head = f"Config, {len(fields)} fields" + (
        f", {changed} of them other than in {before.name}" if before else ""
    )
    return f'<details><summary>{html.escape(head)}</summary><div class="config">{lines}</div></details>'


def _value(value: Any) -> str:
    """A field's value; long lists of languages by their beginning and length."""
    if isinstance(value, list) and len(value) > 12:
        return f"{', '.join(map(str, value[:12]))}, ... ({len(value)})"
    return ", ".join(map(str, value)) if isinstance(value, list) else repr(value)


def _table(columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> str:
    """Cells are HTML already."""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join(
        f"<tr>{''.join(f'<td>{row.get(column, "-")}</td>' for column in columns)}</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _box(title: str, content: str) -> str:
    return f'<div class="box"><h3>{html.escape(title)}</h3>{content}</div>'


def _png(path: Path) -> str:
    return (
        f'<img alt="" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'
    )
