"""The speedrun (docs/speedrun.md): makes its text, runs entries over seeds, and draws up the table.

data   a text to a tokeniser of 8,192 pieces and a corpus; without --input the text that tools/make_cldr_text.py makes
run    entries of configs/speedrun.py, so many seeds each; with --set each is run with every one of the values instead
table  what has ended: a table, JSON and a plot

Every command is printed as it could be typed. Run again, it goes on where it stopped.
"""

import argparse
import itertools
import shlex
import subprocess
import sys
from pathlib import Path

from mmbert_jax.config_file import load
from mmbert_jax.errors import UserError, run_main
from mmbert_jax.files import check_file, visible, write_json
from mmbert_jax.places import Place, place
from mmbert_jax.report.speedrun import (
    Finished,
    compare,
    plot_speedrun,
    read_run,
    speedrun_table,
)
from mmbert_jax.run import CONFIG

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = """example:
  python tools/speedrun.py data --input help.jsonl.gz --output runs/speedrun/help
  python tools/speedrun.py run --data runs/speedrun/help --entries stable_adamw --seeds 1 \\
      --set optimizer.peak_lr=5e-4,1e-3,2e-3,4e-3,8e-3
  python tools/speedrun.py run --data runs/speedrun/help --entries published stable_adamw --seeds 5
  python tools/speedrun.py table --data runs/speedrun/help --output docs/benchmarks/speedrun_help.json
"""
VOCABULARY = 8192
HELD_OUT = 0.02


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    data = commands.add_parser("data", help="text to tokeniser and corpus")
    data.add_argument("--input", nargs="+", metavar="FILE", help="text, JSONL (default: from CLDR)")
    data.add_argument("--text_field", default="text")
    data.add_argument("--language_field", default="language")
    data.add_argument("--output", type=place, required=True, help="folder")
    run = commands.add_parser("run", help="entries over seeds")
    run.add_argument("--data", type=place, required=True, help="folder that `data` made")
    run.add_argument("--entries", nargs="+", required=True, metavar="NAME")
    run.add_argument("--seeds", type=int, default=5, help="(default 5)")
    run.add_argument(
        "--set",
        dest="values",
        metavar="FIELD=A,B,...",
        help="a field of the config and the values that each entry is run with",
    )
    table = commands.add_parser("table", help="what has ended")
    table.add_argument("--data", type=place, required=True, help="folder that `data` made")
    table.add_argument(
        "--entries",
        nargs="+",
        metavar="NAME",
        help="which, in this order; each is compared with the one before (default: all, by name)",
    )
    table.add_argument(
        "--output", type=place, help="JSON file; beside it the plot, of the same name and .png"
    )
    return parser.parse_args()


def execute(command: list[str]) -> None:
    print(f"$ {shlex.join(command)}", flush=True)
    status = subprocess.run(command, check=False).returncode
    if status:
        raise UserError(f"the command above ended with status {status}; its messages say why")


def tool(name: str, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "tools" / name), *arguments]


def make_data(args: argparse.Namespace) -> None:
    out = args.output
    text = args.input or [str(out / "text.jsonl")]
    fields = ["--text_field", args.text_field, "--language_field", args.language_field]
    if not args.input and not (out / "text.jsonl").exists():
        execute(tool("make_cldr_text.py", "--output", *text))
    if not (out / "tokenizer").exists():
        vocabulary = ["--vocab_size", str(VOCABULARY), "--output", str(out / "tokenizer")]
        execute(tool("train_tokenizer.py", "--input", *text, *fields, *vocabulary))
    if not (out / "corpus").exists():
        rows = ["--row_length", str(load(config_of("published")).data.row_length)]
        rows += ["--held_out", str(HELD_OUT), "--tokenizer", str(out / "tokenizer")]
        rows += ["--output", str(out / "corpus")]
        execute(tool("prepare_corpus.py", "--input", *text, *fields, *rows))


def config_of(entry: str) -> str:
    return f"{ROOT / 'configs' / 'speedrun.py'}:{entry}"


def run_entries(args: argparse.Namespace) -> None:
    if args.seeds < 1:
        raise UserError(f"--seeds is {args.seeds}: it has to be at least 1")
    for entry in args.entries:
        load(config_of(entry))  # a name that there is not is said before hours of the others
    field, _, values = (args.values or "").partition("=")
    if args.values and not values:
        raise UserError(f"--set {args.values}: write FIELD=A,B,...")
    for seed, entry, value in itertools.product(
        range(args.seeds), args.entries, values.split(",") if values else [None]
    ):
        name = entry if value is None else f"{entry},{field}={value}"
        run = args.data / "runs" / name / str(seed)
        if finished(run) is not None:
            continue
        command = [sys.executable, "-m", "mmbert_jax.train", "--config", config_of(entry)]
        command += [f"--config.data.corpus={args.data / 'corpus'}", f"--config.seed={seed}"]
        command += [f"--config.{field}={value}"] if value is not None else []
        execute([*command, "--workdir", str(run)])
        print(f"{name}, seed {seed}: {finished(run).bits:.4f} bits a byte", flush=True)


def finished(run: Place) -> Finished | None:
    return read_run(run) if (run / CONFIG).exists() else None


def show_table(args: argparse.Namespace) -> None:
    if args.output:
        check_file(args.output)
    folder = args.data / "runs"
    names = args.entries or sorted(path.name for path in visible(folder))
    entries = {}
    for name in names:
        if not (folder / name).is_dir():
            raise UserError(f"{folder / name}: no run of this entry; run it first")
        found = [finished(run) for run in sorted(visible(folder / name))]
        entries[name] = [run for run in found if run is not None]
        if not entries[name]:
            raise UserError(f"{folder / name}: no run has ended; run the entry again, it goes on")
    table = compare(entries)
    print(speedrun_table(table))
    if args.output:
        write_json(args.output, table)
        plot_speedrun(table, args.output.with_suffix(".png"))
        print(f"wrote {args.output} and {args.output.with_suffix('.png').name}")


def main() -> None:
    args = parse_arguments()
    {"data": make_data, "run": run_entries, "table": show_table}[args.command](args)


if __name__ == "__main__":
    run_main(main)
