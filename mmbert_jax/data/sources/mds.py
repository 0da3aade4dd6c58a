"""MDS shards, the format of mosaicml-streaming (version 2), in which mmBERT's own training data are published.

A folder has an index.json, which lists its shards, each plain or compressed by zstd as a whole. A shard is
little-endian: u32 samples; u32 where each sample begins, and where the last ends; JSON with the columns; the samples,
each the u32 sizes of the columns that have no fixed one, then the columns' bytes. Nothing is ever unpickled: a column
of pickles can be passed over, not read.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import numpy as np

from mmbert_jax.data.sources.decompress import open_zstd, readable
from mmbert_jax.errors import UserError
from mmbert_jax.files import read_json
from mmbert_jax.places import Place

INDEX = "index.json"
# Positions within a shard are 32 bits.
_LARGEST_SHARD = 1 << 32
_MOST_SAMPLES = 1 << 26
_LARGEST_HEADER = 1 << 20
_PIECE = 1 << 20
_SCALARS = {
    "int": "<i8",
    **{f"uint{bits}": f"<u{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"int{bits}": f"<i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
}
# The byte before an array whose encoding does not name its type.
_ARRAY_TYPES = {8: "uint8", 9: "int8", 16: "uint16", 17: "int16", 18: "float16"}
_ARRAY_TYPES |= {32: "uint32", 33: "int32", 34: "float32", 64: "uint64", 65: "int64", 66: "float64"}
READABLE = "str, bytes, json, str_int, int, uint8 to float64, ndarray"


@dataclass(frozen=True)
class Shard:
    """A shard, as an index describes it.

    Attributes:
      path: of the file that is there: the plain one, or the compressed one.
      compressed: whether by zstd.
      samples: in it.
      size: bytes, not compressed.
    """

    path: Place
    compressed: bool
    samples: int
    size: int


def is_index(content: Any) -> bool:
    """Whether what an index.json holds is an index of MDS."""
    return (
        isinstance(content, dict)
        and isinstance(content.get("shards"), list)
        and all(isinstance(s, dict) and s.get("format") == "mds" for s in content["shards"])
    )


def read_index(index: Place) -> list[Shard]:
    """The shards that an index.json lists, in order; of a merged index those in folders below, too.

    Whether the files are there is not looked at: where a shard has a compressed and a plain file, the plain one is
    taken if it exists.

    Raises:
      UserError: it is no index of MDS of version 2; a shard would lie outside of the index's folder, has an absurd
        size, or is compressed by something else than zstd.
    """
    content = read_json(index)
    if not is_index(content) or content.get("version") != 2:
        raise UserError(f"{index}: no index of MDS shards of version 2")
    return [
        _shard(index, f"{index}, shard {i}", entry) for i, entry in enumerate(content["shards"])
    ]


def _shard(index: Place, name: str, entry: dict[str, Any]) -> Shard:
    if entry.get("version") != 2:
        raise UserError(f"{name}: version {entry.get('version')!r} where 2 is read")
    compression = entry.get("compression")
    if compression is not None and str(compression).partition(":")[0] != "zstd":
        raise UserError(f"{name}: compressed by {compression!r}; only zstd is read")
    raw, zipped = (_file(name, entry, key) for key in ("raw_data", "zip_data"))
    if raw is None:
        raise UserError(f"{name}: 'raw_data' is missing")
    samples = entry.get("samples")
    basename, size = raw
    if not _is_size(samples) or samples > _MOST_SAMPLES or 8 + 4 * samples > size:
        raise UserError(f"{name}: {samples!r} samples cannot be in {size} bytes")
    path = index.parent / basename
    compressed = compression is not None and zipped is not None
    if compressed and not path.is_file():
        return Shard(index.parent / zipped[0], True, samples, size)
    return Shard(path, False, samples, size)


def _file(name: str, entry: dict[str, Any], key: str) -> tuple[str, int] | None:
    file = entry.get(key)
    if file is None:
        return None
    if not isinstance(file, dict) or not isinstance(file.get("basename"), str):
        raise UserError(f"{name}: {key!r} names no file")
    basename, size = file["basename"], file.get("bytes")
    parts = PurePosixPath(basename).parts
    if not parts or parts[0] == "/" or ".." in parts or "\\" in basename or "\0" in basename:
        raise UserError(f"{name}: {basename!r} is no file within the index's folder; not read")
    if not _is_size(size):
        raise UserError(f"{name}: {key!r} has {size!r} bytes; at most 4 GiB are possible")
    return basename, size


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LARGEST_SHARD


def column_names(shard: Shard) -> list[str]:
    """The columns of a shard.

    Raises:
      UserError: it cannot be read, or is damaged.
    """
    with _open(shard) as stream:
        return list(_read_header(shard, stream, 0, 0)[0])


def read_samples(
    shard: Shard, start: int, stop: int, columns: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number of the sample in its shard, from 1; the values of `columns`) for samples `start` to `stop`.

    Memory is bounded by the largest sample and 4 bytes a sample.

    Args:
      columns: names; one that the shard lacks is absent from the samples. Strings come as bytes, which may be
        invalid UTF-8; arrays as NumPy's.

    Raises:
      UserError: the shard cannot be read, is damaged, is not what its index says; a column that is asked for is
        pickled, or of a kind that is not read.
    """
    with _open(shard) as stream:
        encodings, offsets = _read_header(shard, stream, start, stop)
        for name in columns:
            if name in encodings:
                _check_encoding(shard, name, encodings[name][0])
        if start < stop:
            _skip(shard, stream, int(offsets[0]) - stream.tell())
        for i in range(start, stop):
            data = _read(shard, stream, int(offsets[i - start + 1]) - int(offsets[i - start]))
            place = f"{shard.path}, sample {i + 1}"
            yield i + 1, _decode_sample(data, encodings, columns, place)


@contextmanager
def _open(shard: Shard) -> Iterator["_Counting"]:
    with readable(shard.path), shard.path.open("rb") as raw:
        yield _Counting(open_zstd(raw) if shard.compressed else raw, raw, shard)


class _Counting:
    """A stream that knows its position, and goes ahead in it without reading where that is possible."""

    def __init__(self, stream: BinaryIO, raw: BinaryIO, shard: Shard):
        self._stream, self._position = stream, 0
        if not shard.compressed:
            size = raw.seek(0, 2)
            raw.seek(0)
            if size != shard.size:
                raise UserError(
                    f"{shard.path}: has {size} bytes where its index says {shard.size}; copy it again"
                )
        self._can_seek = not shard.compressed

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> bytes:
        # Bit by bit: memory is taken for what is there, not for what a header says.
        parts = []
        while size > 0 and (data := self._stream.read(min(size, _PIECE))):
            parts.append(data)
            self._position += len(data)
            size -= len(data)
        return b"".join(parts)

    def skip(self, size: int) -> None:
        if self._can_seek:
            self._stream.seek(self._position + size)
            self._position += size
            return
        while size > 0:
            data = self.read(min(size, _PIECE))
            if not data:
                return
            size -= len(data)


def _read(shard: Shard, stream: _Counting, size: int) -> bytes:
    # Never more than the shard is said to hold, and that much only once it has come.
    if size < 0 or stream.tell() + size > shard.size:
        raise UserError(
            f"{shard.path}: damaged: {size} bytes at {stream.tell()} of {shard.size}; copy it again"
        )
    data = stream.read(size)
    if len(data) != size:
        raise UserError(
            f"{shard.path}: ends after {stream.tell()} of {shard.size} bytes; copy it again"
        )
    return data


def _skip(shard: Shard, stream: _Counting, size: int) -> None:
    if size < 0 or stream.tell() + size > shard.size:
        raise UserError(f"{shard.path}: damaged: a sample begins outside of it; copy it again")
    stream.skip(size)


def _read_header(
    shard: Shard, stream: _Counting, start: int, stop: int
) -> tuple[dict[str, tuple[str, int | None]], np.ndarray]:
    """(column -> its encoding and fixed size, in their order), and where the samples `start` to `stop` begin and end"""
    (samples,) = np.frombuffer(_read(shard, stream, 4), "<u4").tolist()
    if samples != shard.samples:
        raise UserError(
            f"{shard.path}: has {samples} samples where its index says {shard.samples}; copy it again"
        )
    (first,) = np.frombuffer(_read(shard, stream, 4), "<u4").tolist()
    offsets = np.frombuffer(_read(shard, stream, 4 * samples), "<u4")
    offsets = np.concatenate([np.array([first], "<u4"), offsets])
    length = first - stream.tell()
    if not 0 <= length <= _LARGEST_HEADER:
        raise UserError(f"{shard.path}: damaged: a header of {length} bytes; copy it again")
    if (offsets[1:] < offsets[:-1]).any() or offsets[-1] > shard.size:
        raise UserError(f"{shard.path}: damaged: samples lie outside of it; copy it again")
    header = _read(shard, stream, length)
    try:
        config = json.loads(header)
        names, encodings, sizes = (
            config[f"column_{what}"] for what in ("names", "encodings", "sizes")
        )
        columns = {
            str(name): (str(encoding), size)
            for name, encoding, size in zip(names, encodings, sizes, strict=True)
        }
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{shard.path}: damaged: its header is no JSON of MDS ({error})") from None
    for name, (_, size) in columns.items():
        if size is not None and not _is_size(size):
            raise UserError(f"{shard.path}: damaged: column {name!r} has a size of {size!r}")
    return columns, offsets[start : stop + 1]


def _check_encoding(shard: Shard, name: str, encoding: str) -> None:
    kind = encoding.partition(":")[0]
    if kind == "pkl":
        raise UserError(
            f"{shard.path}: column {name!r} is pickled; reading it could run anything, so it is not read"
        )
    if kind not in ("str", "bytes", "json", "str_int", "ndarray", *_SCALARS):
        raise UserError(
            f"{shard.path}: column {name!r} is encoded as {encoding!r}; {READABLE} are read"
        )


def _decode_sample(
    data: bytes, encodings: dict[str, tuple[str, int | None]], wanted: Sequence[str], place: str
) -> dict[str, Any]:
    variable = sum(1 for _, size in encodings.values() if not size)
    if len(data) < 4 * variable:
        raise UserError(f"{place}: damaged: {len(data)} bytes are too few")
    sizes = iter(np.frombuffer(data, "<u4", variable).tolist())
    at, values = 4 * variable, {}
    for name, (encoding, size) in encodings.items():
        size = size or next(sizes)
        if at + size > len(data):
            raise UserError(f"{place}: damaged: column {name!r} reaches beyond its end")
        if name in wanted:
            try:
                values[name] = _decode(encoding, data[at : at + size])
            except (ValueError, KeyError, IndexError, RecursionError) as error:
                raise UserError(f"{place}: column {name!r} is no {encoding!r} ({error})") from None
        at += size
    return values


def _decode(encoding: str, data: bytes) -> Any:
    kind, _, details = encoding.partition(":")
    if kind in ("str", "bytes"):
        return data
    if kind == "json":
        return json.loads(data)
    if kind == "str_int":
        return int(data)
    if kind == "ndarray":
        return _decode_array(details, data)
    (value,) = np.frombuffer(data, _SCALARS[kind]).tolist()
    return value


def _decode_array(details: str, data: bytes) -> np.ndarray:
    """`ndarray[:type[:shape]]`: a byte for the type and the shape stand before the values unless they are named."""
    name, _, shape_text = details.partition(":")
    at = 0
    if not name:
        name, at = _ARRAY_TYPES[data[0]], 1
    elif name not in _ARRAY_TYPES.values():
        raise ValueError(f"type {name!r}")
    if shape_text:
        shape = tuple(map(int, shape_text.split(",")))
    else:
        dimensions, width = data[at] >> 2, 1 << (data[at] & 3)
        shape = tuple(np.frombuffer(data, f"<u{width}", dimensions, at + 1).tolist())
        at += 1 + dimensions * width
    return np.frombuffer(data[at:], np.dtype(name).newbyteorder("<")).reshape(shape)
