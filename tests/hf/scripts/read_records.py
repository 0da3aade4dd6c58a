"""What the recipes read of each JSONL file in WORK: the number of records, or the message; as JSON."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools" / "recipes"))
from common import read_jsonl

said = {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        said[path.name.split(".")[0]] = len(read_jsonl([path], ("query", "positive")))
    except SystemExit as end:
        said[path.name.split(".")[0]] = str(end)
print(json.dumps(said))
