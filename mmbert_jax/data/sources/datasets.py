"""The data sets among the files of a folder: MDS shards that an index lists, and TFDS folders."""

from collections.abc import Sequence

from mmbert_jax.data.sources import mds, tfds
from mmbert_jax.data.sources.inputs import Input
from mmbert_jax.data.sources.listing import Found
from mmbert_jax.errors import UserError
from mmbert_jax.files import read_json

Parts = tuple[str, ...]


def find_mds(files: Sequence[Found]) -> tuple[dict[Parts, Input | None], list[str]]:
    """Parts of shards -> what is to be read, of indexes -> None; and lines for the user.

    A merged index above others lists again what theirs do; each shard is read once, by the index nearest to it. Of a
    merged index shards may be absent (published ones are of whole corpora, and some name folders wrongly); of the index
    right beside them not.

    Raises:
      UserError: an index that is no good, or a shard that is not there.
    """
    there = {file.parts: file for file in files}
    indexes = [file for file in files if file.parts[-1] == mds.INDEX]
    found: dict[Parts, Input | None] = {}
    notes = []
    for file in sorted(indexes, key=lambda file: -len(file.parts)):
        if not mds.is_index(read_json(file.path)):
            continue
        found[file.parts] = None
        absent = 0
        for number, shard in enumerate(mds.read_index(file.path)):
            below = tuple(str(shard.path)[len(str(file.path.parent)) + 1 :].split("/"))
            parts = (*file.parts[:-1], *below)
            if parts in found:
                continue
            if parts not in there:
                if len(below) == 1:
                    raise UserError(
                        f"{shard.path} is not there, but {file.path} lists it; copy it again"
                    )
                absent += 1
                continue
            shard_file = there[parts]
            found[parts] = Input(
                shard_file.path, "mds", size=shard_file.size, index=file.path, number=number
            )
        if absent:
            notes.append(f"{file.path}: {absent} of the shards that it lists are not there")
    return found, notes


def find_tfds(files: Sequence[Found]) -> tuple[dict[Parts, list[Input]], list[str]]:
    """Data set's parts -> its splits, and lines for the user. Where there is a split `train`, only that is read.

    Raises:
      UserError: a data set that cannot be read.
    """
    there = {file.parts: file for file in files}
    found: dict[Parts, list[Input]] = {}
    notes = []
    for file in files:
        here = file.parts[:-1]
        if file.parts[-1] != tfds.INFO or (*here, tfds.FEATURES) not in there:
            continue
        splits = tfds.splits(file.path.parent)
        left = sorted(splits.keys() - {"train"}) if "train" in splits else []
        if left:
            notes.append(f"{file.path.parent}: only its split train is read, not {', '.join(left)}")
        found[here] = [
            Input(
                file.path,
                "tfds",
                size=sum(
                    x.size for x in files if x.parts[:-1] == here and f"-{split}." in x.parts[-1]
                ),
                split=split,
            )
            for split in splits
            if split not in left
        ]
    return found, notes
