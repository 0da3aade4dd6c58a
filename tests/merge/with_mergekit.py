"""mergekit in a process of its own: merges of tensors, or a recipe's parameters by tensor.

    FILE.npz OUTPUT.npz    the first holds the cases, the second gets what mergekit makes of them

Of a case NAME there are NAME/method, NAME/parameters (JSON, as `merge_tensors` takes them), NAME/tensors, stacked, the
base first where there is one, NAME/base (its index or -1) and, for DARE and DELLA, NAME/draws: numbers in [0, 1), one
an entry, below the probability of what is kept.

    FILE.yaml              of the tensors in standard input (JSON: name -> place between first layer and last)
"""

import json
import sys
import types

import numpy as np
import torch
import yaml
from mergekit.merge_methods import get, merge_tensors


def merge(source: str, target: str) -> None:
    cases = np.load(source)
    results = {}
    for name in sorted({key.rpartition("/")[0] for key in cases}):
        if f"{name}/draws" in cases:
            draws = iter(torch.from_numpy(cases[f"{name}/draws"]))
            torch.bernoulli = lambda share, draws=draws: (
                next(draws).reshape(share.shape) < share
            ).to(share.dtype)
        base = int(cases[f"{name}/base"])
        results[name] = merge_tensors(
            list(torch.from_numpy(cases[f"{name}/tensors"])),
            str(cases[f"{name}/method"]),
            parameters=json.loads(str(cases[f"{name}/parameters"])),
            base_index=None if base < 0 else base,
        ).numpy()
    np.savez(target, **results)


def resolve(path: str) -> None:
    # How models lie on disk and which tokeniser they get asks for packages that parameters have no need of.
    sys.modules["mergekit.common"] = types.SimpleNamespace(ModelReference=str)
    for name in ("mergekit.tokenizer", "mergekit.tokenizer.config"):
        sys.modules[name] = types.SimpleNamespace(TokenizerConfig=dict)
    from mergekit.config import MergeConfiguration
    from mergekit.parameter_resolver import resolve_parameters

    with open(path) as file:
        config = MergeConfiguration.model_validate(yaml.safe_load(file))
    own = {definition.model: definition.parameters for definition in config.models}
    resolved = {}
    for name, t in json.load(sys.stdin).items():
        shared, by_model = resolve_parameters(
            get(config.merge_method).spec,
            tensor_name=name,
            inputs=dict.fromkeys(own, name),
            sources=lambda model: (own.get(model), config.parameters),
            base_model=config.base_model,
            t=t,
        )
        others = [of for model, of in by_model.items() if model != config.base_model]
        resolved[name] = shared | {key: [of[key] for of in others] for key in others[0]}
    print(json.dumps(resolved))


if __name__ == "__main__":
    resolve(sys.argv[1]) if sys.argv[1].endswith(".yaml") else merge(*sys.argv[1:])
