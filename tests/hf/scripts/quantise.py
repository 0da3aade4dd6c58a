"""Under Sentence Transformers: WORK/vectors.npz in the library's types, into WORK/theirs.npz."""

import sys
from pathlib import Path

import numpy as np
from sentence_transformers.util.quantization import quantize_embeddings

work = Path(sys.argv[1])
given = np.load(work / "vectors.npz")
theirs = {
    precision: quantize_embeddings(given["vectors"], precision)
    for precision in ("int8", "uint8", "binary", "ubinary")
}
for precision in ("int8", "uint8"):
    theirs[f"{precision}_ranges"] = quantize_embeddings(
        given["vectors"], precision, ranges=given["ranges"]
    )
np.savez(work / "theirs.npz", **theirs)
