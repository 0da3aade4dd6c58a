"""The folder of a corpus: whether it may be written, how it becomes one, and its copy of the tokeniser."""

from collections.abc import Iterator
from contextlib import contextmanager

from mmbert_jax import buckets
from mmbert_jax.data.corpus import MANIFEST, read_manifest
from mmbert_jax.data.tokenizer import Tokenizer
from mmbert_jax.errors import UserError
from mmbert_jax.files import atomic_folder, check_folder, is_left_of_upload, naming, visible
from mmbert_jax.places import Place, is_remote

TOKENIZER_FOLDER = "tokenizer"


def check_output(output: Place, overwrite: bool) -> None:
    """UserError unless `output` may be written: absent, empty, or a corpus of ours that is to be replaced."""
    check_folder(output, replace=True)
    if not output.exists() or is_left_of_upload(output):
        return
    found = {path.name for path in visible(output)}
    if not found:
        return
    if found - _files_of_corpus(output):
        raise UserError(
            f"{output}: holds something that is no corpus ({min(found - _files_of_corpus(output))}); name a new folder"
        )
    if not overwrite:
        raise UserError(
            f"{output}: holds a corpus; name a new folder or give --overwrite to replace it"
        )


def _files_of_corpus(folder: Place) -> set[str]:
    try:
        manifest = read_manifest(folder)
    except UserError:
        return set()
    files = {MANIFEST, TOKENIZER_FOLDER}
    for splits in manifest["row_lengths"].values():
        for split in splits.values():
            files |= {shard["file"] for shard in split["shards"]}
    return files


@contextmanager
def corpus_folder(output: Place, beside: Place) -> Iterator[Place]:
    """A folder to write a corpus to, which all processes see; it becomes `output` when the block ends well.

    Args:
      beside: a folder in the same bucket, below which it lies until then; on a disk it is hidden beside `output`.
    """
    if not is_remote(output):
        with atomic_folder(output, replace=True) as partial:
            yield partial
        return
    with naming(output):
        yield beside
        buckets.move_into(beside, output, last=MANIFEST)


def copy_tokenizer(tokenizer: Tokenizer, folder: Place) -> None:
    folder.mkdir(exist_ok=True)  # in a bucket a killed program's may be there
    for path in tokenizer.files():
        (folder / path.name).write_bytes(path.read_bytes())
