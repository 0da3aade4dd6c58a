"""Shards of a large corpus: few open at a time, each fault of the disk by its name, and the file they lie in."""

import contextlib
import errno
import os
import resource
import struct
import subprocess
import sys
import textwrap
import zlib

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from hypothesis import given
from hypothesis import strategies as st
from tiny_corpus import write_corpus

from mmbert_jax.data import corpus, open_files, rows
from mmbert_jax.data.open_files import OPEN
from mmbert_jax.data.shards import ShardWriter, count_rows, unreadable_array_record
from mmbert_jax.errors import UserError


def source_of(folder):
    return corpus.rows_source(folder, corpus.read_manifest(folder), 16, "train")


@pytest.fixture(autouse=True)
def _nothing_open():
    OPEN._open.clear()
    yield
    OPEN._open.clear()


@pytest.fixture(params=["new", "old"])
def folder(tmp_path, request):
    """120 rows in 40 shards."""
    old = request.param == "old"
    return write_corpus(tmp_path / "corpus", {"eng": 120}, rows_per_shard=3, old=old)


def under(limit, program, *arguments):
    """The command that runs a program in Python under a limit."""
    python = [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)]
    return ["bash", "-c", f'{limit}; exec "$@"', "bash", *python]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# --- the file of a shard ---


@given(st.lists(st.binary(max_size=10).map(lambda part: 4 * part), max_size=12))
def test_a_shard_is_as_the_module_says(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("shard") / "a.npy"
    writer = ShardWriter(path)
    for record in records:
        writer.write(record)
    writer.close()
    slots = np.load(path, mmap_mode="r")
    size = 8 + max(map(len, records), default=0)
    assert (slots.dtype.str, slots.shape) == ("<u4", (len(records), size // 4))
    assert path.stat().st_size == 128 + len(records) * size
    for row, record in enumerate(records):
        slot = slots[row].tobytes()
        assert slot[8:] == record.ljust(size - 8, b"\0")
        assert struct.unpack_from("<II", slot) == (zlib.crc32(slot[4:], row), len(record))
    assert count_rows(path) == len(records)
    assert os.listdir(path.parent) == ["a.npy"]


@pytest.mark.parametrize("damage", [b"", b"x" * 127, None, "cut", "longer"])
def test_the_rows_of_a_damaged_shard_are_not_counted(tmp_path, damage):
    path = next(write_corpus(tmp_path / "c", {"eng": 5}).glob("*.npy"))
    data = path.read_bytes()
    path.write_bytes(
        {"cut": data[:-1], "longer": data + b"\0", None: b"M" + data[1:]}.get(damage, damage)
    )
    with pytest.raises(UserError, match=f"{path}: shard is truncated or damaged; copy it again"):
        count_rows(path)


def test_a_full_disk_is_named(tmp_path):
    writer = ShardWriter(tmp_path / "a.npy")
    writer._file.close()
    writer._file = open("/dev/full", "wb")  # noqa: SIM115
    writer.write(b"a record")
    with pytest.raises(OSError, match="No space left on device: .*a.npy"):
        writer.close()


# --- few open files, whatever the number of shards ---


def test_few_shards_are_open_at_a_time(folder, monkeypatch):
    monkeypatch.setattr(open_files, "MOST_OPEN", 8)
    source = source_of(folder)
    expected = list(source)
    before = descriptors()
    OPEN._open.clear()
    assert before - descriptors() == 8
    assert source.__getitems__([*range(119, -1, -1)]) == expected[::-1]
    assert descriptors() == before


def test_shards_stay_open_while_there_is_room(folder, monkeypatch):
    source = source_of(folder)
    monkeypatch.setattr(open_files, "MOST_OPEN", 41)
    expected = list(source)
    opened = []
    for name in ("_open_slots", "_open_array_record"):
        monkeypatch.setattr(rows, name, opened.append)
    assert list(source) == expected
    assert not opened


def test_nothing_is_opened_before_it_is_needed(folder):
    before = descriptors()
    source = source_of(folder)
    assert descriptors() == before
    source.__getitems__([0, 2, 1])
    assert descriptors() == before + 1


def test_a_quarter_of_the_limit_is_used(monkeypatch):
    for soft, expected in ((16, 4), (256, 64), (1024, 256), (1 << 20, 256), (-1, 256)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, soft=soft: (soft, -1))
        assert open_files.most_open() == expected


@pytest.mark.parametrize("old", [False, True])
def test_2000_shards_under_a_low_limit(tmp_path, old):
    """In a process of its own, with the loader's threads."""
    folder = write_corpus(tmp_path / "corpus", {"eng": 2000}, rows_per_shard=1, old=old)
    program = """
        import os, sys
        from mmbert_jax.data.pipeline import microbatches, open_data
        config = {"corpus": sys.argv[1], "row_length": 16, "temperature": 1.0, "max_passes": 2.0,
                  "sources": {"web": {"share": 1.0, "languages": ()}}}
        data = open_data(config, 2000, seed=1)
        batches = list(microbatches(data, 100, [(i, i + 100) for i in range(0, 2000, 100)], prefetch=8))
        print(sum(batch["segment_ids"].any(1).sum() for batch in batches), len(os.listdir("/proc/self/fd")))
    """
    done = subprocess.run(
        under("ulimit -n 256", program, folder),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    read, left_open = map(int, done.stdout.split())
    assert read == 2000
    assert left_open < 128


# --- what keeps a shard from being read is told by its name ---

CASES = {
    errno.ENOENT: "shard is missing; copy it again",
    errno.ESTALE: "shard was replaced, or its disk mounted anew",
    errno.EIO: r"the disk cannot read this shard \(input/output error\); look into the system's log",
    errno.EMFILE: "too many open files: raise `ulimit -n`",
    errno.ENFILE: "too many open files on this machine",
    errno.EACCES: "shard may not be read: see to its permissions",
    errno.ENOMEM: "shard cannot be read: Cannot allocate memory",
}


def fails_with(number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", CASES)
@pytest.mark.parametrize("call", ["open", "pread", "stat"])
def test_faults_of_the_disk(tmp_path, monkeypatch, number, call):
    folder = write_corpus(tmp_path / "corpus", {"eng": 5})
    if call != "stat":
        source = source_of(folder)
        monkeypatch.setattr(os, call, fails_with(number))
        with pytest.raises(UserError) as caught:
            source[2]
    else:
        manifest = corpus.read_manifest(folder)
        monkeypatch.setattr(os, call, fails_with(number))
        with pytest.raises(UserError) as caught:
            corpus.rows_source(folder, manifest, 16, "train")
    monkeypatch.undo()
    assert caught.match(f"^{folder}/train_16-00000.npy: {CASES[number]}")
    assert "damaged" not in str(caught.value)


def test_a_shard_that_goes_or_changes_after_the_start(folder):
    source = source_of(folder)
    first, second, *_ = sorted(folder.glob("train_*"))
    first.unlink()
    with pytest.raises(UserError, match=f"^{first}: shard is missing; copy it again"):
        source[0]
    second.write_bytes(second.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"^{second}: .*truncated or .*; copy it again"):
        source[3]
    assert source[6]


def test_a_shard_that_is_cut_while_it_is_open(tmp_path):
    folder = write_corpus(tmp_path / "corpus", {"eng": 5})
    (path,) = folder.glob("train_*")
    source = source_of(folder)
    assert source[4]
    os.truncate(path, path.stat().st_size - 7)
    assert source[3]
    with pytest.raises(UserError, match=f"{path}: row 4 is damaged"):
        source[4]


def test_a_real_limit_of_open_files(folder):
    """The reader of ArrayRecord opens nothing then, without complaint, as if the shard were damaged."""
    source = source_of(folder)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors() + 2, limits[1]))
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        with pytest.raises(UserError, match=r"00000\.\w+: too many open files: raise `ulimit -n`"):
            source[0]
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert source[0]


@pytest.mark.parametrize(
    "number", [errno.ENOENT, errno.EMFILE, errno.EIO, errno.ESTALE, errno.EACCES]
)
def test_what_array_record_says_of_the_disk(number):
    """Its words as they are for ENOENT and EMFILE above."""
    said = RuntimeError(
        f"pread() failed: {os.strerror(number)}; reading a.arrayrecord; at byte 65536"
    )
    message = str(unreadable_array_record("a.arrayrecord", said))
    assert "damaged" not in message
    assert "damaged" in str(unreadable_array_record("a.arrayrecord", RuntimeError("hash mismatch")))


def test_an_older_shard_with_other_rows_is_named_when_it_is_opened(tmp_path):
    folder = write_corpus(tmp_path / "corpus", {"eng": 9}, old=True)
    (path,) = folder.glob("train_*")
    source = source_of(folder)
    writer = ArrayRecordWriter(str(path), "group_size:1")
    writer.write(b"one")
    writer.close()
    with pytest.raises(UserError, match=f"^{path}: 1 rows where the manifest says 9"):
        source[0]


# --- the limit itself ---


def test_programs_raise_their_limit_of_open_files():
    program = """
        import resource
        from mmbert_jax.errors import run_main
        run_main(lambda: print(*resource.getrlimit(resource.RLIMIT_NOFILE)))
    """
    done = subprocess.run(
        under("ulimit -Sn 100; ulimit -Hn 300", program),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["300", "300"], done.stderr
