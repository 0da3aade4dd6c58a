"""Text, where users keep it: which files it is (find), their lines (lines, decompress), the documents (records)."""

from mmbert_jax.data.sources.decompress import open_decompressed, readable
from mmbert_jax.data.sources.faults import Faults
from mmbert_jax.data.sources.find import find_inputs
from mmbert_jax.data.sources.inputs import FORMATS, Input
from mmbert_jax.data.sources.lines import is_blank, parse_object, string_field
from mmbert_jax.data.sources.listing import one_file
from mmbert_jax.data.sources.other_tokens import OtherTokenizer, load_other
from mmbert_jax.data.sources.pieces import Piece, Slice, split
from mmbert_jax.data.sources.records import (
    Batch,
    Document,
    Fields,
    count_languages,
    read_documents,
    read_slice,
    record_place,
)

__all__ = [
    "FORMATS",
    "Batch",
    "Document",
    "Faults",
    "Fields",
    "Input",
    "OtherTokenizer",
    "Piece",
    "Slice",
    "count_languages",
    "find_inputs",
    "is_blank",
    "load_other",
    "one_file",
    "open_decompressed",
    "parse_object",
    "read_documents",
    "read_slice",
    "readable",
    "record_place",
    "split",
    "string_field",
]
