"""The folder of a corpus: whether it may be written, and its copy of the tokeniser."""

from pathlib import Path

from mmbert_jax.data.corpus import MANIFEST, read_manifest
from mmbert_jax.data.tokenizer import Tokenizer
from mmbert_jax.errors import UserError
from mmbert_jax.files import check_folder, visible
from mmbert_jax.places import Place

TOKENIZER_FOLDER = "tokenizer"


def check_output(output: Place, overwrite: bool) -> None:
    """UserError unless `output` may be written: absent, empty, or a corpus of ours that is to be replaced."""
    check_folder(output, replace=True)
    if not output.exists():
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


def copy_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    folder.mkdir()
    for path in tokenizer.files():
        (folder / path.name).write_bytes(path.read_bytes())
