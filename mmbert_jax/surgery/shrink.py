"""A smaller model to start training from, sampled out of a larger one at regular strides.

The paper started small from base in this way; no code for it is public, so the formulae are this project's own.

    picks(n, m) = floor(i n / m) for i = 0 .. m - 1          m of n, evenly spread, the first among them

Hidden dimensions (D of the model, everywhere the same ones), GLU dimensions (the same in both halves of Wi and in Wo)
and heads (whole, with the same ones in q, k, v and Wo: RoPE turns a head's dimensions in pairs, so a head is not cut)
are picked like this. Layers are picked from the global and from the local ones apart, so that each does what it did:
j-th global layer <- picks(global layers)[j], j-th local layer <- picks(local layers)[j]. The first stays the first, the
only one without an attention norm.

A sum over m of n inputs has m / n of the variance, if the inputs are as good as independent. So each weight that sums
over sampled inputs grows by sqrt(n / m), which keeps the variance of what comes out (where inputs are correlated, as in
trained models, it only loses less: docs/log.md):

    Wqkv, Wi, head.dense    * sqrt(D / D')
    attention's Wo          * sqrt(H / H')
    MLP's Wo                * sqrt(F / F')
    token embedding         * sqrt(D / D')    for the decoder, which is tied to it and sums over D; the embedding's norm
                                              takes the factor out again on the way in

Norms' weights and the decoder's bias are picked and not scaled. Of layers nothing is scaled.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mmbert_jax.errors import UserError
from mmbert_jax.model.config import ModelConfig


def picks(count: int, wanted: int) -> np.ndarray:
    """`wanted` of `count` indices at regular strides."""
    return np.arange(wanted) * count // wanted


def smaller_config(
    config: ModelConfig,
    *,
    hidden_size: int | None = None,
    num_layers: int | None = None,
    intermediate_size: int | None = None,
) -> ModelConfig:
    """A config with the sizes that are given; heads keep their size, so their number follows the hidden size.

    Raises:
      UserError: a size that is larger than the config's or does not hold whole heads.
    """
    hidden_size = config.hidden_size if hidden_size is None else hidden_size
    if hidden_size % config.head_dim:
        raise UserError(
            f"--hidden_size {hidden_size} does not hold whole heads: it has to be a multiple of {config.head_dim}"
        )
    wanted = {
        "hidden_size": hidden_size,
        "num_layers": config.num_layers if num_layers is None else num_layers,
        "intermediate_size": (
            config.intermediate_size if intermediate_size is None else intermediate_size
        ),
    }
    for name, size in wanted.items():
        if not 0 < size <= getattr(config, name):
            raise UserError(
                f"--{name} {size}: the larger model has {getattr(config, name)}; give 1 to that"
            )
    smaller = dataclasses.replace(config, **wanted, num_heads=hidden_size // config.head_dim)
    if smaller == config:
        raise UserError("the sizes are those that the model has: give a smaller one")
    return smaller


def pick_layers(config: ModelConfig, smaller: ModelConfig) -> list[int]:
    """The larger model's layer for each of the smaller one's."""

    def split(c: ModelConfig) -> tuple[list[int], list[int]]:
        layers = range(c.num_layers)
        return [i for i in layers if c.is_global(i)], [i for i in layers if not c.is_global(i)]

    source = {}
    for larger, wanted in zip(split(config), split(smaller), strict=True):
        for i, at in zip(wanted, picks(len(larger), len(wanted)) if wanted else (), strict=True):
            source[i] = larger[at]
    return [source[i] for i in range(smaller.num_layers)]


def shrink(params: Mapping, config: ModelConfig, smaller: ModelConfig) -> dict:
    """Parameters of the smaller model, sampled from those of the larger: nested dicts of float32 NumPy arrays.

    Args:
      params: of a model of `config`.
      smaller: see `smaller_config`.
    """
    d = picks(config.hidden_size, smaller.hidden_size)
    h = picks(config.num_heads, smaller.num_heads)
    f = picks(config.intermediate_size, smaller.intermediate_size)
    over_d = math.sqrt(config.hidden_size / smaller.hidden_size)
    over_h = math.sqrt(config.num_heads / smaller.num_heads)
    over_f = math.sqrt(config.intermediate_size / smaller.intermediate_size)

    # Name in a layer or at the top -> what of each dimension is taken (None: all), and the factor.
    sampled = {
        "embeddings/tokens": ((None, d), over_d),
        "embeddings/norm": ((d,), 1.0),
        "attn_norm": ((d,), 1.0),
        "attn/wqkv": ((d, None, h, None), over_d),
        "attn/wo": ((h, None, d), over_h),
        "mlp_norm": ((d,), 1.0),
        "mlp/wi": ((d, None, f), over_d),
        "mlp/wo": ((f, d), over_f),
        "final_norm": ((d,), 1.0),
        "head/dense": ((d, d), over_d),
        "head/norm": ((d,), 1.0),
        "head/bias": ((None,), 1.0),
    }

    def sample(x: np.ndarray, name: str) -> np.ndarray:
        taken, factor = sampled[name]
        indices = [np.arange(n) if t is None else t for n, t in zip(x.shape, taken, strict=True)]
        return np.asarray(x)[np.ix_(*indices)] * np.float32(factor)

    flat = flatten_dict(params, sep="/")
    result = {path: sample(x, path) for path, x in flat.items() if not path.startswith("layers/")}
    for i, source in enumerate(pick_layers(config, smaller)):
        prefix = f"layers/{source}/"
        for path, x in flat.items():
            if path.startswith(prefix):
                name = path.removeprefix(prefix)
                result[f"layers/{i}/{name}"] = sample(x, name)
    return unflatten_dict(result, sep="/")


def shrunk_meta(meta: Mapping, path: str, smaller: ModelConfig, layers: list[int]) -> dict:
    """The meta of the smaller model: no training of its own, and where it comes from."""
    parent = {key: meta.get(key) for key in ("phase", "step", "tokens")}
    model = meta["config"]["model"]
    return {name: value for name, value in meta.items() if name != "fingerprint"} | {
        "phase": "shrunk",
        "step": 0,
        "row": 0,
        "tokens": 0,
        "history": [*meta.get("history", []), parent],
        "held_out_groups": {},  # the larger model's figures
        "config": meta["config"] | {"phase": "shrunk", "model": dataclasses.asdict(smaller)},
        "shrink": {"path": path, "model": dict(model), "layers": layers} | parent,
    }
