"""Text, where users keep it: which files it is (find), their lines (lines, decompress), the documents (records)."""

from mmbert_jax.data.sources.decompress import open_decompressed, readable
from mmbert_jax.data.sources.find import Input, find_inputs
from mmbert_jax.data.sources.lines import is_blank, parse_object, string_field
from mmbert_jax.data.sources.listing import one_file
from mmbert_jax.data.sources.records import (
    Chunk,
    Document,
    Fields,
    count_languages,
    parse_chunk,
    read_chunks,
)

__all__ = [
    "Chunk",
    "Document",
    "Fields",
    "Input",
    "count_languages",
    "find_inputs",
    "is_blank",
    "one_file",
    "open_decompressed",
    "parse_chunk",
    "parse_object",
    "read_chunks",
    "readable",
    "string_field",
]
