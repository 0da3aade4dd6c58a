"""Runs a program of tools/ in the test's own process: what it imports and compiles, the tests then share."""

import importlib.util
import sys
from pathlib import Path

from mmbert_jax.errors import run_main

TOOLS = Path(__file__).resolve().parents[2] / "tools"


def run_tool(name: str, monkeypatch, capsys, *arguments) -> tuple[int, str]:
    """Its exit status, and what it printed: on standard output, or, where it failed, on standard error."""
    spec = importlib.util.spec_from_file_location(f"tool_{name}", TOOLS / f"{name}.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    try:
        run_main(tool.main)
    except SystemExit as ended:
        return ended.code, capsys.readouterr().err
    return 0, capsys.readouterr().out
