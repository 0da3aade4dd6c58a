"""Parquet: the rows of some row groups, of which only the columns that are needed are read.

FineWeb2-HQ's rows carry embeddings of some 14 kB beside a text of 4 kB; its language is two columns.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmbert_jax.data.sources.decompress import readable
from mmbert_jax.errors import UserError, brief
from mmbert_jax.places import Place

MAGIC = b"PAR1"
# Columns are read through a buffer, not whole; of rows so many are made at a time as have this size on the average of
# all columns. (Of a single column the size is not asked for: where that is damaged, Arrow ends the process.)
_BUFFER_BYTES = 1 << 20
_BATCH_BYTES, _BATCH_ROWS = 1 << 20, 64


def row_groups(path: Place) -> list[int]:
    """The rows of each row group of a file, from its footer.

    Raises:
      UserError: it cannot be read, or is no Parquet.
    """
    with _open(path) as file:
        return [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]


def column_names(path: Place) -> list[str]:
    """The columns of a file; a struct's with its own before their names, and a dot."""
    with _open(path) as file:
        return _leaves(file.schema_arrow)


def read_rows(
    path: Place, start: int, stop: int, columns: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number of the row in its file, from 1; the values of `columns`) for the rows of some row groups.

    Strings come as bytes, which may be invalid UTF-8, and null as None. Memory is bounded by some
    megabytes, pages and the longest values, whatever the row groups' size.

    Args:
      start: the first row group.
      stop: the one after the last.
      columns: names; dots reach into structs, unless a column has that very name. One that the file lacks is absent
        from the rows.

    Raises:
      UserError: the file cannot be read, or is damaged.
    """
    with _open(path) as file:
        number = 1 + sum(file.metadata.row_group(i).num_rows for i in range(start))
        schema = file.schema_arrow
        wanted = {name: keys for name in columns if (keys := _keys(schema, name))}
        paths = [".".join(keys) for keys in wanted.values()]
        for group in range(start, stop):
            rows = file.metadata.row_group(group).num_rows
            size = file.metadata.row_group(group).total_byte_size // max(rows, 1)
            if not wanted:
                yield from ((number + i, {}) for i in range(rows))
                number += rows
                continue
            read = 0
            for batch in file.iter_batches(
                min(max(_BATCH_BYTES // max(size, 1), 1), _BATCH_ROWS),
                row_groups=[group],
                columns=paths,
                use_threads=False,
            ):
                values = [_values(batch, keys) for keys in wanted.values()]
                for row in zip(*values, strict=True):
                    yield number + read, dict(zip(wanted, row, strict=True))
                    read += 1
            if read != rows:
                raise UserError(f"{path}: row group {group} has {read} rows, not {rows}: damaged")
            number += rows


@contextmanager
def _open(path: Place) -> Iterator[pq.ParquetFile]:
    with readable(path), path.open("rb") as stream:
        # Arrow reads a local file by itself, without Python's lock.
        source = str(path) if isinstance(path, Path) else stream
        try:
            with pq.ParquetFile(
                source,
                buffer_size=_BUFFER_BYTES,
                pre_buffer=False,
                page_checksum_verification=True,
            ) as file:
                yield file
        except (pa.ArrowException, ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno:
                raise
            raise UserError(
                f"{path}: damaged, or no Parquet ({brief(error)[:200]}); copy the file again"
            ) from None
        except MemoryError:
            raise UserError(f"{path}: damaged: a size in it is beyond all memory") from None


def _keys(schema: pa.Schema, name: str) -> tuple[str, ...] | None:
    """The names that lead to a column: itself, or those of structs; None if there is none."""
    if name in schema.names:
        return (name,)
    parts = tuple(name.split("."))
    at: pa.Schema | pa.StructType = schema
    for i, part in enumerate(parts):
        if part not in at.names:
            return None
        inner = at.field(part).type
        if i + 1 < len(parts) and not pa.types.is_struct(inner):
            return None
        at = inner
    return parts


def _leaves(schema: pa.Schema | pa.StructType, before: str = "") -> list[str]:
    names = []
    for field in schema:
        if pa.types.is_struct(field.type):
            names += _leaves(field.type, f"{before}{field.name}.")
        else:
            names.append(before + field.name)
    return names


def _values(batch: pa.RecordBatch, keys: Sequence[str]) -> list[Any]:
    array = batch.column(keys[0])
    for key in keys[1:]:
        array = pc.struct_field(array, key)  # null where the struct is
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    # Arrow does not check that what a file calls UTF-8 is.
    if pa.types.is_large_string(array.type) or pa.types.is_string_view(array.type):
        array = array.cast(pa.large_binary())
    elif pa.types.is_string(array.type):
        array = array.cast(pa.binary())
    return array.to_pylist()
