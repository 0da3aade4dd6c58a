"""What the recipes share: arguments, local JSONL data, and the trainer's settings."""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from mmbert_jax.data.sources import (
    is_blank,
    open_decompressed,
    parse_object,
    readable,
    string_field,
)
from mmbert_jax.errors import UserError


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
    parser.add_argument(
        "--data", required=True, type=local, nargs="+", help="JSONL files, plain, .gz or .zst"
    )
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
    """The records' `columns`, in this order; the losses go by order, not by name.

    Files are read as by all programs: .gz and .zst, too; blank lines and byte order marks are passed over.
    """
    rows: dict[str, list] = {column: [] for column in columns}
    try:
        for path in paths:
            for where, record in _records(path):
                for column in columns:
                    rows[column].append(_value(record, column, where))
    except (UserError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    if not rows[columns[0]]:
        raise SystemExit(f"error: {paths[0]}: no records")
    return Dataset.from_dict(rows)


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each record of a file, and where it stands, for messages."""
    with path.open("rb") as raw, readable(path):
        for number, line in enumerate(open_decompressed(path, raw), start=1):
            if not is_blank(line):
                where = f"{path}, line {number}"
                yield where, parse_object(line, where)


def _value(record: dict[str, Any], column: str, where: str) -> Any:
    """A column's value: `label` is 0 or 1, `documents` are texts, `scores` numbers, all others are texts."""
    if column not in ("label", "documents", "scores"):
        return string_field(record, column, "its own name", where)[0]
    value = record.get(column)
    if column == "label":
        if value not in (0, 1):
            raise UserError(f"{where}: field 'label' is {value!r}; it has to be 0 or 1")
        return value
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: field {column!r} is {value!r}; it has to be a list, not empty")
    if column == "documents":
        numbered = {str(i): text for i, text in enumerate(value)}
        return [
            string_field(numbered, i, "its own name", f"{where}, documents")[0] for i in numbered
        ]
    if not all(isinstance(x, int | float) and math.isfinite(x) for x in value):
        raise UserError(f"{where}: field 'scores' is {value!r}; it has to hold numbers")
    return value


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
