"""A smaller model to start training from, sampled out of a larger one at regular strides.

The paper started small from base in this way; no code for it is public, so the formulae are this project's own.

    picks(n, m) = floor(i n / m) for i = 0 .. m - 1          m of n, evenly spread, the first among them

Hidden dimensions (D of the model, everywhere the same ones), GLU dimensions (the same in both halves of Wi and in Wo)
and heads (whole, with the same ones in q, k, v and Wo: RoPE turns a head's dimensions in pairs, so a head is not cut)
are picked like this. Of layers each keeps its kind of attention, and the first stays the first, the only one without an
attention norm. There are two ways:

- So many layers: picked from the global and from the local ones apart, so that every `global_every`-th is global as
  before. j-th global layer <- picks(global layers)[j], j-th local layer <- picks(local layers)[j].
- Every n-th dropped: the last of each n, the others in their order. A config tells kinds by a period, and where every
  third layer is global only some n leave one: 2 leaves every third layer global, 3 every second. Others are refused.

A sum over m of n inputs has m / n of the variance, if the inputs are as good as independent. So each weight that sums
over sampled inputs grows by sqrt(n / m), which keeps the variance of what comes out (where inputs are correlated, as in
trained models, it only loses less: docs/log.md):

    Wqkv, Wi, head.dense    * sqrt(D / D')
    a task's classifier     * sqrt(D / D')
    attention's Wo          * sqrt(H / H')
    MLP's Wo                * sqrt(F / F')
    token embedding         * sqrt(D / D')    for the decoder, which is tied to it and sums over D; the embedding's norm
                                              takes the factor out again on the way in

Norms' weights and biases are picked and not scaled. Of layers nothing is scaled.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mmbert_jax.errors import UserError
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.surgery.derived import derived_meta


def picks(count: int, wanted: int) -> np.ndarray:
    """`wanted` of `count` indices at regular strides."""
    return np.arange(wanted) * count // wanted


def smaller_config(
    config: ModelConfig,
    *,
    hidden_size: int | None = None,
    num_layers: int | None = None,
    drop_every: int | None = None,
    intermediate_size: int | None = None,
) -> tuple[ModelConfig, list[int]]:
    """A config with the sizes that are given; heads keep their size, so their number follows the hidden size.

    Args:
      drop_every: n, to drop the last of every n layers; instead of `num_layers`.

    Returns:
      The config, and the larger model's layer for each of its layers.

    Raises:
      UserError: a size that is larger than the config's or does not hold whole heads; layers whose kinds have no
        period; nothing that becomes smaller.
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
    if drop_every is None:
        layers = _pick_layers(config, smaller)
    elif num_layers is not None:
        raise UserError("--num_layers and --drop_every are two ways to say which layers: give one")
    else:
        layers, period = _drop_every(config, drop_every)
        smaller = dataclasses.replace(smaller, num_layers=len(layers), global_every=period)
    if smaller == config:
        raise UserError("the sizes are those that the model has: give a smaller one")
    return smaller, layers


def _pick_layers(config: ModelConfig, smaller: ModelConfig) -> list[int]:
    """As many layers as the smaller model has, global and local ones apart."""

    def split(c: ModelConfig) -> tuple[list[int], list[int]]:
        layers = range(c.num_layers)
        return [i for i in layers if c.is_global(i)], [i for i in layers if not c.is_global(i)]

    source = {}
    for larger, wanted in zip(split(config), split(smaller), strict=True):
        for i, at in zip(wanted, picks(len(larger), len(wanted)) if wanted else (), strict=True):
            source[i] = larger[at]
    return [source[i] for i in range(smaller.num_layers)]


def _drop_every(config: ModelConfig, n: int) -> tuple[list[int], int]:
    """The layers that are left without every n-th, and the period of the global ones among them."""

    def left(n: int) -> list[int]:
        return [i for i in range(config.num_layers) if (i + 1) % n]

    def period(layers: list[int]) -> int | None:
        kinds = [config.is_global(i) for i in layers]
        # The smallest period that tells the kinds; that of the larger model where both do.
        for every in (config.global_every, *range(1, len(layers) + 1)):
            if kinds == [i % every == 0 for i in range(len(layers))]:
                return every
        return None

    possible = [m for m in range(2, config.num_layers + 1) if period(left(m)) is not None]
    if n not in possible:
        raise UserError(
            f"--drop_every {n}: what is left of {config.num_layers} layers, of which one in {config.global_every} is"
            f" global, has no period that a config could name; it can be {', '.join(map(str, possible))}; or give"
            " --num_layers, which picks global and local layers apart"
        )
    return left(n), period(left(n))


def shrink(
    params: Mapping, config: ModelConfig, smaller: ModelConfig, layers: Sequence[int]
) -> dict:
    """Parameters of the smaller model, sampled from those of the larger: nested dicts of float32 NumPy arrays.

    Args:
      params: of a model of `config` with any head, or with none.
      smaller, layers: see `smaller_config`.
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
        # Of the masked LM: one for each token.
        "head/bias": ((None,), 1.0),
        # Of tasks.
        "head/dense_bias": ((d,), 1.0),
        "head/classifier": ((d, None), over_d),
        "head/classifier_bias": ((None,), 1.0),
    }

    def sample(x: np.ndarray, name: str) -> np.ndarray:
        taken, factor = sampled[name]
        indices = [np.arange(n) if t is None else t for n, t in zip(x.shape, taken, strict=True)]
        return np.asarray(x)[np.ix_(*indices)] * np.float32(factor)

    flat = flatten_dict(params, sep="/")
    result = {path: sample(x, path) for path, x in flat.items() if not path.startswith("layers/")}
    for i, source in enumerate(layers):
        prefix = f"layers/{source}/"
        for path, x in flat.items():
            if path.startswith(prefix):
                name = path.removeprefix(prefix)
                result[f"layers/{i}/{name}"] = sample(x, name)
    return unflatten_dict(result, sep="/")


def shrunk_meta(meta: Mapping, path: str, smaller: ModelConfig, layers: list[int]) -> dict:
    """The meta of the smaller model: no training of its own, and where it comes from."""
    made = {"path": path, "model": dict(meta["config"]["model"]), "layers": layers}
    return derived_meta(meta, "shrunk", dataclasses.asdict(smaller), {"shrink": made})
