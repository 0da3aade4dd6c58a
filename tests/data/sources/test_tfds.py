"""TFDS folders: what TFDS's own writer leaves."""

import json
import shutil
import sys

import pytest
from tfds_writer import write_tfds

from mmbert_jax.data.sources import tfds
from mmbert_jax.errors import UserError

RECORDS = [("eng", "a text"), ("deu", "zwei\nZeilen"), ("jpn", "𠮷野家")] * 50


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """The folder of a data set with RECORDS in their order, in its split `train`, and one in `test`."""
    folder = write_tfds(tmp_path_factory.mktemp("tfds"), {"train": RECORDS, "test": RECORDS[:1]})
    assert "tensorflow" not in sys.modules
    return folder


def test_what_the_library_wrote(written):
    assert tfds.splits(written) == {"train": 150, "test": 1}
    assert sorted(tfds.column_names(written)) == ["meta.language", "meta.n", "text"]
    columns = ["text", "meta.language", "none"]
    read = list(tfds.read_records(written, "train", 0, 150, columns))
    assert read == [
        (i, {"text": text.encode(), "meta.language": language.encode()})
        for i, (language, text) in enumerate(RECORDS, 1)
    ]
    assert list(tfds.read_records(written, "train", 60, 70, columns)) == read[60:70]
    assert list(tfds.read_records(written, "train", 70, 70, columns)) == []


@pytest.fixture
def copy(written, tmp_path):
    return type(written)(shutil.copytree(written, tmp_path / "copy"))


def test_classes_of_others_are_not_imported(copy):
    path = copy / "features.json"
    text = path.read_text().replace(
        "tensorflow_datasets.core.features.text_feature.Text", "antigravity.Text"
    )
    path.write_text(text)
    with pytest.raises(UserError, match="features.json: names the class 'antigravity.Text'"):
        list(tfds.read_records(copy, "train", 0, 1, ["text"]))
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("dataset_info.json", "{", "is damaged"),
        ("dataset_info.json", "[]", "no description of a TFDS data set"),
        (
            "dataset_info.json",
            '{"splits": [3], "fileFormat": "array_record"}',
            "splits cannot be read",
        ),
        ("dataset_info.json", '{"splits": []}', "stored as tfrecord; only array_record is read"),
        ("features.json", "{}", "no dictionary of features"),
    ],
)
def test_damaged_descriptions(copy, name, content, message):
    (copy / name).write_text(content)
    with pytest.raises(UserError, match=f"{copy}.*{message}"):
        tfds.splits(copy), tfds.column_names(copy)


def test_damaged_records(copy):
    (shard,) = copy.glob("*train*array_record*")
    data = shard.read_bytes()
    for size in (0, 10, len(data) - 1):
        shard.write_bytes(data[:size])
        with pytest.raises(UserError, match=f"{copy}: cannot be read as a TFDS data set"):
            list(tfds.read_records(copy, "train", 0, 150, ["text"]))
    info = json.loads((copy / "dataset_info.json").read_text())
    assert [split["name"] for split in info["splits"]] == ["train", "test"]
