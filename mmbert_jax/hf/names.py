"""Names and layouts of a model's parameters, here and in `transformers`: one table for both directions and any head.

Parameters here are a flat dict keyed by path ("layers/3/attn/wqkv"); there, by state-dict name. A linear layer's weight
is [in..., out...] here (heads and halves are dimensions of their own) and [out, in] there, so that exporting is a
reshape and a transposition, never arithmetic: a round trip keeps every bit.

Letters: V vocabulary, D hidden size, H heads, K head dim, F GLU intermediate size, C classes.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mmbert_jax.errors import UserError
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.model.heads import ENCODER, MLM, HeadConfig

Arrays = dict[str, np.ndarray]
Shape = tuple[int, ...]

MASKED_LM = HeadConfig()
PREFIX = "model."


@dataclasses.dataclass(frozen=True)
class Name:
    """One row of the table; `{i}` stands for the layer.

    Attributes:
      ours, theirs: path here, name in the state dict of a model with a head.
      shape: of the parameter here.
      inputs: how many leading dimensions of a linear layer's weight are its inputs; 0 for what is laid out alike.
    """

    ours: str
    theirs: str
    shape: Callable[[ModelConfig], Shape]
    inputs: int = 0


ENCODER_NAMES = (
    Name(
        "embeddings/tokens",
        "model.embeddings.tok_embeddings.weight",
        lambda c: (c.vocab_size, c.hidden_size),
    ),
    Name("embeddings/norm", "model.embeddings.norm.weight", lambda c: (c.hidden_size,)),
    Name("layers/{i}/attn_norm", "model.layers.{i}.attn_norm.weight", lambda c: (c.hidden_size,)),
    Name(
        "layers/{i}/attn/wqkv",
        "model.layers.{i}.attn.Wqkv.weight",
        lambda c: (c.hidden_size, 3, c.num_heads, c.head_dim),
        inputs=1,
    ),
    Name(
        "layers/{i}/attn/wo",
        "model.layers.{i}.attn.Wo.weight",
        lambda c: (c.num_heads, c.head_dim, c.hidden_size),
        inputs=2,
    ),
    Name("layers/{i}/mlp_norm", "model.layers.{i}.mlp_norm.weight", lambda c: (c.hidden_size,)),
    Name(
        "layers/{i}/mlp/wi",
        "model.layers.{i}.mlp.Wi.weight",
        lambda c: (c.hidden_size, 2, c.intermediate_size),
        inputs=1,
    ),
    Name(
        "layers/{i}/mlp/wo",
        "model.layers.{i}.mlp.Wo.weight",
        lambda c: (c.intermediate_size, c.hidden_size),
        inputs=1,
    ),
    Name("final_norm", "model.final_norm.weight", lambda c: (c.hidden_size,)),
)


def head_names(head: HeadConfig) -> tuple[Name, ...]:
    """The rows of a head. A masked LM's `decoder.weight` is tied to the embedding, and neither side stores it."""
    if head.kind == ENCODER:
        return ()
    names = (
        Name("head/dense", "head.dense.weight", lambda c: (c.hidden_size, c.hidden_size), inputs=1),
        Name("head/norm", "head.norm.weight", lambda c: (c.hidden_size,)),
    )
    if head.kind == MLM:
        return (*names, Name("head/bias", "decoder.bias", lambda c: (c.vocab_size,)))
    classes = len(head.labels)
    if head.dense_bias:
        names += (Name("head/dense_bias", "head.dense.bias", lambda c: (c.hidden_size,)),)
    return (
        *names,
        Name("head/classifier", "classifier.weight", lambda c: (c.hidden_size, classes), inputs=1),
        Name("head/classifier_bias", "classifier.bias", lambda _: (classes,)),
    )


def table(config: ModelConfig, head: HeadConfig = MASKED_LM) -> list[Name]:
    """The rows of a model of this size, layer by layer, without layer 0's attention norm, which does not exist.

    The names of a bare encoder lack the prefix that the encoder has inside a model with a head.
    """
    rows = []
    for name in (*ENCODER_NAMES, *head_names(head)):
        layers = range(config.num_layers) if "{i}" in name.ours else (None,)
        for i in layers:
            theirs = name.theirs.format(i=i)
            if head.kind == ENCODER:
                theirs = theirs.removeprefix(PREFIX)
            row = dataclasses.replace(name, ours=name.ours.format(i=i), theirs=theirs)
            if row.ours != "layers/0/attn_norm":
                rows.append(row)
    return rows


def their_shape(name: Name, config: ModelConfig) -> Shape:
    """The shape of a tensor in `transformers`."""
    shape = name.shape(config)
    if not name.inputs:
        return shape
    return int(np.prod(shape[name.inputs :])), int(np.prod(shape[: name.inputs]))


def to_theirs(params: Mapping, config: ModelConfig, head: HeadConfig = MASKED_LM) -> Arrays:
    """Parameters (nested dict of arrays) -> `transformers` state dict, in the same dtypes.

    Raises:
      UserError: a parameter is missing, surplus or of another shape than the config says.
    """
    flat = flatten_dict(params, sep="/")
    rows = table(config, head)
    check(
        {path: np.shape(x) for path, x in flat.items()},
        {name.ours: name.shape(config) for name in rows},
        what="the checkpoint's parameters do not fit its config",
    )
    tensors = {}
    for name in rows:
        x = np.asarray(flat[name.ours])
        if name.inputs:
            outputs, inputs = their_shape(name, config)
            x = x.reshape(inputs, outputs).T
        tensors[name.theirs] = np.ascontiguousarray(x)
    return tensors


def to_ours(tensors: Arrays, config: ModelConfig, head: HeadConfig = MASKED_LM) -> dict:
    """`transformers` state dict -> parameters as a nested dict of arrays, in the same dtypes.

    Raises:
      UserError: a tensor is missing, surplus or of another shape than the config says.
    """
    rows = table(config, head)
    check(
        {name: x.shape for name, x in tensors.items()},
        {name.theirs: their_shape(name, config) for name in rows},
        what="the tensors do not fit config.json",
    )
    flat = {}
    for name in rows:
        x = tensors[name.theirs]
        flat[name.ours] = np.ascontiguousarray(
            (x.T if name.inputs else x).reshape(name.shape(config))
        )
    return unflatten_dict(flat, sep="/")


def check(found: Mapping[str, Shape], expected: Mapping[str, Shape], what: str) -> None:
    """Raises a `UserError` that names what is missing, surplus or of another shape."""
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is not part of the model" for name in found if name not in expected]
    problems += [
        f"{name} has shape {tuple(found[name])} instead of {shape}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != shape
    ]
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UserError(f"{what}: " + "; ".join(problems[:5]) + more)
