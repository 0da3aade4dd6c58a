"""Merges with mergekit, in a process of its own: FILE.npz holds the cases, OUTPUT.npz gets what mergekit makes of them.

Of a case NAME there are NAME/method, NAME/parameters (JSON, as `merge_tensors` takes them), NAME/tensors, stacked, the
base first where there is one, NAME/base (its index or -1) and, for DARE, NAME/masks: what the dropping shall draw.
"""

import json
import sys

import numpy as np
import torch
from mergekit.merge_methods import merge_tensors


def main(source: str, target: str) -> None:
    cases = np.load(source)
    results = {}
    for name in sorted({key.rpartition("/")[0] for key in cases}):
        if f"{name}/masks" in cases:
            masks = iter(torch.from_numpy(cases[f"{name}/masks"]))
            torch.bernoulli = lambda share, masks=masks: next(masks).to(share.dtype)
        base = int(cases[f"{name}/base"])
        results[name] = merge_tensors(
            list(torch.from_numpy(cases[f"{name}/tensors"])),
            str(cases[f"{name}/method"]),
            parameters=json.loads(str(cases[f"{name}/parameters"])),
            base_index=None if base < 0 else base,
        ).numpy()
    np.savez(target, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
