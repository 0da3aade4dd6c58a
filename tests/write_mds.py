"""Writes MDS folders by mosaicml-streaming's own writer: `write_mds.py RECIPE`, run in .peers/streaming.

RECIPE is JSON: {"folders": [{"out", "columns", "compression", "size_limit", "samples"}], "merge": [folder, ...]}; lists
become arrays of the type that their column names.
"""

import importlib.util
import json
import sys
import types
from pathlib import Path

import numpy as np

# The package's own __init__ imports torchvision, for data sets of images.
package = types.ModuleType("streaming")
package.__path__ = list(importlib.util.find_spec("streaming").submodule_search_locations)
sys.modules["streaming"] = package

from streaming.base.format.mds.writer import MDSWriter  # noqa: E402
from streaming.base.util import merge_index  # noqa: E402


def value(encoding: str, given: object) -> object:
    if encoding == "bytes":
        return bytes.fromhex(given)
    if encoding.startswith("ndarray"):
        return np.array(given, [*encoding.split(":"), "uint32"][1])
    return given


recipe = json.loads(Path(sys.argv[1]).read_text())
for folder in recipe["folders"]:
    columns = folder["columns"]
    options = {"compression": folder["compression"], "size_limit": folder["size_limit"]}
    with MDSWriter(out=folder["out"], columns=columns, **options) as writer:
        for sample in folder["samples"]:
            writer.write({name: value(columns[name], x) for name, x in sample.items()})
for folder in recipe["merge"]:
    merge_index(folder, keep_local=True)
