"""Nothing is ever half there, whatever fails; JSON that every reader takes."""

import contextlib
import errno
import fcntl
import json
import math
import os
import stat
import threading

import numpy as np
import pytest

from mmbert_jax import files
from mmbert_jax.errors import UserError
from mmbert_jax.files import (
    atomic_file,
    atomic_folder,
    check_file,
    check_folder,
    hidden_folder,
    read_json,
    to_json,
    try_lock,
    visible,
    write_json,
    write_text,
)
from mmbert_jax.growing import JsonLines


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# --- files ---


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_file_that_fails_leaves_the_old_one_and_is_named(tmp_path, monkeypatch, call):
    path = tmp_path / "a.txt"
    path.write_text("old")
    if call != "write":
        monkeypatch.setattr(files.os, call, full)

    def write():
        with atomic_file(path) as file:
            file.write("new")
            if call == "write":
                full()

    with pytest.raises(OSError, match="No space") as raised:
        write()
    assert raised.value.filename == str(path)
    assert names(tmp_path) == ["a.txt"]
    assert path.read_text() == "old"


def test_what_a_killed_program_left_of_a_file_is_taken_over(tmp_path):
    (tmp_path / ".a.txt.partial").write_text("half of a much longer text")
    write_text(tmp_path / "a.txt", "whole")
    assert names(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "whole"


def test_permissions_and_links_are_those_of_a_plain_open(tmp_path):
    old = os.umask(0o027)
    try:
        write_text(tmp_path / "new", "")
        with atomic_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(old)
    assert mode(tmp_path / "new") == 0o640
    assert mode(tmp_path / "folder") == 0o750
    (tmp_path / "new").chmod(0o604)
    (tmp_path / "link").symlink_to("new")
    write_text(tmp_path / "link", "through")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "new").read_text() == "through"
    assert mode(tmp_path / "new") == 0o604


def test_a_device_stays_one(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_text(tmp_path / "pipe", "x")
    assert os.read(reader, 9) == b"x"
    os.close(reader)
    assert names(tmp_path) == ["pipe"]


def test_what_cannot_be_written_is_refused_before_the_work(tmp_path):
    write_text(tmp_path / "file", "")
    check_file(tmp_path / "file")
    check_folder(tmp_path / "new" / "folder")
    with pytest.raises(UserError, match="is a folder; name a file"):
        check_file(tmp_path)
    with pytest.raises(UserError, match="the folder .*/no does not exist"):
        check_file(tmp_path / "no" / "file")
    with pytest.raises(UserError, match="file: is a file; name a folder"):
        check_folder(tmp_path / "file")
    with pytest.raises(UserError, match="is not empty"):
        check_folder(tmp_path)
    with pytest.raises(UserError, match="root of a disk"):
        check_folder("/proc", replace=True)


# --- files that grow ---


def test_lines_are_whole_whatever_ends_the_process(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    lines = JsonLines(path)
    lines.append({"n": 1, "loss": math.nan})
    assert path.read_text() == '{"n": 1, "loss": null}\n'
    write = os.write

    def half(descriptor, data):
        monkeypatch.setattr(files.os, "write", full)
        return write(descriptor, data[:3])

    monkeypatch.setattr(files.os, "write", half)
    with pytest.raises(OSError, match="No space") as raised:
        lines.append({"n": 2})
    assert raised.value.filename == str(path)
    monkeypatch.undo()
    lines.append({"n": 3})
    lines.close()
    with path.open("a") as file:
        file.write('{"n": 4')  # a process that was killed
    lines = JsonLines(path)
    lines.append({"n": 5})
    lines.close()
    assert [json.loads(line)["n"] for line in path.read_text().splitlines()] == [1, 3, 5]


# --- folders ---


def make(path, act, replace=False):
    """A folder with a file x, after which something happens."""
    with atomic_folder(path, replace) as folder:
        write_text(folder / "x", "1")
        act(folder)


def interrupt(_):
    raise KeyboardInterrupt


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    def wrong(folder):
        raise UserError(f"{folder / 'x'} is wrong")

    make(tmp_path / "a", lambda _: tmp_path.joinpath("a").exists() and pytest.fail("too early"))
    with pytest.raises(OSError, match="No space") as raised:
        make(tmp_path / "b", lambda _: full())
    assert raised.value.filename == str(tmp_path / "b")
    with pytest.raises(UserError, match="^.*/b/x is wrong$"):
        make(tmp_path / "b", wrong)
    with pytest.raises(FileNotFoundError) as raised:
        make(tmp_path / "b", lambda folder: (folder / "no").read_text())
    assert raised.value.filename == str(tmp_path / "b" / "no")
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["x"]


def test_a_folder_into_which_threads_still_write_is_removed_for_good(tmp_path):
    """As those of a library that has failed do: they make anew what is gone."""
    ended = threading.Event()

    def write(folder):
        for number in range(3000):
            # Both may meet what is just being removed; mkdir finds a name that is gone when it looks what it is.
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                (folder / "item").mkdir(parents=True, exist_ok=True)
                (folder / "item" / str(number)).touch()
        ended.set()

    def fail():
        with atomic_folder(tmp_path / "out") as folder:
            threading.Thread(target=write, args=(folder,)).start()
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        fail()
    assert ended.wait(10)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_replaced_only_by_a_whole_one(tmp_path):
    target = tmp_path / "a"
    for text in ("1", "2"):
        with atomic_folder(target, replace=True) as folder:
            write_text(folder / text, text)
    assert names(target) == ["2"]
    with pytest.raises(KeyboardInterrupt):
        make(target, interrupt, replace=True)
    with pytest.raises(UserError, match="is not empty"):
        make(target, lambda _: pytest.fail("the block of a folder that is refused"))
    assert names(target) == ["2"]
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("renamed", [1, 2])
def test_killed_while_folders_change_places(tmp_path, monkeypatch, renamed):
    """Between the two renames the old folder has a hidden name; the next program gives it its own again."""
    target = tmp_path / "a"
    with atomic_folder(target) as folder:
        write_text(folder / "old", "")
    done = []

    class Killed(BaseException):
        pass

    real = type(target).rename

    def rename(self, to):
        if len(done) == renamed:
            raise Killed
        done.append(to)
        return real(self, to)

    def nothing(*_, **__):
        if len(done) == renamed:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(type(target), "rename", rename)
        patch.setattr(files.shutil, "rmtree", nothing)
        patch.setattr(files, "try_lock", lambda _: None)  # a dead process holds none
        with pytest.raises(Killed):
            make(target, lambda _: None, replace=True)
    assert len(names(tmp_path)) == 2
    with hidden_folder(target):
        assert names(target) == (["old"] if renamed == 1 else ["x"])
    assert names(tmp_path) == ["a"]


def test_what_killed_programs_left_goes_and_what_others_are_at_stays(tmp_path):
    (tmp_path / ".a.partial-0123abcd").mkdir()
    (tmp_path / ".a.partial-0123abcd" / "x").touch()
    (tmp_path / ".a.partial-notes").mkdir()  # nobody's of ours
    (tmp_path / ".b.partial-0123abcd").mkdir()
    with hidden_folder(tmp_path / "a") as first, hidden_folder(tmp_path / "a") as second:
        assert names(tmp_path) == sorted(
            [".a.partial-notes", ".b.partial-0123abcd", first.name, second.name]
        )
    assert names(tmp_path) == [".a.partial-notes", ".b.partial-0123abcd"]
    assert visible(tmp_path) == []


# --- locks ---


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks(tmp_path, monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with (tmp_path / "a").open("w") as file:
        assert try_lock(file) is None
    (tmp_path / ".b.partial-0123abcd").mkdir()  # abandoned or not: nobody can tell
    with atomic_folder(tmp_path / "b") as folder:
        write_text(folder / "x", "")
    assert names(tmp_path) == [".b.partial-0123abcd", "a", "b"]


def test_a_lock_is_held_once(tmp_path):
    with (tmp_path / "a").open("w") as one:
        assert try_lock(one) is True
        with (tmp_path / "a").open("w") as other:
            assert try_lock(other) is False
    with (tmp_path / "a").open("w") as other:
        assert try_lock(other) is True


# --- JSON ---


def test_json_is_always_json(tmp_path):
    value = {
        "nan": [math.nan, (math.inf, np.float32("-inf"))],
        "numpy": [np.float32(0.5), np.int64(7), np.bool_(True), np.arange(2)],
        "text": "ü \ud800",
    }
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_bytes().decode("utf-8")
    assert "ü" in text
    assert json.loads(text, parse_constant=pytest.fail) == {
        "nan": [None, [None, None]],
        "numpy": [0.5, 7, True, [0, 1]],
        "text": "ü \ud800",
    }
    assert read_json(tmp_path / "a.json")["numpy"][1] == 7
    assert to_json({"b": 1, "a": 2}, sort_keys=True) == '{"a": 2, "b": 1}'


@pytest.mark.parametrize("data", [b"", b"{", b"\xff"])
def test_damaged_json_is_named(tmp_path, data):
    with pytest.raises(UserError, match="a.json is missing"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(UserError, match="a.json is damaged"):
        read_json(tmp_path / "a.json")
