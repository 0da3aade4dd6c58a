"""Records in, results out: in order, each once, whenever the process was killed; and what is said of bad input."""

import argparse
import errno
import fcntl
import gzip
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from mmbert_jax.errors import UserError
from mmbert_jax.inference import stream
from mmbert_jax.inference.output import Output
from mmbert_jax.inference.rows import Batch
from mmbert_jax.inference.vectors import encode
from mmbert_jax.places import place

RNG = np.random.default_rng(0)
WORDS = "the cat and the dog is a long way from here".split()


def write_records(path, count, opener=open):
    """Records with texts of 1 to 60 words; some have an id, there are blank lines."""
    with opener(path, "wt", encoding="utf-8") as file:
        for i in range(count):
            record = {"text": " ".join(RNG.choice(WORDS, RNG.integers(1, 60)))}
            if i % 3:
                record["id"] = f"é{i}"
            file.write(json.dumps(record) + "\n" * (1 + (i % 50 == 0)))
    return path


# --- the stream by itself, with a model that counts letters ---


def arguments(path, **overrides):
    fields = {"text_field": "text", "id_field": None, "pair_field": None, "batch_tokens": 200}
    return argparse.Namespace(input=path, **fields | overrides)


def count_letters(args, output, killed_at=None):
    """Every record's id and number of letters; batches come out of order; dies before a record, if told to."""
    written = 0

    def to_bytes(record, ids, result):
        nonlocal written
        if written == killed_at:
            raise KeyboardInterrupt
        written += 1
        return [f"{json.dumps(record.id)} {len(ids)} {result}\n".encode()]

    stream.process(
        args,
        output,
        tokenise=lambda records: ([[7] * len(r.text) for r in records], [False] * len(records)),
        start=lambda sequences: ((Batch(0, [[i]]), i) for i in reversed(range(len(sequences)))),
        by_text=lambda batch, out, sequences: [(out, sum(sequences[out]))],
        to_bytes=to_bytes,
    )
    output.finish()


@pytest.fixture
def records(tmp_path):
    return write_records(tmp_path / "in.jsonl", 500)


def expected_lines(path):
    records = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    return [
        f"{json.dumps(record.get('id', i))} {len(record['text'])} {7 * len(record['text'])}"
        for i, record in enumerate(records)
    ]


def test_order_and_ids(records, tmp_path, capsys):
    with closing(Output([tmp_path / "out"], {})) as output:
        count_letters(arguments(records), output)
    assert (tmp_path / "out").read_text().splitlines() == expected_lines(records)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "out"]
    assert "100.0%" in capsys.readouterr().err


def test_goes_on_wherever_it_was_stopped(records, tmp_path):
    """Stopped again and again, before the first commit, between and within windows; with a half-written last line."""
    path = tmp_path / "out"
    for killed_at in (0, 5, 150, 1, 130):
        with closing(Output([path], {})) as output:
            done = output.state["records"]
            with pytest.raises(KeyboardInterrupt):
                count_letters(arguments(records), output, killed_at)
            assert 0 <= output.state["records"] - done <= killed_at
        with (tmp_path / "out.partial").open("a") as file:
            file.write('{"half a li')
    assert done > 0
    with closing(Output([path], {})) as output:
        count_letters(arguments(records), output)
    assert path.read_text().splitlines() == expected_lines(records)


def test_killed_while_names_were_given(tmp_path, capsys):
    paths = [tmp_path / "a", tmp_path / "b"]
    with closing(Output(paths, {})) as output:
        output.append([b"1", b"2"])
        output.commit(1, 0, "")
        output._rename = lambda: (tmp_path / "b.partial").rename(tmp_path / "b")  # and no further
        output.finish()
    assert Output(paths, {}).complete
    assert "complete" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a": b"1", "b": b"2"}


def test_a_byte_order_mark_is_passed_over(records, tmp_path):
    """As in preparation, and so that the lines are still those that were read before."""
    path = tmp_path / "marked.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + records.read_bytes())
    with closing(Output([tmp_path / "out"], {})) as output:
        count_letters(arguments(path), output)
    assert (tmp_path / "out").read_text().splitlines() == expected_lines(records)


def test_a_disk_that_is_full_is_not_blamed_on_the_input(records, tmp_path, monkeypatch):
    def fail(self, parts):
        raise OSError(28, "No space left on device", "out.partial")

    monkeypatch.setattr(Output, "append", fail)
    with (
        closing(Output([tmp_path / "out"], {})) as output,
        pytest.raises(OSError, match="No space"),
    ):
        count_letters(arguments(records), output)


def test_a_pipe(records, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(records.read_bytes(),))
    writer.start()
    args = arguments(str(pipe))
    stream.check_arguments(args)
    with closing(Output([tmp_path / "out"], {})) as output:
        count_letters(args, output)
    writer.join()
    assert (tmp_path / "out").read_text().splitlines() == expected_lines(records)


@pytest.mark.parametrize("store", ["gs_bucket", "s3_bucket"])
def test_an_input_in_a_bucket(request, records, tmp_path, store):
    for suffix, compress in (("", bytes), (".gz", gzip.compress)):
        path = place(f"{request.getfixturevalue(store)}/in.jsonl{suffix}")
        path.write_bytes(compress(records.read_bytes()))
        args = arguments(str(path))
        stream.check_arguments(args)
        with closing(Output([tmp_path / f"out{suffix}"], {})) as output:
            count_letters(args, output)
        written = (tmp_path / f"out{suffix}").read_text()
        assert written.splitlines() == expected_lines(records)


def test_compressed_and_standard_input(tmp_path, monkeypatch, capsys):
    plain = write_records(tmp_path / "in.jsonl", 100)
    with gzip.open(tmp_path / "in.jsonl.gz", "wb") as file:
        file.write(plain.read_bytes())
    with plain.open() as standard_input:
        monkeypatch.setattr(sys, "stdin", standard_input)
        for name, source in (("a", tmp_path / "in.jsonl.gz"), ("b", stream.STANDARD)):
            with closing(Output([tmp_path / name], {})) as output:
                count_letters(arguments(source), output)
            assert (tmp_path / name).read_text().splitlines() == expected_lines(plain)
    assert "standard input: 100.0%" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a"', "invalid JSON"),
        (b'{"text": "\xff"}', "invalid UTF-8 at byte 10"),
        (b'["a"]', "a JSON list where one JSON object a line is expected"),
        (b'{"body": "a"}', "no field 'text', only 'body'; name the right one with --text_field"),
        (b'{"text": 3}', "field 'text' is a int where a string is expected"),
        (b'{"text": "\\ud800"}', "field 'text' holds half a surrogate pair"),
        (b'{"text": "a"}', "field 'key' is missing, which --id_field names"),
    ],
)
def test_names_the_line_that_is_no_record(tmp_path, line, message):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"text": "a", "key": 1}\n\n' + line + b"\n")
    args = arguments(path, id_field="key" if "key" in message else None)
    with (
        closing(Output([tmp_path / "out"], {})) as output,
        pytest.raises(UserError, match=f"in.jsonl, line 3: {message}"),
    ):
        count_letters(args, output)


def test_goes_on_behind_a_line_that_was_mended(tmp_path):
    """What was written before stays; only a change before it is refused."""
    records = write_records(tmp_path / "in.jsonl", 300)
    good = records.read_bytes()
    records.write_bytes(good.replace(b'{"text"', b'{"test"').replace(b'{"test"', b'{"text"', 250))
    with closing(Output([tmp_path / "out"], {})) as output:
        with pytest.raises(UserError, match="no field 'text'"):
            count_letters(arguments(records), output)
        assert output.state["records"] > 50
    records.write_bytes(good.replace(b"the", b"The", 1))
    with (
        closing(Output([tmp_path / "out"], {})) as output,
        pytest.raises(UserError, match="does not begin with the .* records"),
    ):
        count_letters(arguments(records), output)
    records.write_bytes(good)
    with closing(Output([tmp_path / "out"], {})) as output:
        count_letters(arguments(records), output)
    assert (tmp_path / "out").read_text().splitlines() == expected_lines(records)


def test_refuses_what_it_would_spoil(tmp_path):
    path = tmp_path / "out"
    with closing(Output([path], {"pooling": "mean"})) as output:
        output.append([b"12345"])
        output.commit(1, 0, "")
        with pytest.raises(UserError, match="another process is writing it"):
            Output([path], {"pooling": "mean"})
    with pytest.raises(UserError, match="begun with pooling 'mean', not 'cls'"):
        Output([path], {"pooling": "cls"})
    (tmp_path / "out.partial").write_bytes(b"123")
    with pytest.raises(UserError, match="has 3 bytes, but 5 were written"):
        Output([path], {"pooling": "mean"})
    (tmp_path / "other").touch()
    with pytest.raises(UserError, match="exists already"):
        Output([tmp_path / "other"], {})
    with pytest.raises(UserError, match="the folder .* does not exist"):
        Output([tmp_path / "no" / "out"], {})


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks(tmp_path, monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with closing(Output([tmp_path / "out"], {})) as output:
        output.append([b"1"])
        output.commit(1, 0, "")
        output.finish()
    assert (tmp_path / "out").read_bytes() == b"1"


def test_damaged_compressed_input(tmp_path):
    whole = write_records(tmp_path / "in.jsonl.gz", 300, gzip.open).read_bytes()
    (tmp_path / "in.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with (
        closing(Output([tmp_path / "out"], {})) as output,
        pytest.raises(UserError, match="damaged or not compressed as its name says"),
    ):
        count_letters(arguments(tmp_path / "in.jsonl.gz"), output)


# --- the command line ---


def command(hf_folder, source, output, *extra):
    module = [sys.executable, "-m", "mmbert_jax.inference.encode", "--checkpoint", hf_folder]
    words = [*module, "--input", source, "--output", output, "--batch_tokens", 512, *extra]
    return list(map(str, words))


def run(words, environment):
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def many_records(tmp_path_factory):
    """About ten windows."""
    return write_records(tmp_path_factory.mktemp("stream") / "in.jsonl", 600)


@pytest.fixture(scope="module")
def uninterrupted(hf_folder, many_records, environment):
    """(path of the JSONL, path of the array, compiled programs after the first and after the second run)"""
    cache = environment["JAX_COMPILATION_CACHE_DIR"]
    paths, programs = [], []
    for name in ("out.jsonl", "out.npy"):
        path = many_records.with_name(name)
        result = run(command(hf_folder, many_records, path), environment)
        assert result.returncode == 0, result.stderr
        assert "600 records, " in result.stderr
        paths.append(path)
        programs.append(sorted(p.name for p in Path(cache).glob("jit_*-cache")))
    return *paths, programs


def test_jsonl_and_array_hold_what_encode_gives(uninterrupted, many_records, model):
    jsonl, npy, _ = uninterrupted
    given = [json.loads(line) for line in many_records.read_text().splitlines() if line.strip()]
    lines = [json.loads(line) for line in jsonl.read_text().splitlines()]
    ids = [record.get("id", i) for i, record in enumerate(given)]
    assert [line["id"] for line in lines] == ids
    names = npy.with_suffix(".ids.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in names] == ids
    vectors = np.load(npy)
    assert vectors.dtype == np.float32
    assert (np.array([line["embedding"] for line in lines], np.float32) == vectors).all()
    texts = [record["text"] for record in given]
    np.testing.assert_allclose(vectors, encode(model, texts, batch_tokens=512), atol=1e-5)


def test_second_start_compiles_nothing(uninterrupted):
    _, _, (first, second) = uninterrupted
    assert any("encode" in name for name in first)
    assert second == first


@pytest.mark.parametrize("kind", [0, 1], ids=["jsonl", "npy"])
def test_killed_it_goes_on_to_the_same_bytes(
    uninterrupted, hf_folder, many_records, environment, tmp_path, kind
):
    whole = uninterrupted[kind]
    path = tmp_path / whole.name
    words = command(hf_folder, many_records, path)
    state = path.with_name(path.name + ".state.json")
    process = subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (state.exists() and json.loads(state.read_text())["records"]):
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < json.loads(state.read_text())["records"] < 600

    result = run(words, environment)
    assert result.returncode == 0, result.stderr
    assert "resuming behind" in result.stderr
    assert path.read_bytes() == whole.read_bytes()
    for ids in tmp_path.glob("*.ids.jsonl"):
        assert ids.read_bytes() == whole.with_suffix(".ids.jsonl").read_bytes()


def test_command_line_refuses(hf_folder, environment, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "a"}\n{"text"\n')
    result = run(command(hf_folder, bad, tmp_path / "out.jsonl"), environment)
    assert result.returncode == 2
    assert f"error: {bad}, line 2: invalid JSON" in result.stderr
    result = run(command(hf_folder, bad, tmp_path / "o.npy", "--pooling", "tokens"), environment)
    assert result.returncode == 2
    assert "different numbers of tokens" in result.stderr
