"""Writes MDS folders by mosaicml-streaming's own writer, see write_mds.py."""

import json
from pathlib import Path

from peers import run_under


def folder(out, columns, samples, compression=None, size_limit=None):
    """What is to be written: samples with the encodings of `columns`, in shards of so many bytes."""
    return {
        "out": str(out),
        "columns": columns,
        "compression": compression,
        "size_limit": size_limit,
        "samples": samples,
    }


def write_mds(recipe_file, folders, merge=()):
    """Writes folders, and merged indexes above those in `merge`; skips the test where the library is absent."""
    recipe = {"folders": folders, "merge": [str(path) for path in merge]}
    recipe_file.write_text(json.dumps(recipe))
    run_under("streaming", Path(__file__).with_name("write_mds.py"), recipe_file)
