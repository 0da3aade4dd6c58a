"""Runs the whole curriculum on a text, one command after the other, and reports what became of each group of languages.

tokeniser -> corpus -> phase 1 -> phase 2 -> three decay variants -> TIES merge -> Hugging Face folder -> table, plots.

Every command is printed as it could be typed. Run again, it goes on where it stopped.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mmbert_jax.config_file import load
from mmbert_jax.data.language_codes import describe_fit, read_as
from mmbert_jax.data.sources import Fields, count_languages, find_inputs
from mmbert_jax.errors import UserError, run_main
from mmbert_jax.files import check_folder, nan_for_null, read_json, visible, write_json, write_text
from mmbert_jax.metrics import duration
from mmbert_jax.places import Place, place
from mmbert_jax.report.examples import masked_examples
from mmbert_jax.report.plots import plot_losses, plot_shares
from mmbert_jax.report.runs import final_groups, language_shares
from mmbert_jax.report.table import held_out_table
from mmbert_jax.run import read_config

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
# Share of the documents that is set apart: far more than a large corpus needs, enough for some rows of each language.
HELD_OUT = 0.1
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
        choices=("cldr", "published"),
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
        default="runs/demo",
        help="folder for everything (default runs/demo)",
    )
    args, overrides = parser.parse_known_args()
    args.output = place(args.output)
    unknown = [word for word in overrides if not word.startswith("--config.")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if args.scale <= 0:
        raise UserError(f"--scale {args.scale}: it must be above 0")
    return args, overrides


def commands(args: argparse.Namespace, overrides: Sequence[str]) -> dict[str, str]:
    """Name of each step -> its command line, in the order in which they run."""
    python, tools = (shlex.quote(relative(path)) for path in (Path(sys.executable), ROOT / "tools"))
    demo = ROOT / "configs" / "demo.py"
    config = shlex.quote(relative(demo))
    out, text_field, language_field = map(
        shlex.quote, (str(args.output), args.text_field, args.language_field)
    )
    text = shlex.join(args.input) if args.input else f"{out}/text.jsonl"
    phases = {phase: load(f"{demo}:{phase},{args.languages}") for phase in STARTS_FROM}
    row_lengths = sorted({phase.data.row_length for phase in phases.values()})

    steps = {}
    if not args.input:
        steps["text"] = f"{python} {tools}/make_cldr_text.py --output {text}"
    steps["tokenizer"] = (
        f"{python} {tools}/train_tokenizer.py --input {text} --text_field {text_field}"
        f" --language_field {language_field} --vocab_size {args.vocab_size} --output {out}/tokenizer"
    )
    steps["corpus"] = (
        f"{python} {tools}/prepare_corpus.py --input {text} --text_field {text_field}"
        f" --language_field {language_field} --tokenizer {out}/tokenizer"
        f" --row_length {' '.join(map(str, row_lengths))} --held_out {HELD_OUT} --output {out}/corpus"
    )
    for phase, start in STARTS_FROM.items():
        fields = {"data.corpus": f"{out}/corpus"}
        if start:
            fields["init_from"] = f"{out}/{start}"
        if args.vocab_size != phases[phase].model.vocab_size:
            fields["model.vocab_size"] = fields["train.loss_chunk"] = str(args.vocab_size)
        if args.scale != 1:
            fields["train.tokens"] = str(round(args.scale * phases[phase].train.tokens))
            fields["data.max_passes"] = str(max(1.0, args.scale) * phases[phase].data.max_passes)
        steps[phase] = (
            f"{python} -m mmbert_jax.train --config {config}:{phase},{args.languages} --workdir {out}/{phase} "
            + " ".join(
                [
                    *(f"--config.{name}={value}" for name, value in fields.items()),
                    *map(shlex.quote, overrides),
                ]
            )
        )
    steps["merge"] = (
        f"{python} {tools}/merge.py --method ties --base {out}/phase2"
        f" --models {' '.join(f'{out}/{decay}' for decay in DECAYS)}"
        f" --density {DENSITY} --weights {' '.join(map(str, WEIGHTS))} --output {out}/merged"
    )
    steps["evaluation"] = (
        f"{python} -m mmbert_jax.evaluate.heldout --checkpoint {out}/merged --output {out}/merged_held_out.json"
    )
    steps["export"] = (
        f"{python} {tools}/export_hf.py --checkpoint {out}/merged --held_out {out}/merged_held_out.json"
        f" --output {out}/hf"
    )
    return steps


def relative(path: Path) -> str:
    """The path as one would type it here: relative where it lies below the working directory."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def run(name: str, command: str, number: str, out: Place) -> float:
    """Runs a step unless it was completed before; returns the seconds it took, then or now.

    Raises:
      UserError: the command failed, or the folder holds what another command line made.
    """
    print(f"\n[{number}] {PHASE_TITLES.get(name, name)}", flush=True)
    marker = out / "done" / f"{name}.json"
    if marker.exists():
        done = read_json(marker)
        if done["command"] != command:
            raise UserError(
                f"{out} was made with other options: this step was\n  {done['command']}\nand is now\n  {command}\n"
                "Give the same options, or another --output"
            )
        print(f"done already, in {duration(done['seconds'])}: {command}")
        return done["seconds"]
    seconds = execute(command, out)
    write_json(marker, {"command": command, "seconds": seconds})
    return seconds


def execute(command: str, out: Place) -> float:
    """Shows and runs a command line; returns the seconds it took. Raises `UserError` if it fails."""
    print(f"$ {command}", flush=True)
    # Programs that one step compiles serve the others.
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(out / "compilation_cache"))
    start = time.monotonic()
    done = subprocess.run(
        shlex.split(command), env=os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}, check=False
    )
    if done.returncode:
        raise UserError(
            f"this command ended with status {done.returncode}; mend what it says, then run this again"
        )
    return time.monotonic() - start


def show_filled_masks(out: Place) -> None:
    """Has the merged model guess one token in held-out documents of several scripts."""
    groups = read_config(out / "phase1")["eval"]["groups"]
    examples = masked_examples(out / "corpus", [groups[group] for group in GROUP_TITLES])
    if examples:
        python, merged = relative(Path(sys.executable)), str(out / "merged")
        texts = [example.text for example in examples]
        print("\nThe merged model on held-out texts")
        command = [
            python,
            "-m",
            "mmbert_jax.inference.fill_mask",
            "--checkpoint",
            merged,
            "--top_k",
            "3",
            "--text",
            *texts,
        ]
        execute(shlex.join(command), out)
        print("What stood there: " + "  ".join(f"{e.language} {e.hidden!r}" for e in examples))


def report(out: Place) -> None:
    """Prints the table of results, and writes it and the plots."""
    merged = nan_for_null(read_json(out / "merged_held_out.json"))
    results = {phase: final_groups(out / phase) for phase in STARTS_FROM} | {
        "merged": merged["held_out_groups"]
    }
    table = held_out_table(
        [(PHASE_TITLES[name], groups) for name, groups in results.items()], GROUP_TITLES
    )
    print(
        f"\nHeld-out loss (nats a target) and accuracy, mean over the languages of each group:\n\n{table}\n"
    )
    write_text(out / "results.txt", table + "\n")
    write_json(out / "results.json", results)

    groups = read_config(out / "phase1")["eval"]["groups"]
    shares = {PHASE_TITLES[p]: language_shares(out / p) for p in STARTS_FROM}
    listed = {x: i for i, x in enumerate(x for group in GROUP_TITLES for x in groups[group])}
    read = {language for of_phase in shares.values() for language in of_phase}
    meant = read_as(sorted(read), listed.keys())
    order = sorted(read, key=lambda x: listed.get(meant.get(x), len(listed)))
    plot_shares(shares, order, out / "shares.png")
    runs = {PHASE_TITLES[p]: out / p for p in STARTS_FROM}
    starts = {
        PHASE_TITLES[p]: PHASE_TITLES[start] if start else None for p, start in STARTS_FROM.items()
    }
    plot_losses(runs, starts, GROUP_TITLES, out / "losses.png")


def main() -> None:
    args, overrides = arguments()
    out = args.output
    check_folder(out, replace=True)
    if out.exists() and visible(out) and not (out / "done").is_dir():
        raise UserError(
            f"{out} is not empty and was not made by this program: choose another --output"
        )
    if args.input and not (out / "done" / "tokenizer.json").exists():
        inputs, _ = find_inputs(args.input, language=None)
        counts = count_languages(inputs, Fields(args.text_field, args.language_field))
        groups = load(f"{ROOT / 'configs' / 'demo.py'}:phase1,{args.languages}").eval.groups
        print(describe_fit(counts, groups, ("english", "phase1")), flush=True)
    (out / "done").mkdir(parents=True, exist_ok=True)
    # Not the folder alone, which in a bucket is nothing until an object lies in it.
    write_text(out / "done" / "begun", "")
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
        f"In {out}/: results.txt, results.json, shares.png (what each phase samples), losses.png, all runs, and hf/,"
        " which on a disk AutoModelForMaskedLM.from_pretrained loads."
    )


if __name__ == "__main__":
    run_main(main)
