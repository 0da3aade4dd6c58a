"""Weighted sum of cross-entropies over a large vocabulary, whose gradient is formed in the forward pass.

With its weight, a target's gradient follows from its logits at once. So there are three matrix products (logits,
gradient of the hidden states, gradient of the embedding) instead of four: `token_losses`, which has to wait for the
losses' cotangents, computes all logits again. The gradients are what the backward pass keeps, and scales. They take no
memory that it would not need anyway: the loss ends the forward pass and begins the backward pass.

All classes of some targets are held at a time, in parts one after the other.

Letters: N targets, D hidden size, V vocabulary.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mmbert_jax.kernels.mlm_loss import largest_and_total, token_losses

# Float32 logits that a device holds at a time, in bytes; half of that comes on top for their gradient in bfloat16.
_LOGITS = 2 * 2**30
# Each part but the first reads and writes the embedding's gradient once more, float32 [V, D]: with less than some 1,000
# targets that takes as long as the product that is saved. So logits of many targets take more memory instead, as their
# rows' activations do.
_MOST_PARTS = 4


def weighted_loss(
    hidden: jax.Array,
    embedding: jax.Array,
    bias: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
    chunk: int,
) -> tuple[jax.Array, jax.Array]:
    """Weighted sum of the negative log likelihoods of labels under a tied decoder, for training.

    Args:
      hidden: float [N, D], in the compute dtype, which is also that of the matrix products (summed in float32).
      embedding: float32 [V, D].
      bias: float32 [V].
      labels: int32 [N].
      weights: float32 [N], 0 where there is no target.
      chunk: classes whose logits are held at a time where the mesh asks for `token_losses`, see `forms_gradient`.

    Returns:
      loss: float32, differentiable in hidden, embedding, bias and weights.
      correct: bool [N], whether the label has the largest logit.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not forms_gradient(mesh.shape):
        losses, correct = token_losses(hidden, embedding, bias, labels, chunk)
        return (losses * weights).sum(), correct
    if mesh.shape.get("data", 1) == 1:
        return _weighted_loss(hidden, embedding, bias, labels, weights)

    def of_replica(*inputs):
        loss, correct = _weighted_loss(*inputs)
        return loss[None], correct

    # Each replica of the embedding has its own targets, and a gradient that stays its own: the replicas' are summed
    # once, where the backward pass hands them on.
    own, whole = PartitionSpec("data"), PartitionSpec()
    losses, correct = jax.shard_map(
        of_replica,
        mesh=mesh,
        axis_names={"data"},
        in_specs=(own, whole, whole, own, own),
        out_specs=own,
        check_vma=False,
    )(hidden, embedding, bias, labels, weights)
    return losses.sum(), correct


def forms_gradient(mesh: Mapping[str, int]) -> bool:
    """Whether the gradient is formed in the forward pass: where each device has the whole embedding.

    Args:
      mesh: size of each axis.

    An embedding that is sharded ("fsdp", "tensor") would be gathered whole, or its gradient be held whole: what it was
    sharded to avoid.
    """
    return mesh.get("fsdp", 1) == 1 and mesh.get("tensor", 1) == 1


def parts_of(targets: int, vocab_size: int) -> int:
    """In how many parts a device takes its targets."""
    return min(-(-4 * targets * vocab_size // _LOGITS), _MOST_PARTS, targets)


@jax.custom_vjp
def _weighted_loss(hidden, embedding, bias, labels, weights):
    (loss, correct), _ = _with_gradient(hidden, embedding, bias, labels, weights)
    return loss, correct


def _with_gradient(hidden, embedding, bias, labels, weights):
    n, vocab = hidden.shape[0], embedding.shape[0]
    size = -(-n // parts_of(n, vocab))
    decoder = embedding.astype(hidden.dtype)
    losses, correct, d_hidden = [], [], []
    d_embedding = d_bias = None
    for start in range(0, n, size):
        h, y, w = (x[start : start + size] for x in (hidden, labels, weights))
        if start:
            # Not before the logits of the part before are done with.
            h, d_hidden[-1], d_embedding, d_bias = jax.lax.optimization_barrier(
                (h, d_hidden[-1], d_embedding, d_bias)
            )
        logits = jnp.einsum("nd,vd->nv", h, decoder, preferred_element_type=jnp.float32) + bias
        largest, total = largest_and_total(logits)
        normaliser = largest + jnp.log(total)
        target = jnp.take_along_axis(logits, y[:, None], axis=1)[:, 0]
        is_label = y[:, None] == jnp.arange(vocab)
        d_logits = (jnp.exp(logits - normaliser[:, None]) - is_label) * w[:, None]
        narrow = d_logits.astype(hidden.dtype)
        losses.append(normaliser - target)
        correct.append(target >= largest)
        d_hidden.append(
            jnp.einsum("nv,vd->nd", narrow, decoder, preferred_element_type=jnp.float32)
        )
        d_part = jnp.einsum("nv,nd->vd", narrow, h, preferred_element_type=jnp.float32)
        d_bias_part = narrow.sum(axis=0, dtype=jnp.float32)
        d_embedding = d_embedding + d_part if start else d_part
        d_bias = d_bias + d_bias_part if start else d_bias_part
    losses = jnp.concatenate(losses)
    gradient = jnp.concatenate(d_hidden), d_embedding, d_bias, losses
    return ((losses * weights).sum(), jnp.concatenate(correct)), gradient


def _forward(hidden, embedding, bias, labels, weights):
    result, gradient = _with_gradient(hidden, embedding, bias, labels, weights)
    # An empty array for its dtype: the gradient of the hidden states stays float32 until it is scaled.
    return result, (gradient, jnp.zeros(0, hidden.dtype))


def _backward(residuals, cotangents):
    (d_hidden, d_embedding, d_bias, losses), like_hidden = residuals
    scale, _ = cotangents  # of the loss; `correct` is boolean and has no gradient
    return (
        (d_hidden * scale).astype(like_hidden.dtype),
        d_embedding * scale,
        d_bias * scale,
        None,
        losses * scale,
    )


_weighted_loss.defvjp(_forward, _backward)
