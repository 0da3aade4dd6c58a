"""What the recipes share: arguments, local JSONL data, and the trainer's settings."""

import argparse
import json
from pathlib import Path

import torch
from datasets import Dataset


def parse_arguments(
    doc: str,
    argv: list[str] | None,
    *,
    batch_size: int,
    lr: float,
    warmup: float,
    mini_batch: int | None = None,
) -> argparse.Namespace:
    """Arguments of a recipe; the defaults are the published ones."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", required=True, type=local, help="folder that tools/export_hf.py wrote, on a disk"
    )
    parser.add_argument("--data", required=True, type=local, nargs="+", help="JSONL files")
    parser.add_argument("--output", required=True, type=local, help="folder for the trained model")
    parser.add_argument("--batch_size", type=int, default=batch_size, help=f"default {batch_size}")
    if mini_batch:
        parser.add_argument(
            "--mini_batch_size",
            type=int,
            default=mini_batch,
            help=f"texts that are on the device at once; changes nothing but memory and speed (default {mini_batch})",
        )
    parser.add_argument("--lr", type=float, default=lr, help=f"default {lr:g}")
    parser.add_argument(
        "--warmup", type=float, default=warmup, help=f"share of the steps, default {warmup:g}"
    )
    parser.add_argument("--epochs", type=float, default=1, help="default 1")
    parser.add_argument("--max_steps", type=int, default=-1, help="ends earlier; default: no limit")
    return parser.parse_args(argv)


def local(path: str) -> Path:
    """A path on a disk, which is all that PyTorch's libraries read and write."""
    if "://" in path:
        raise argparse.ArgumentTypeError(f"{path}: recipes work on a disk; copy it there first")
    return Path(path).expanduser()


def read_jsonl(paths: list[Path], columns: tuple[str, ...]) -> Dataset:
    """The records' `columns`, in this order; the losses go by order, not by name."""
    rows: dict[str, list] = {column: [] for column in columns}
    for path in paths:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    record = json.loads(line)
                    values = [record[column] for column in columns]
                except (ValueError, KeyError, TypeError) as error:
                    raise SystemExit(
                        f"error: {path}, line {number}: not a record with {', '.join(columns)} ({error!r})"
                    ) from None
                for column, value in zip(columns, values, strict=True):
                    rows[column].append(value)
    if not rows[columns[0]]:
        raise SystemExit(f"error: {paths[0]}: no records")
    return Dataset.from_dict(rows)


def trainer_settings(args: argparse.Namespace) -> dict:
    """Keyword arguments for a trainer's `TrainingArguments`: bf16 on a GPU, float32 on a CPU; nothing is reported."""
    on_gpu = torch.cuda.is_available()
    return {
        "output_dir": str(args.output),
        "num_train_epochs": args.epochs,
        "max_steps": args.max_steps,
        "per_device_train_batch_size": args.batch_size,
        "learning_rate": args.lr,
        "warmup_steps": args.warmup,  # a share where it is below 1
        "bf16": on_gpu,
        "use_cpu": not on_gpu,
        "logging_steps": 50,
        "save_strategy": "no",
        "report_to": "none",
        "seed": 12,
    }
