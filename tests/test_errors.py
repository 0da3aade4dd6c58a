"""How command lines end: one line for what a user can mend, a traceback for what only a programmer can."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
from safetensors import SafetensorError

from mmbert_jax.errors import UserError, explain, run_main

ROOT = Path(__file__).resolve().parent.parent


def tensorstore_error():
    import tensorstore

    try:
        tensorstore.open({"driver": "zarr", "kvstore": "file:///nowhere/at/all"}).result()
    except Exception as error:
        return error


def tokenizers_error():
    try:
        tokenizers.Tokenizer.from_str("{")
    except Exception as error:
        return error


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (UserError("config.x is wrong"), "config.x is wrong"),
        (
            OSError(errno.ENOSPC, "No space left on device", "out/a"),
            "out/a: No space left on device; make room, then run the same command again",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", b"out/a"),
            "out/a: Permission denied; see to what may be done there, or choose another place",
        ),
        (FileNotFoundError(errno.ENOENT, "No such file", "a", None, "b"), "a -> b: No such file"),
        (OSError("a shard is damaged"), "a shard is damaged"),
        (SafetensorError("header too large\nbacktrace"), "header too large"),
        (MemoryError(), "out of memory"),
    ],
)
def test_what_the_user_can_mend(error, text, capsys):
    assert explain(error) == text

    def main():
        raise error

    with pytest.raises(SystemExit) as ended:
        run_main(main)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {text}\n"


@pytest.mark.parametrize("make", [tokenizers_error, tensorstore_error])
def test_errors_of_libraries_that_have_no_class_of_their_own(make):
    text = explain(make())
    assert text
    assert "[" not in text
    assert "\n" not in text


@pytest.mark.parametrize(
    "error", [TypeError("x"), AssertionError(), ValueError("x"), KeyError("x"), RuntimeError("x")]
)
def test_faults_of_the_program_keep_their_traceback(error):
    assert explain(error) is None

    def main():
        raise error

    with pytest.raises(type(error)) as raised:
        run_main(main)
    assert raised.value is error


def test_ctrl_c_and_statuses(capsys):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        run_main(interrupted)
    assert ended.value.code == 130
    with pytest.raises(SystemExit) as ended:
        run_main(lambda: sys.exit(75))
    assert ended.value.code == 75
    run_main(lambda: None)
    assert capsys.readouterr().err == ""


PROGRAM = """
import sys
from mmbert_jax.errors import UserError, run_main
def main():
    for i in range({lines}):
        print("line", i)
    {end}
run_main(main)
"""


def ended(lines, end, stdout):
    code = PROGRAM.format(lines=lines, end=end)
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={name: x for name, x in os.environ.items() if name != "PYTHONUNBUFFERED"},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("lines", "end", "status", "message"),
    [
        (3, "", 141, ""),  # noticed when the program ends
        (100_000, "", 141, ""),  # noticed in the midst
        (3, "sys.exit(0)", 141, ""),
        (3, "raise UserError('wrong')", 2, "error: wrong\n"),
    ],
)
def test_a_reader_that_has_left(lines, end, status, message):
    reader, writer = os.pipe()
    os.close(reader)
    done = ended(lines, end, writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (status, message)


@pytest.mark.parametrize(("lines", "name"), [(3, "standard output: "), (100_000, "")])
def test_standard_output_on_a_full_disk(lines, name):
    with open("/dev/full", "w") as full:
        done = ended(lines, "", full)
    assert done.returncode == 2
    reason = f"{name}No space left on device; make room, then run the same command again"
    assert done.stderr == f"error: {reason}\n"


@pytest.mark.parametrize("locale", ["C.UTF-8", "C", "en_US.ISO-8859-1"])
def test_names_that_are_no_text_can_be_printed(locale):
    """As a file's name comes out of a manifest or a folder, whatever the terminal can show."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[2]); from mmbert_jax.errors import run_main\n"
        "run_main(lambda: print(sys.argv[1], 'und B\\xf6ses \\u4e00'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, os.fsdecode(b"caf\xe9"), str(ROOT)],
        capture_output=True,
        env=os.environ | {"LC_ALL": locale, "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith((b"caf\\udce9 und", b"caf\xe9 und"))
