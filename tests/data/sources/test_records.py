"""Reading text: the same documents however they are stored, in chunks of bounded size; every fault with its place."""

import bz2
import gzip
import itertools
import json
import lzma
import struct

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from mmbert_jax.data.sources import Fields, find_inputs, pieces, read_documents, read_slice, split
from mmbert_jax.data.sources import records as reading
from mmbert_jax.errors import UserError

RECORDS = [
    ("eng", "a text"),
    ("deu", "zwei\nZeilen"),
    ("ell", "ένα"),
    ("eng", ""),
    ("jpn", "𠮷野家"),
]


def jsonl(records=RECORDS, **dumps) -> bytes:
    lines = [json.dumps({"language": a, "text": b}, **dumps) for a, b in records]
    return "".join(line + "\n" for line in lines).encode()


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def read(*paths, fields: Fields | None = None, language=None, default_language=None):
    """(input index, line, language, text) of every document."""
    inputs, _ = find_inputs(paths, language, default_language)
    fields = fields or Fields(language=language, default_language=default_language)
    documents = [d for batch in read_documents(inputs, fields) for d in batch.documents]
    assert all(d.utf8 == d.text.encode() for d in documents)
    return [tuple(d[:4]) for d in documents]


def write(path, content: bytes):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


EXPECTED = [(0, i, *record) for i, record in enumerate(RECORDS, 1)]

# --- what is read ---


@pytest.mark.parametrize(
    ("name", "store"),
    [
        ("a.jsonl", lambda data: data),
        ("a.ndjson", lambda data: data),
        ("a.json", lambda data: data[:-1]),  # no line end behind the last line
        ("a.jsonl", lambda data: data.replace(b"\n", b"\r\n")),
        ("a.jsonl.gz", gzip.compress),
        ("a.jsonl.zst", zstd),
        ("a.jsonl.bz2", bz2.compress),
        ("a.jsonl.xz", lzma.compress),
        ("a.jsonl.bz2", lambda data: bz2.compress(data[:31]) + bz2.compress(data[31:])),
        ("a.jsonl.xz", lambda data: lzma.compress(data[:31]) + lzma.compress(data[31:])),
        # By another name, or plain by a name of compressed text.
        ("a.jsonl", gzip.compress),
        ("a.json", lambda data: struct.pack("<III", 0x184D2A5F, 4, 99) + zstd(data)),
        ("a.json.gz", lambda data: data),
        ("a.jsonl.gz", zstd),
        ("a.jsonl.zst", lambda data: b"\xef\xbb\xbf" + data),
        ("a", lzma.compress),
        # As parallel compressors and `cat` leave them; pzstd puts a skippable frame before each.
        ("a.jsonl.gz", lambda data: gzip.compress(data[:31]) + gzip.compress(data[31:])),
        ("a.jsonl.zst", lambda data: zstd(data[:31]) + zstd(b"") + zstd(data[31:])),
        (
            "a.jsonl.zst",
            lambda data: struct.pack("<III", 0x184D2A50, 4, 99) + zstd(data),
        ),
    ],
)
def test_every_way_to_store_jsonl(tmp_path, name, store):
    assert read(write(tmp_path / name, store(jsonl()))) == EXPECTED
    assert read(write(tmp_path / name, store(jsonl(ensure_ascii=False)))) == EXPECTED


def test_folders_of_plain_text(tmp_path):
    for i, (language, text) in enumerate(RECORDS):
        write(tmp_path / "text" / language / f"part{i}" / "a.txt", text.encode())
    documents = read(tmp_path / "text")
    assert sorted(d[2:] for d in documents) == sorted(RECORDS)
    assert [d[:2] for d in documents] == [(i, 1) for i in range(5)]
    assert [d[2] for d in documents] == sorted(d[2] for d in documents)


def test_blank_lines_are_no_documents_but_count_as_lines(tmp_path):
    file = write(tmp_path / "a.jsonl", b"\n \t\n" + jsonl().replace(b"\n", b"\n\n"))
    assert [d[1] for d in read(file)] == [3, 5, 7, 9, 11]


def test_fields_can_be_named(tmp_path):
    line = json.dumps({"text": 1, "language": None, "content": "x", "lang": "fra"})
    file = write(tmp_path / "a.jsonl", line.encode())
    assert read(file, fields=Fields("content", "lang")) == [(0, 1, "fra", "x")]
    assert read(file, fields=Fields("content", language="deu")) == [(0, 1, "deu", "x")]
    named = Fields("content", "absent", default_language="und")
    assert read(file, fields=named) == [(0, 1, "und", "x")]


def test_mixed_inputs_are_numbered_in_order(tmp_path):
    a = write(tmp_path / "z.jsonl", jsonl(RECORDS[:1]))
    b = write(tmp_path / "folder" / "deu" / "b.txt", b"text")
    c = write(tmp_path / "folder" / "c.jsonl.gz", gzip.compress(jsonl(RECORDS[1:2])))
    d = write(tmp_path / "d.txt", b"alone")
    write(tmp_path / "folder" / "README.md", b"passed over")
    inputs, notes = find_inputs([a, tmp_path / "folder", d], None, "und")
    assert [item.path for item in inputs] == [a, c, b, d]
    assert notes == [f"passed over in {tmp_path}/folder: 1 *.md"]
    assert [item.size for item in inputs] == [item.path.stat().st_size for item in inputs]
    assert [x[2] for x in read(a, tmp_path / "folder", d, default_language="und")] == [
        *("eng", "deu", "deu", "und")
    ]


# --- pieces and batches ---


@given(
    sizes=st.lists(st.integers(0, 300), min_size=1, max_size=60),
    batch_bytes=st.integers(1, 3000),
    piece_bytes=st.integers(1, 3000),
    blank=st.sampled_from([b"\n", b"\r\n", b"\n\n \n"]),
    compressed=st.booleans(),
)
def test_pieces_and_batches_are_bounded_and_lose_nothing(
    tmp_path_factory, sizes, batch_bytes, piece_bytes, blank, compressed
):
    records = [("eng", f"{i}" + "x" * size) for i, size in enumerate(sizes)]
    data = jsonl(records).replace(b"\n", blank)
    folder = tmp_path_factory.mktemp("pieces")
    path = folder / ("a.jsonl.gz" if compressed else "a.jsonl")
    path.write_bytes(gzip.compress(data) if compressed else data)
    inputs, _ = find_inputs([path], None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "BATCH_BYTES", batch_bytes)
        for name in ("LARGEST", "LEAST", "_STRIPED"):
            patch.setattr(pieces, name, piece_bytes)
        parts = [part for piece in split(inputs) for part in piece]
        read = [list(read_slice(part, Fields())) for part in parts]
    if not compressed:
        assert all(part.stop - part.start <= piece_bytes for part in parts)
        assert sum(batch.bytes_read for batches in read for batch in batches) <= len(data)
    for batches in read:
        for batch in batches:
            lines = [len(jsonl([tuple(d[2:4])])) for d in batch.documents]
            assert sum(lines[:-1]) < batch_bytes
    # Numbers of slices that are not counted from the file's beginning are put right by what the ones before have.
    found, before = [], 0
    for part, batches in zip(parts, read, strict=True):
        first = 0 if part.is_counted else before
        found += [(first + d.number, d.text) for batch in batches for d in batch.documents]
        before = first + (batches[-1].records if batches else 0)
    numbers = [i for i, line in enumerate(data.split(b"\n"), 1) if line.strip()]
    assert sorted(found) == [(i, text) for i, (_, text) in zip(numbers, records, strict=True)]


def test_small_files_share_pieces_and_large_ones_do_not(tmp_path):
    for i in range(50):
        write(tmp_path / "eng" / f"{i:02}.txt", b"x" * 100_000)
    write(tmp_path / "eng" / "99.txt", b"y" * 3_000_000)
    write(tmp_path / "eng" / "99a.txt", b"z")
    write(tmp_path / "a.jsonl", jsonl() * 100_000)
    found = split(find_inputs([tmp_path], None)[0])
    names = [[part.source.path.name for part in piece] for piece in found]
    assert {name for piece in names for name in piece if name == "a.jsonl"}
    assert [len(piece) for piece in names if piece[0] != "a.jsonl"] == [21, 21, 8, 1, 1]
    large = [piece[0] for piece in found if piece[0].source.path.name == "a.jsonl"]
    assert len(large) > 5
    assert [part.start for part in large[1:]] == [part.stop for part in large[:-1]]
    assert large[-1].stop == large[-1].source.size


def test_a_line_of_a_piece_is_named_by_its_number_in_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "LARGEST", 1000)
    monkeypatch.setattr(pieces, "LEAST", 1000)
    lines = jsonl([("eng", f"{i}") for i in range(500)]).splitlines(keepends=True)
    for bad in (0, 1, 250, 499):
        path = write(tmp_path / "a.jsonl", b"".join([*lines[:bad], b"{\n", *lines[bad + 1 :]]))
        parts = [part for piece in split(find_inputs([path], None)[0]) for part in piece]
        with pytest.raises(UserError, match=f"a.jsonl, line {bad + 1}: invalid JSON"):
            list(itertools.chain.from_iterable(read_slice(part, Fields()) for part in parts))


# --- faults ---

GOOD = jsonl(RECORDS[:1])
BAD_LINES = [
    (b'{"language": "eng", "text": "\xff"}', "invalid UTF-8 at byte 29; convert the file to UTF-8"),
    (b'{"language": "eng", "text": "a"', "invalid JSON (Expecting ',' delimiter"),
    (b"words", "every line has to be one JSON object"),
    (b'["a", "b"]', "a JSON list where one JSON object a line is expected"),
    (b'"eng"', "a JSON str where one JSON object a line is expected"),
    (b"[" * 100_000, "invalid JSON ("),
    (b'{"text": ' + b"9" * 5000 + b"}", "invalid JSON ("),
    (
        b'{"language": "eng", "body": "a"}',
        "no field 'text', only 'language', 'body'; name the right one with --text_field",
    ),
    (
        b'{"text": "a"}',
        "no field 'language', only 'text'; name the right one with --language_field",
    ),
    (
        b'{"language": "eng", "text": 3}',
        "field 'text' is a int where a string is expected; name another one with --text_field",
    ),
    (b'{"language": "eng", "text": null}', "field 'text' is a NoneType where a string is expected"),
    (
        b'{"language": ["eng"], "text": "a"}',
        "field 'language' is a list where a string is expected",
    ),
    (b'{"language": "", "text": "a"}', "field 'language' is empty; name the language"),
    (
        b'{"language": "eng", "text": "a\\ud83d"}',
        "field 'text' holds half a surrogate pair, which is not valid Unicode; remove it",
    ),
    (b'{"language": "\\udc00", "text": "a"}', "field 'language' holds half a surrogate pair"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES, ids=[m[:30] for _, m in BAD_LINES])
def test_a_bad_line_is_named(tmp_path, line, message):
    file = write(tmp_path / "a.jsonl.zst", zstd(GOOD + b"\n" + line + b"\n" + GOOD))
    with pytest.raises(UserError) as caught:
        read(file)
    assert str(caught.value).startswith(f"{file}, line 3: ")
    assert message in str(caught.value)


def test_a_bad_line_far_into_a_large_file_is_named(tmp_path):
    file = write(tmp_path / "a.jsonl", GOOD * 60_000 + b"{\n" + GOOD)
    with pytest.raises(UserError, match="a.jsonl, line 60001: invalid JSON"):
        read(file)


def test_whole_surrogate_pairs_are_text(tmp_path):
    file = write(tmp_path / "a.jsonl", b'{"language": "eng", "text": "\\ud83d\\ude00"}')
    assert read(file) == [(0, 1, "eng", "😀")]


def test_text_files_with_invalid_utf8_are_named(tmp_path):
    write(tmp_path / "eng" / "a.txt", b"good")
    bad = write(tmp_path / "eng" / "b.txt", "é".encode("latin-1"))
    with pytest.raises(UserError, match=f"{bad}: invalid UTF-8 at byte 0; convert the file to"):
        read(tmp_path)


def damage(data: bytes) -> bytes:
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


DAMAGED = {
    "cut": ("a.jsonl.gz", gzip.compress(jsonl(RECORDS * 50))[:-20]),
    "last byte lost": ("a.jsonl.gz", gzip.compress(jsonl())[:-1]),
    "header cut": ("a.jsonl.gz", gzip.compress(jsonl())[:5]),
    "not compressed": ("a.jsonl.gz", b"\0\1" + gzip.compress(jsonl())[2:]),
    "more behind": ("a.jsonl.gz", gzip.compress(jsonl()) + b"more"),
    "checksum": ("a.jsonl.gz", gzip.compress(jsonl())[:-8] + bytes(8)),
    "empty": ("a.jsonl.gz", b""),
    "zst, cut": ("a.jsonl.zst", zstd(jsonl(RECORDS * 50))[:-20]),
    "zst, last byte lost": ("a.jsonl.zst", zstd(jsonl())[:-1]),
    "zst, header cut": ("a.jsonl.zst", zstd(jsonl())[:3]),
    "zst, second frame cut": ("a.jsonl.zst", zstd(jsonl()) + zstd(jsonl())[:-1]),
    "zst, not compressed": ("a.jsonl.zst", bytes(500)),
    "bz2, cut": ("a.jsonl.bz2", bz2.compress(jsonl(RECORDS * 50))[:-20]),
    "bz2, damaged": ("a.jsonl.bz2", damage(bz2.compress(jsonl(RECORDS * 50)))),
    "bz2, more behind": ("a.jsonl.bz2", bz2.compress(jsonl()) + b"more"),
    "xz, cut": ("a.jsonl.xz", lzma.compress(jsonl(RECORDS * 50))[:-20]),
    "xz, damaged": ("a.jsonl.xz", damage(lzma.compress(jsonl(RECORDS * 50)))),
    "xz, second stream damaged": ("a.jsonl.xz", 2 * lzma.compress(jsonl())[:-1]),
    "zst, more behind": ("a.jsonl.zst", zstd(jsonl()) + b"more"),
    "zst, empty": ("a.jsonl.zst", b""),
}


# Named, since gzip writes the time into what would be the ids, and the workers compare theirs.
@pytest.mark.parametrize(("name", "content"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_compressed_files_are_named(tmp_path, name, content):
    file = write(tmp_path / name, content)
    with pytest.raises(UserError) as caught:
        read(file)
    assert str(caught.value).startswith(f"{file}: damaged or not compressed as its name says (")
    assert str(caught.value).endswith("; copy or compress it again")


def test_paths_that_cannot_be_read(tmp_path):
    table = write(tmp_path / "table.csv", b"a,b")
    with pytest.raises(UserError, match="absent: no such file or folder"):
        find_inputs([tmp_path / "absent"], None)
    with pytest.raises(
        UserError, match=r"table.csv: cannot be read; expected \*.jsonl, \*.jsonl.gz"
    ):
        find_inputs([table], None)
    with pytest.raises(UserError, match="nothing to read in this folder; expected"):
        find_inputs([tmp_path], None)


def test_a_text_file_of_no_language(tmp_path):
    file = write(tmp_path / "a.txt", b"text")
    for path in (file, tmp_path):
        with pytest.raises(
            UserError, match=f"{file}: language not known; put it in a folder .*--language"
        ):
            find_inputs([path], None)
    assert read(tmp_path, language="eng") == [(0, 1, "eng", "text")]
