"""Runs the whole curriculum on a text, one command after the other, and reports what became of each group of languages.

tokeniser -> corpus -> phase 1 -> phase 2 -> three decay variants -> TIES merge -> Hugging Face folder -> table, plots.

Every command is printed as it could be typed. Run again, it goes on where it stopped.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from configs import demo
from mmbert_jax.errors import UserError, run_main
from mmbert_jax.metrics import duration
from mmbert_jax.report.examples import masked_examples
from mmbert_jax.report.plots import plot_losses, plot_shares
from mmbert_jax.report.runs import final_groups, language_shares, read_config
from mmbert_jax.report.table import held_out_table

ROOT = Path(__file__).resolve().parent.parent
DECAYS = ("decay_english", "decay_110", "decay_all")
# The phase that each starts from.
STARTS_FROM = {"phase1": None, "phase2": "phase1", **dict.fromkeys(DECAYS, "phase2")}
PHASE_TITLES = {
    "phase1": "phase 1",
    "phase2": "phase 2",
    "decay_english": "decay, English",
    "decay_110": "decay, 110",
    "decay_all": "decay, all",
    "merged": "TIES merge",
}
GROUP_TITLES = {
    "english": "English",
    "phase1": "from the start",
    "phase2": "added in phase 2",
    "last": "added last",
}
# Density and weights (in the order of DECAYS) of the merge. Such weights keep more of what decay_all alone has learnt
# about the languages that only it has seen; equal ones keep more of the others.
DENSITY, WEIGHTS = 0.5, (0.5, 0.5, 2.0)


def arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="examples:\n"
        "  python tools/curriculum.py\n"
        "  python tools/curriculum.py --input text.jsonl.gz --languages published --scale 2 --output runs/mine \\\n"
        "      --config.optimizer.peak_lr=1e-3\n\n"
        "What starts with --config. is passed on to every training phase.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--input", nargs="+", metavar="FILE", help="text, JSONL (default: text made from CLDR)"
    )
    parser.add_argument("--text_field", default="text", help="of the JSONL (default text)")
    parser.add_argument(
        "--language_field", default="language", help="of the JSONL (default language)"
    )
    parser.add_argument(
        "--languages",
        choices=sorted(demo.LANGUAGES),
        default="cldr",
        help="which language enters in which phase: lists of CLDR codes, or the published ones of ISO 639-3 codes",
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, help="factor on every phase's tokens (default 1)"
    )
    parser.add_argument(
        "--vocab_size", type=int, default=8192, help="of the tokeniser (default 8192)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/demo"),
        help="folder for everything (default runs/demo)",
    )
    args, overrides = parser.parse_known_args()
    unknown = [word for word in overrides if not word.startswith("--config.")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if args.scale <= 0:
        raise UserError(f"--scale {args.scale}: it must be above 0")
    return args, overrides


def commands(args: argparse.Namespace, overrides: Sequence[str]) -> dict[str, list[str]]:
    """Name of each step -> its command line, in the order in which they run."""
    out = args.output
    corpus, tokenizer = str(out / "corpus"), str(out / "tokenizer")
    text = args.input or [str(out / "text.jsonl")]
    text_field = ["--text_field", args.text_field]
    row_lengths = [
        str(demo.get_config(f"{phase},{args.languages}").data.row_length) for phase in STARTS_FROM
    ]

    steps = {}
    if not args.input:
        steps["text"] = [tool("make_cldr_text"), "--output", *text]
    steps["tokenizer"] = [
        *(tool("train_tokenizer"), "--input", *text, *text_field),
        *("--vocab_size", str(args.vocab_size), "--output", tokenizer),
    ]
    steps["corpus"] = [
        *(
            tool("prepare_corpus"),
            "--input",
            *text,
            *text_field,
            "--language_field",
            args.language_field,
        ),
        *(
            "--tokenizer",
            tokenizer,
            "--row_length",
            *dict.fromkeys(row_lengths),
            "--output",
            corpus,
        ),
    ]
    for phase, start in STARTS_FROM.items():
        tokens = round(args.scale * demo.PHASES[phase].tokens)
        steps[phase] = [
            *(
                "-m",
                "mmbert_jax.train",
                "--config",
                f"{relative(ROOT / 'configs/demo.py')}:{phase},{args.languages}",
            ),
            *("--workdir", str(out / phase), f"--config.data.corpus={corpus}"),
            *([f"--config.init_from={out / start}"] if start else []),
            *([f"--config.train.tokens={tokens}"] if args.scale != 1 else []),
            *([f"--config.model.vocab_size={args.vocab_size}"] if args.vocab_size != 8192 else []),
            *overrides,
        ]
    merged = str(out / "merged")
    steps["merge"] = [
        *(tool("merge"), "--method", "ties", "--base", str(out / "phase2")),
        *("--models", *(str(out / decay) for decay in DECAYS)),
        *("--density", str(DENSITY), "--weights", *map(str, WEIGHTS), "--output", merged),
    ]
    steps["evaluation"] = [
        *("-m", "mmbert_jax.evaluate.heldout", "--checkpoint", merged),
        *("--corpus", corpus, "--output", str(out / "merged_held_out.json")),
    ]
    steps["export"] = [tool("export_hf"), "--checkpoint", merged, "--output", str(out / "hf")]
    return {name: [relative(Path(sys.executable)), *command] for name, command in steps.items()}


def tool(name: str) -> str:
    return relative(ROOT / "tools" / f"{name}.py")


def relative(path: Path) -> str:
    """The path as one would type it here: relative where it lies below the working directory."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def run(name: str, command: Sequence[str], number: str, out: Path) -> float:
    """Runs a step unless it was completed before; returns the seconds it took, then or now.

    Raises:
      UserError: the command failed, or the folder holds what another command line made.
    """
    marker = out / "done" / f"{name}.json"
    print(f"\n[{number}] {PHASE_TITLES.get(name, name)}\n$ {shlex.join(command)}", flush=True)
    if marker.exists():
        done = json.loads(marker.read_text(encoding="utf-8"))
        if done["command"] != list(command):
            raise UserError(
                f"{out} was made with other options: there, this step was\n  {shlex.join(done['command'])}\n"
                "Give the same options, or another --output"
            )
        print(f"done already, in {duration(done['seconds'])}")
        return done["seconds"]
    start = time.monotonic()
    execute(name, command, out)
    seconds = time.monotonic() - start
    marker.parent.mkdir(exist_ok=True)
    partial = marker.with_suffix(".partial")
    partial.write_text(json.dumps({"command": list(command), "seconds": seconds}), encoding="utf-8")
    partial.replace(marker)
    return seconds


def execute(name: str, command: Sequence[str], out: Path) -> None:
    """Runs a command line; `UserError` if it fails, after what it said itself."""
    # Programs that one step compiles serve the others.
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(out / "compilation_cache"))
    status = subprocess.run(
        command, env=os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}, check=False
    ).returncode
    if status:
        raise UserError(
            f"step {name} ended with status {status}; mend what it says, then run this again to go on"
        )


def show_filled_masks(out: Path) -> None:
    """Has the merged model guess one token in held-out documents of several scripts."""
    groups = read_config(out / "phase1")["eval"]["groups"]
    examples = masked_examples(out / "corpus", [groups[group] for group in GROUP_TITLES])
    texts = [example.text for example in examples]
    command = [
        "-m",
        "mmbert_jax.inference.fill_mask",
        "--checkpoint",
        str(out / "merged"),
        "--top_k",
        "3",
        "--text",
        *texts,
    ]
    command = [relative(Path(sys.executable)), *command]
    print(f"\n$ {shlex.join(command)}", flush=True)
    execute("fill_mask", command, out)
    print("what stood there: " + "  ".join(f"{e.language} {e.hidden!r}" for e in examples))


def report(out: Path) -> None:
    """Prints the table of results, and writes it and the plots."""
    merged = json.loads((out / "merged_held_out.json").read_text(encoding="utf-8"))
    results = {phase: final_groups(out / phase) for phase in STARTS_FROM} | {
        "merged": merged["held_out_groups"]
    }
    table = held_out_table(
        [(PHASE_TITLES[name], groups) for name, groups in results.items()], GROUP_TITLES
    )
    print(
        f"\nHeld-out loss (nats a target) and accuracy, mean over the languages of each group:\n\n{table}\n"
    )
    (out / "results.txt").write_text(table + "\n", encoding="utf-8")
    (out / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")

    groups = read_config(out / "phase1")["eval"]["groups"]
    order = [language for group in GROUP_TITLES for language in groups[group]]
    plot_shares(
        {PHASE_TITLES[p]: language_shares(out / p) for p in STARTS_FROM}, order, out / "shares.png"
    )
    runs = {PHASE_TITLES[p]: out / p for p in STARTS_FROM}
    starts = {
        PHASE_TITLES[p]: PHASE_TITLES[start] if start else None for p, start in STARTS_FROM.items()
    }
    plot_losses(runs, starts, GROUP_TITLES, out / "losses.png")


def main() -> None:
    args, overrides = arguments()
    out = args.output
    if out.exists() and any(out.iterdir()) and not (out / "done").is_dir():
        raise UserError(
            f"{out} is not empty and was not made by this program: choose another --output"
        )
    (out / "done").mkdir(parents=True, exist_ok=True)

    steps = commands(args, overrides)
    seconds = {}
    for number, (name, command) in enumerate(steps.items(), start=1):
        seconds[name] = run(name, command, f"{number}/{len(steps)}", out)
    show_filled_masks(out)
    report(out)

    times = ", ".join(
        f"{PHASE_TITLES.get(name, name)} {duration(s)}" for name, s in seconds.items()
    )
    print(f"Time: {duration(sum(seconds.values()))} ({times}).")
    print(
        f"In {out}/: results.txt, results.json, shares.png (what each phase samples), losses.png, all runs, and hf/:"
    )
    print(f"  AutoModelForMaskedLM.from_pretrained({str(out / 'hf')!r})")


if __name__ == "__main__":
    run_main(main)
