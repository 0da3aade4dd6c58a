"""One line of JSONL, and byte order marks wherever text or JSON is read."""

import codecs
import gzip
import json

import pytest

from mmbert_jax.data.sources import (
    Fields,
    find_inputs,
    is_blank,
    parse_object,
    read_documents,
)
from mmbert_jax.errors import UserError

MARK = codecs.BOM_UTF8


def documents(*paths):
    inputs, _ = find_inputs(paths, None)
    return [d for batch in read_documents(inputs, Fields()) for d in batch.documents]


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gz"])
def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path, compress):
    lines = [json.dumps({"language": "eng", "text": text}).encode() for text in ("a", "\ufeffb")]
    path = tmp_path / ("a.jsonl" if compress is bytes else "a.jsonl.gz")
    # The second one stands there where two files were put together.
    path.write_bytes(compress(MARK + lines[0] + b"\n" + MARK + lines[1] + b"\n" + MARK + b"\n"))
    assert [(d.number, d.text, d.utf8) for d in documents(path)] == [
        (1, "a", b"a"),
        (2, "\ufeffb", "\ufeffb".encode()),  # within the text it is text
    ]


def test_text_files_with_and_without_a_byte_order_mark_are_the_same(tmp_path):
    (tmp_path / "eng").mkdir()
    (tmp_path / "eng" / "a.txt").write_bytes(MARK + "Zürich".encode())
    (tmp_path / "eng" / "b.txt").write_bytes("Zürich".encode())
    with_mark, without = documents(tmp_path)
    assert with_mark[2:5] == without[2:5] == ("eng", "Zürich", "Zürich".encode())


@pytest.mark.parametrize("line", [b"", b"\n", b" \t\r\n", MARK, MARK + b"\n"])
def test_blank_lines(line):
    assert is_blank(line)


@pytest.mark.parametrize("line", [b"{}", MARK + b"{}", b"\n{"])
def test_other_lines(line):
    assert not is_blank(line)


@pytest.mark.parametrize("text", ['{"a": 1}', '\ufeff{"a": 1}', ' {"a": 1}\r\n'])
def test_utf8_alone_is_read(text):
    assert parse_object(text.encode(), "here") == {"a": 1}
    for encoding in ("utf-16", "utf-32"):
        with pytest.raises(UserError, match="^here: invalid"):
            parse_object(text.encode(encoding), "here")
