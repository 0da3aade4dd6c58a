"""The masked-LM head and model, and plain functions that run a model from its tree of parameters.

Letters: B batch, L row length, M masked positions, D hidden size, V vocabulary.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from mmbert_jax.kernels.mlm_loss import token_losses
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.model.encoder import Encoder, layer_norm, matmul, parameter, scale

Params = Mapping[str, "Params | jax.Array"]


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
        self,
        hidden: jax.Array,
        target_positions: jax.Array,
        labels: jax.Array,
        chunk: int,
        decoder: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Loss at the masked positions only; nothing else goes through the head.

        Args:
          hidden: [B, L, D]. target_positions, labels: int32 [B, M]. chunk: see `token_losses`.
          decoder: [V, D] instead of the embedding, for a gradient apart from that of the look-up.

        Returns:
          losses float32 [B, M] and whether the label came first, bool [B, M].
        """
        gathered = jnp.take_along_axis(hidden, target_positions[..., None], axis=1)
        flat = self.head(gathered).reshape(-1, hidden.shape[-1])
        if decoder is None:
            decoder = self.embeddings.tokens[...]
        losses, correct = token_losses(
            flat, decoder, self.head.bias[...], labels.reshape(-1), chunk
        )
        return losses.reshape(labels.shape), correct.reshape(labels.shape)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """All logits, float32 [..., V], of hidden states [..., D]: for a few positions, not for training."""
        x = self.head(hidden)
        weights = self.embeddings.tokens[...].astype(x.dtype)
        return (
            jnp.einsum("...d,vd->...v", x, weights, preferred_element_type=jnp.float32)
            + self.head.bias[...]
        )


def init_params(config: ModelConfig, seed: int) -> Params:
    """Freshly initialised float32 parameters of a masked-LM model, as a nested dict of arrays."""
    return param_dict(nnx.state(MaskedLM(config, rngs=nnx.Rngs(params=seed)), nnx.Param))


@functools.cache
def abstract_model(config: ModelConfig) -> tuple[nnx.GraphDef, nnx.State]:
    """The structure of a masked-LM model and its parameters' shapes, without computing anything."""
    model = nnx.eval_shape(lambda: MaskedLM(config, rngs=nnx.Rngs(params=0)))
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


def bind(config: ModelConfig, params: Params) -> MaskedLM:
    """The model that computes with these parameters."""
    graphdef, state = abstract_model(config)
    state = jax.tree.map(lambda x: x, state)  # a copy: the next call updates it in place
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graphdef, state)


@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def encode(
    params, config: ModelConfig, tokens, segment_ids, positions, dtype=jnp.float32
) -> jax.Array:
    """Hidden states [B, L, D] of packed rows; tokens, segment_ids, positions int32 [B, L]."""
    return bind(config, params)(tokens, segment_ids, positions, dtype)


@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def mlm_logits(
    params, config: ModelConfig, tokens, segment_ids, positions, dtype=jnp.float32
) -> jax.Array:
    """Logits float32 [B, L, V] of packed rows, all held at once: for small inputs."""
    model = bind(config, params)
    return model.logits(model(tokens, segment_ids, positions, dtype))
