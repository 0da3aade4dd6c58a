"""What is read: a file, or the part of a data set that is read like one."""

from dataclasses import dataclass

from mmbert_jax.places import Place

FORMATS = ("jsonl", "text", "parquet", "mds", "tfds")


@dataclass(frozen=True)
class Input:
    """One input.

    Attributes:
      path: its file; of MDS a shard's, of TFDS the data set's dataset_info.json.
      format: one of FORMATS. A text file is one document.
      language: of all its records, by its folder's name; None where they say themselves.
      size: in bytes, as it is stored.
      sequential: of JSONL, whether it can only be read from its beginning, as what is compressed.
      split: of TFDS.
      index: of MDS the index.json that lists the shard.
      number: of MDS the shard's in the index, from 0.
    """

    path: Place
    format: str
    language: str | None = None
    size: int = 0
    sequential: bool = False
    split: str | None = None
    index: Place | None = None
    number: int = 0
