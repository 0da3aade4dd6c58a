"""Data sets that TFDS has prepared with array_record files, read by its own data sources; TensorFlow is not needed.

The library is imported only where such a folder is read: that takes half a second and some 20 MB.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from mmbert_jax.errors import UserError, brief
from mmbert_jax.files import read_json
from mmbert_jax.places import Place, is_remote

INFO, FEATURES = "dataset_info.json", "features.json"
# Records are fetched so many at a time.
_BATCH = 64
# features.json names the classes that decode; the library would import whatever it names.
_OWN_CLASS = re.compile(r"tensorflow_datasets\.core\.features\.[a-z0-9_.]*[A-Za-z0-9_]+")


def splits(folder: Place) -> dict[str, int]:
    """Split -> its records, of a data set's folder (the one of a version).

    Raises:
      UserError: it is damaged, lies in a bucket, or is stored in another format than array_record.
    """
    if is_remote(folder):
        raise UserError(
            f"{folder}: array_record reads TFDS data sets from disks alone; copy it to a disk"
        )
    info = read_json(folder / INFO)
    if not isinstance(info, dict) or not isinstance(info.get("splits"), list):
        raise UserError(f"{folder / INFO}: no description of a TFDS data set")
    if info.get("fileFormat") != "array_record":
        raise UserError(
            f"{folder}: stored as {info.get('fileFormat', 'tfrecord')}; only array_record is read without TensorFlow; "
            "prepare it again with file_format='array_record'"
        )
    try:
        return {
            str(split["name"]): sum(int(n) for n in split.get("shardLengths", []))
            for split in info["splits"]
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{folder / INFO}: damaged: its splits cannot be read") from None


def column_names(folder: Place) -> list[str]:
    """The features of a data set; a dictionary's with its own before their names, and a dot."""
    return _leaves(folder, _features(folder), "")


def read_records(
    folder: Place, split: str, start: int, stop: int, columns: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number of the record in its split, from 1; the values of `columns`) for records `start` to `stop`.

    Args:
      columns: names; dots reach into dictionaries. One that the data set lacks is absent from the records. Text comes
        as bytes, which may be invalid UTF-8.

    Raises:
      UserError: the data set cannot be read, or is damaged.
    """
    names = column_names(folder)
    wanted = [name for name in columns if name in names]
    source = _open(folder, split)
    if not 0 <= start <= stop <= len(source):
        raise UserError(f"{folder}: {split} has {len(source)} records, not {stop}")
    for at in range(start, stop, _BATCH):
        numbers = range(at, min(at + _BATCH, stop))
        with _naming(folder):
            records = source.__getitems__(list(numbers))
        for number, record in zip(numbers, records, strict=True):
            yield number + 1, {name: _reach(record, name) for name in wanted}


def _open(folder: Place, split: str) -> Any:
    import tensorflow_datasets

    with _naming(folder):
        builder = tensorflow_datasets.builder_from_directory(str(folder))
        return builder.as_data_source(split)


@contextmanager
def _naming(folder: Place) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the library and array_record raise what they like
        raise UserError(f"{folder}: cannot be read as a TFDS data set ({brief(error)})") from None


def _features(folder: Place) -> Mapping[str, Any]:
    features = read_json(folder / FEATURES)
    _check_classes(folder, features)
    return features


def _check_classes(folder: Place, value: Any) -> None:
    if isinstance(value, Mapping):
        name = value.get("pythonClassName")
        if name is not None and not (isinstance(name, str) and _OWN_CLASS.fullmatch(name)):
            raise UserError(
                f"{folder / FEATURES}: names the class {name!r}, which is none of TFDS's features; not read"
            )
        for inner in value.values():
            _check_classes(folder, inner)
    elif isinstance(value, list):
        for inner in value:
            _check_classes(folder, inner)


def _leaves(folder: Place, feature: Any, before: str) -> list[str]:
    try:
        inner = feature["featuresDict"]["features"]
        names = []
        for name, value in inner.items():
            nested = isinstance(value, dict) and "featuresDict" in value
            names += _leaves(folder, value, f"{before}{name}.") if nested else [before + name]
        return names
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{folder / FEATURES}: no dictionary of features") from None


def _reach(record: Any, name: str) -> Any:
    for key in name.split("."):
        record = record[key]
    return record
