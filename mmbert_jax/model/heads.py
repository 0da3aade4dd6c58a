"""Models: an encoder and the head that stands on it; and plain functions that run one from its tree of parameters.

Which head a checkpoint holds stands in its `meta["config"]["head"]`, a `HeadConfig` as a dict; without it, it is the
masked-LM head, which is also what the functions here take a model to have unless they are told otherwise. The other
heads, of classes of texts, classes of tokens and answer spans, have ModernBERT's form: dense -> activation -> norm ->
linear classifier.

Letters: B batch, L row length, M masked positions, S segments of a row, D hidden size, C classes, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from mmbert_jax.kernels.mlm_loss import token_losses
from mmbert_jax.kernels.weighted_mlm_loss import weighted_loss
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.model.encoder import Encoder, dropout, layer_norm, matmul, parameter, scale

Params = Mapping[str, "Params | jax.Array"]

MLM, ENCODER = "mlm", "encoder"
SEQUENCES, TOKENS, SPANS = "sequence_classification", "token_classification", "question_answering"
KINDS = (MLM, ENCODER, SEQUENCES, TOKENS, SPANS)
POOLINGS = ("mean", "cls")
# And those that models for vectors of texts have besides.
TEXT_POOLINGS = (*POOLINGS, "weightedmean", "lasttoken")
# By the names of `transformers`; "gelu" is the exact one.
ACTIVATIONS = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """Which head stands on the encoder.

    Attributes:
      kind: one of `KINDS`; the fields below concern the task heads alone.
      labels: names of the C classes, in the order of the logits; of a span head ("start", "end") or any two.
      pooling: what a text's classes are computed from: "mean" over its tokens, or "cls", the vector of its first.
      activation: a key of `ACTIVATIONS`.
      dense_bias: whether the dense layer has a bias.
      dropout: drop probability in front of the classifier, in training only.
      problem_type: "regression", "single_label_classification" or "multi_label_classification": which loss the
        classes were trained with; "" where that is not recorded.
    """

    kind: str = MLM
    labels: tuple[str, ...] = ()
    pooling: str = "mean"
    activation: str = "gelu"
    dense_bias: bool = False
    dropout: float = 0.0
    problem_type: str = ""

    @classmethod
    def from_config(cls, config: Mapping) -> "HeadConfig":
        """From the config that a checkpoint holds: `config["head"]`, or the masked-LM head where there is none."""
        fields = dict(config.get("head") or {})
        return cls(**fields | {"labels": tuple(fields.get("labels", ()))})


MASKED_LM = HeadConfig()


class MlmHead(nnx.Module):
    """dense -> GELU -> norm, then the decoder: the embedding again, with a bias of its own."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        d = config.hidden_size
        self.dense = parameter(rngs.params(), (d, d), ("embed", "embed_out"))
        self.norm = scale(d)
        self.bias = nnx.Param(jnp.zeros(config.vocab_size, jnp.float32), logical_axes=("vocab",))
        self.eps = config.norm_eps

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """Hidden states [..., D] -> what the decoder multiplies with the embedding, [..., D]."""
        x = jax.nn.gelu(matmul("...d,de->...e", hidden, self.dense), approximate=False)
        return layer_norm(x, self.norm, self.eps, hidden.dtype)


class MaskedLM(Encoder):
    """The encoder with a masked-LM head whose decoder is tied to the token embedding."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.head = MlmHead(config, rngs=rngs)

    def losses(
        self, hidden: jax.Array, target_positions: jax.Array, labels: jax.Array, chunk: int
    ) -> tuple[jax.Array, jax.Array]:
        """Loss at the masked positions only; nothing else goes through the head.

        Args:
          hidden: [B, L, D]. target_positions, labels: int32 [B, M]. chunk: see `token_losses`.

        Returns:
          losses float32 [B, M] and whether the label came first, bool [B, M].
        """
        losses, correct = token_losses(
            self._of_targets(hidden, target_positions),
            self.embeddings.tokens[...],
            self.head.bias[...],
            labels.reshape(-1),
            chunk,
        )
        return losses.reshape(labels.shape), correct.reshape(labels.shape)

    def weighted_loss(
        self,
        hidden: jax.Array,
        target_positions: jax.Array,
        labels: jax.Array,
        weights: jax.Array,
        chunk: int,
        decoder: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """Weighted sum of `losses`, for training: its gradient takes less than theirs.

        Args:
          weights: float32 [B, M].
          chunk: see `kernels.weighted_mlm_loss.weighted_loss`.
          decoder: [V, D], the embedding, as an argument of its own: its gradient is apart from that of the look-up.

        Returns:
          The sum, float32, and whether the label came first, bool [B, M].
        """
        loss, correct = weighted_loss(
            self._of_targets(hidden, target_positions),
            decoder,
            self.head.bias[...],
            labels.reshape(-1),
            weights.reshape(-1),
            chunk,
        )
        return loss, correct.reshape(labels.shape)

    def _of_targets(self, hidden, positions):
        """What the decoder multiplies with the embedding, at positions [B, M]: [B M, D]."""
        gathered = jnp.take_along_axis(hidden, positions[..., None], axis=1)
        return self.head(gathered).reshape(-1, hidden.shape[-1])

    def logits(self, hidden: jax.Array) -> jax.Array:
        """All logits, float32 [..., V], of hidden states [..., D]: for a few positions, not for training."""
        x = self.head(hidden)
        weights = self.embeddings.tokens[...].astype(x.dtype)
        return (
            jnp.einsum("...d,vd->...v", x, weights, preferred_element_type=jnp.float32)
            + self.head.bias[...]
        )


class TaskHead(nnx.Module):
    """dense -> activation -> norm -> classifier, on any vectors."""

    def __init__(self, config: ModelConfig, head: HeadConfig, *, rngs: nnx.Rngs):
        d, c = config.hidden_size, len(head.labels)
        self.dense = parameter(rngs.params(), (d, d), ("embed", "embed_out"))
        self.dense_bias = (
            nnx.Param(jnp.zeros(d, jnp.float32), logical_axes=("embed_out",))
            if head.dense_bias
            else None
        )
        self.norm = scale(d)
        self.classifier = parameter(rngs.params(), (d, c), ("embed", "classes"), stddev=d**-0.5)
        self.classifier_bias = nnx.Param(jnp.zeros(c, jnp.float32), logical_axes=("classes",))
        self.eps = config.norm_eps
        self.activation = head.activation
        self.dropout_rate = head.dropout

    def __call__(self, hidden: jax.Array, dropout_keys: jax.Array | None = None) -> jax.Array:
        """Vectors [B, ..., D] -> logits float32 [B, ..., C]; in training with keys for dropout [B]."""
        x = matmul("...d,de->...e", hidden, self.dense)
        if self.dense_bias is not None:
            x = x + self.dense_bias[...].astype(x.dtype)
        x = layer_norm(ACTIVATIONS[self.activation](x), self.norm, self.eps, hidden.dtype)
        x = dropout(x, self.dropout_rate, dropout_keys)
        weights = self.classifier[...].astype(x.dtype)
        logits = jnp.einsum("...d,dc->...c", x, weights, preferred_element_type=jnp.float32)
        return logits + self.classifier_bias[...]


class TaskModel(Encoder):
    """The encoder with a task head.

    The head goes on `pool(hidden, ...)` for classes of texts, on hidden states as they are for the others.
    """

    def __init__(self, config: ModelConfig, head: HeadConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.head = TaskHead(config, head, rngs=rngs)


def pool(
    hidden: jax.Array, segment_ids: jax.Array, num_segments: int, pooling: str = "mean"
) -> jax.Array:
    """One vector a text, from packed rows.

    Args:
      hidden: [B, L, D].
      segment_ids: int32 [B, L]; texts are numbered from 1, 0 is padding.
      num_segments: S, static: as many as the fullest row has, or more.
      pooling: one of `TEXT_POOLINGS`: the mean, the first vector, the mean in which the n-th of a text's vectors counts
        n times, or the last vector.

    Returns:
      [B, S, D] in hidden's dtype, means taken in float32; a segment that a row does not have is all zeros.
    """
    dtype, numbers = hidden.dtype, jnp.arange(1, num_segments + 1)
    members = segment_ids[:, None, :] == numbers[:, None]  # [B, S, L]
    if pooling != "mean":
        nth = jnp.cumsum(members, axis=-1) * members
        if pooling == "cls":
            members = nth == 1
        elif pooling == "lasttoken":
            members &= nth == nth.max(axis=-1, keepdims=True)
        else:
            # Numbers to 8192, which bfloat16 does not hold.
            members, hidden = nth, hidden.astype(jnp.float32)
    count = jnp.maximum(members.sum(axis=-1, keepdims=True), 1)
    # A matrix product, not a scatter: the order of additions, and so every bit, is the same in every run.
    total = jnp.einsum(
        "bsl,bld->bsd",
        members.astype(hidden.dtype),
        hidden,
        precision="highest",
        preferred_element_type=jnp.float32,
    )
    return (total / count).astype(dtype)


def build(config: ModelConfig, head: HeadConfig = MASKED_LM, *, rngs: nnx.Rngs) -> Encoder:
    """A freshly initialised model with this head: `MaskedLM`, a bare `Encoder`, or a `TaskModel`."""
    if head.kind == MLM:
        return MaskedLM(config, rngs=rngs)
    if head.kind == ENCODER:
        return Encoder(config, rngs=rngs)
    return TaskModel(config, head, rngs=rngs)


def init_params(config: ModelConfig, seed: int, head: HeadConfig = MASKED_LM) -> Params:
    """Freshly initialised float32 parameters, as a nested dict of arrays."""
    return param_dict(nnx.state(build(config, head, rngs=nnx.Rngs(params=seed)), nnx.Param))


@functools.cache
def abstract_model(
    config: ModelConfig, head: HeadConfig = MASKED_LM
) -> tuple[nnx.GraphDef, nnx.State]:
    """The structure of a model and its parameters' shapes, without computing anything."""
    model = nnx.eval_shape(lambda: build(config, head, rngs=nnx.Rngs(params=0)))
    return nnx.split(model, nnx.Param)


def param_dict(state: nnx.State) -> Params:
    """Parameters (or shapes) as a nested dict with string keys all the way, which is what checkpoints hold."""

    def with_string_keys(tree):
        return (
            {str(k): with_string_keys(v) for k, v in tree.items()}
            if isinstance(tree, dict)
            else tree
        )

    return with_string_keys(nnx.to_pure_dict(state))


def bind(config: ModelConfig, params: Params, head: HeadConfig = MASKED_LM) -> Encoder:
    """The model that computes with these parameters."""
    graphdef, state = abstract_model(config, head)
    state = jax.tree.map(lambda x: x, state)  # a copy: the next call updates it in place
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graphdef, state)


def encode(
    params: Params,
    config: ModelConfig,
    tokens: jax.Array,
    segment_ids: jax.Array,
    positions: jax.Array,
    dtype: jnp.dtype = jnp.float32,
) -> jax.Array:
    """Hidden states [B, L, D] of packed rows (int32 [B, L]), in the compute dtype, whatever head the model has."""
    encoder = {name: tree for name, tree in params.items() if name != "head"}
    return _encode(encoder, config, tokens, segment_ids, positions, dtype)


def outputs(
    params: Params,
    config: ModelConfig,
    tokens: jax.Array,
    segment_ids: jax.Array,
    positions: jax.Array,
    head: HeadConfig = MASKED_LM,
    num_segments: int = 1,
    dtype: jnp.dtype = jnp.float32,
) -> jax.Array:
    """What a model of packed rows (int32 [B, L]) gives: the same as its namesake in `transformers`.

    Returns:
      Logits, float32: of a masked LM [B, L, V]; of classes of texts [B, S, C]; of classes of tokens and of spans
      [B, L, C]. Of a bare encoder the hidden states [B, L, D] in the compute dtype.
    """
    hidden = encode(params, config, tokens, segment_ids, positions, dtype)
    if head.kind == ENCODER:
        return hidden
    return _logits(params, config, head, hidden, segment_ids, num_segments)


# Apart from the head, so that models that differ in nothing else are compiled once.
@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def _encode(params, config, tokens, segment_ids, positions, dtype):
    return bind(config, params, HeadConfig(ENCODER))(tokens, segment_ids, positions, dtype)


@functools.partial(jax.jit, static_argnames=("config", "head", "num_segments"))
def _logits(params, config, head, hidden, segment_ids, num_segments):
    model = bind(config, params, head)
    if head.kind == MLM:
        return model.logits(hidden)
    if head.kind == SEQUENCES:
        hidden = pool(hidden, segment_ids, num_segments, head.pooling)
    return model.head(hidden)
