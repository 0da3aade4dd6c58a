"""The programs of the project, run in the process of the tests."""

import importlib
import importlib.util
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from mmbert_jax.errors import run_main

ROOT = Path(__file__).resolve().parents[1]


def module(name: str) -> ModuleType:
    """A module of the package, or a program by its path without the .py."""
    if name.startswith("mmbert_jax."):
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(name.rpartition("/")[2], ROOT / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def run_tool(name: str, monkeypatch, capsys, *arguments: object) -> tuple[int, str]:
    """A program of tools/: its exit status, and what it printed; where it failed, on standard error."""
    status = call(module(f"tools/{name}").main, [name, *map(str, arguments)], monkeypatch)
    said = capsys.readouterr()
    return status, said.err if status else said.out


def call(main, words: Sequence[str], monkeypatch) -> int:
    """Calls a program's `main` with the words of a command line, its own name first; its exit status."""
    monkeypatch.setattr(sys, "argv", list(words))
    on_term = signal.getsignal(signal.SIGTERM)
    try:
        run_main(main)
    except SystemExit as ended:
        return ended.code or 0
    finally:
        signal.signal(signal.SIGTERM, on_term)
    return 0
