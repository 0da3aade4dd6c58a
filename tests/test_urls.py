"""Files behind URLs: what is read is what lies there, or an error that names it, whatever the server does."""

import io
import pickle
import random

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from web_servers import CUT, RESET

from mmbert_jax import patience
from mmbert_jax.errors import UserError
from mmbert_jax.places import label, place, place_to_read, version
from mmbert_jax.urls import Url

CONTENT = random.Random(0).randbytes(3_000_000)


@pytest.fixture
def file(web):
    web.files["/a b/c.jsonl"] = CONTENT
    return place_to_read(f"{web.url}/a b/c.jsonl?key=1")


@pytest.fixture
def waits(monkeypatch):
    """The waits that there would have been."""
    found = []
    monkeypatch.setattr(patience.time, "sleep", found.append)
    return found


def parts(path, seed=0):
    """Reads here and there, and on, and compares."""
    draw = random.Random(seed)
    with path.open("rb") as stream:
        assert stream.seekable()
        for _ in range(30):
            at, n = draw.randrange(len(CONTENT)), draw.choice([1, 1000, 100_000, 1_000_000])
            stream.seek(at)
            assert stream.read(n) == CONTENT[at : at + n]
            assert stream.read(10) == CONTENT[at + n : at + n + 10]
        stream.seek(-5, io.SEEK_END)
        assert stream.read() == CONTENT[-5:]


# --- web servers ---


def test_names(file):
    assert (file.name, file.suffix, file.suffixes) == ("c.jsonl", ".jsonl", [".jsonl"])
    assert (file.exists(), file.is_file(), file.is_dir()) == (True, True, False)
    assert file.stat().length == len(CONTENT)
    assert pickle.loads(pickle.dumps(file)) == file
    absent = Url(str(file).replace("c.jsonl", "d.jsonl.gz"), "")
    assert absent.suffixes == [".jsonl", ".gz"]
    assert not absent.exists()
    with pytest.raises(UserError, match=r"d.jsonl.gz\?key=1: no such file or folder"):
        absent.open()


def test_parts_of_a_file(file, web):
    parts(file)
    longest = max(len(asked or "") for *_, asked in web.seen)
    assert 0 < longest < 30  # every request was for a range


def test_reading_on_takes_few_requests(file, web):
    with file.open() as stream:
        assert sum(map(len, iter(lambda: stream.read(10_000), b""))) == len(CONTENT)
    assert len(web.seen) < 10


@pytest.mark.parametrize("sizes", [True, False])
def test_a_server_without_ranges_is_read_from_the_beginning(file, web, sizes):
    web.ranges, web.sizes = "no", sizes
    assert file.stat().ranges is False
    with file.open() as stream:
        assert not stream.seekable()
        assert stream.peek(4)[:4] == CONTENT[:4]
        assert stream.read(10) == CONTENT[:10]
        assert stream.tell() == 10
        assert stream.read() == CONTENT[10:]
    with file.open() as stream, pytest.raises((UserError, io.UnsupportedOperation)):
        stream.seek(100_000)


def test_a_server_that_ignores_ranges_unlike_what_it_says_gives_no_wrong_data(file, web):
    web.ranges = "lies"
    with file.open() as stream, pytest.raises(UserError, match="answers with the whole file"):
        stream.read(10)


def test_a_file_that_changes_while_it_is_read(file, web):
    with file.open() as stream:
        stream.read(10)
        web.files["/a b/c.jsonl"] = CONTENT[:-1]
        with pytest.raises(UserError, match=r"bytes .*/2999999; it may have changed"):
            stream.read()


@pytest.mark.parametrize("ranges", ["yes", "no"])
@pytest.mark.parametrize("fault", [503, 429, CUT, RESET])
def test_failures_that_pass(file, web, ranges, fault, waits):
    """Every third request fails."""
    web.ranges = ranges
    web.fault = lambda *_: fault if len(web.seen) % 3 == 2 else None
    with file.open() as stream:
        assert stream.read() == CONTENT
    assert waits or fault == RESET  # after which aiohttp asks again by itself
    assert max(waits, default=0) <= 4


@pytest.mark.parametrize("fault", [503, CUT, RESET])
def test_failures_that_last(file, web, fault, waits):
    with file.open() as stream:
        web.fault = lambda *_: fault
        with pytest.raises(UserError, match=r"c.jsonl\?key=1: cannot be read .*try again later"):
            stream.read()
    assert waits == list(patience.WAITS)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_is_neither_waited_for_nor_taken_for_nothing_there(file, web, status, waits):
    web.fault = lambda *_: status
    with pytest.raises(UserError, match=f"c.jsonl.*cannot be read .*{status}"):
        file.exists()
    assert waits == []


def test_a_server_that_is_not_there(waits):
    with pytest.raises(UserError, match="http://127.0.0.1:9/a.jsonl: cannot be read .*onnect"):
        place_to_read("http://127.0.0.1:9/a.jsonl").is_file()
    assert sum(waits) <= 3


def test_web_servers_have_no_folders(web):
    with pytest.raises(UserError, match="web servers have no folders; name each file"):
        place_to_read(f"{web.url}/folder/")


def test_a_version_changes_with_the_content(file, web):
    before = version(file)
    assert version(file) == before
    web.files["/a b/c.jsonl"] = CONTENT[::-1]
    assert version(file) != before


# --- what else fsspec reads ---


class Flaky(MemoryFileSystem):
    """Every third read of a file loses its connection, or ends early."""

    protocol = "flaky"
    reads = 0
    early = False

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("flaky://"))

    def _open(self, path, mode="rb", **options):
        file = super()._open(path, mode, **options)
        if mode != "rb":
            return file
        copy = type("File", (io.BytesIO,), {})(file.getvalue())
        read = copy.read

        def lossy(n=-1):
            Flaky.reads += 1
            if Flaky.reads % 3 == 0 and not Flaky.early:
                raise ConnectionResetError(104, "reset by peer")
            return b"" if Flaky.reads % 3 == 0 else read(n)

        copy.read = lossy
        return copy


@pytest.mark.parametrize("early", [False, True])
def test_any_file_system_of_fsspec(early, monkeypatch, waits):
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr(Flaky, "early", early)
    system = fsspec.filesystem("flaky")
    system.pipe("/in/deu/a.txt", b"text")
    system.pipe("/in/b.jsonl", CONTENT)
    folder = place_to_read("flaky://in")
    assert folder.is_dir()
    assert folder.files_below() == {"deu/a.txt": 4, "b.jsonl": len(CONTENT)}
    parts(folder / "b.jsonl")
    assert waits


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nosuch://a/b", "nosuch://a/b: cannot be read .*nosuch"),
        ("dropbox://a", "dropbox://a: dropbox:// needs another package: "),
    ],
)
def test_schemes_that_nothing_reads(text, message):
    with pytest.raises(UserError, match=message):
        place_to_read(text)


def test_nothing_is_written_there(web):
    with pytest.raises(UserError, match="http:// is not read or written here, unless it is text"):
        place(f"{web.url}/corpus")
    with pytest.raises(ValueError, match="cannot be opened as 'wb'"):
        place_to_read(f"{web.url}/a").open("wb")


def test_local_places_and_buckets_are_what_they_were(tmp_path, gs_bucket):
    assert place_to_read(str(tmp_path)) == place(tmp_path)
    assert place_to_read(gs_bucket) == place(gs_bucket)
    assert label(place_to_read(str(tmp_path))) == str(tmp_path)
