"""A library can end the whole process over a damaged file: who is told of it is told which."""

import os
import signal
from pathlib import PosixPath

import pytest
from small_tokenizer import write_small_tokenizer

from mmbert_jax.data.prepare import Settings, prepare_corpus
from mmbert_jax.data.sources import Fields, Input
from mmbert_jax.errors import UserError


class Fatal(PosixPath):
    """A file of which the name says by which signal its reader ends."""

    def open(self, mode="r", *arguments):
        if self.name.startswith("SIG") and "r" in mode:
            os.kill(os.getpid(), signal.Signals[self.stem])
        return super().open(mode, *arguments)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("SIGABRT", "; either the file is damaged: compare its checksum, .*; or memory was short"),
        ("SIGKILL", "; either memory was short: try fewer --workers; or the file is damaged"),
    ],
)
def test_a_file_that_ends_its_reader_is_named(tmp_path, name, message):
    settings = Settings(write_small_tokenizer(tmp_path / "tok"), Fields(), (16,), held_out=0.0)
    inputs = []
    for file in ("good.jsonl", f"{name}.jsonl"):
        path = Fatal(tmp_path / file)
        path.write_bytes(b'{"language": "eng", "text": "words"}\n')
        inputs.append(Input(path, "jsonl", size=path.stat().st_size))
    expected = f"ended by signal {name} while it read {tmp_path}/{name}.jsonl{message}"
    with pytest.raises(UserError, match=expected):
        prepare_corpus(inputs, settings, tmp_path / "c", 2, "test")
    assert not (tmp_path / "c").exists()
