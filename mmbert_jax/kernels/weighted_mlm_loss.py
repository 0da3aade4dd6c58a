"""Weighted sum of cross-entropies over a large vocabulary, whose gradient is formed in the forward pass.

With its weight, a target's gradient follows from its logits at once. So there are three matrix products (logits,
gradient of the hidden states, gradient of the embedding) instead of four: `token_losses`, which has to wait for the
losses' cotangents, computes all logits again. The gradients are what the backward pass keeps, and scales. They take no
memory that it would not need anyway: the loss ends the forward pass and begins the backward pass.

All classes of some targets are held at a time, in parts one after the other. Not on TPUs: there the logits of a chunk
of classes stay in a chip's fast memory, all classes' do not, and their way through main memory takes longer than the
product that is saved, by the compiler's figures (docs/log.md).

Letters: N targets, D hidden size, V vocabulary.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mmbert_jax.kernels.mlm_loss import (
    chunks_of,
    device_losses,
    largest_and_total,
    token_losses,
)

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
      chunk: classes whose logits are held at a time on TPUs, and where the mesh asks for `token_losses`, see
        `forms_gradient`.

    Returns:
      loss: float32, differentiable in hidden, embedding, bias and weights.
      correct: bool [N], whether the label has the largest logit.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not forms_gradient(mesh.shape):
        losses, correct = token_losses(hidden, embedding, bias, labels, chunk)
        return (losses * weights).sum(), correct
    if mesh.shape.get("data", 1) == 1:
        return _weighted_loss(chunk, hidden, embedding, bias, labels, weights)

    def of_replica(*inputs):
        loss, correct = _weighted_loss(chunk, *inputs)
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


def computes_logits_twice(mesh: Mapping[str, int], platform: str) -> bool:
    """Whether training does, on devices of this platform ("cpu", "gpu", "cuda", "tpu"); `mesh` as above."""
    return platform == "tpu" or not forms_gradient(mesh)


def parts_of(targets: int, vocab_size: int) -> int:
    """In how many parts a device takes its targets."""
    return min(-(-4 * targets * vocab_size // _LOGITS), _MOST_PARTS, targets)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _weighted_loss(chunk, hidden, embedding, bias, labels, weights):
    return _forward(chunk, hidden, embedding, bias, labels, weights)[0]


def _by_targets(hidden, embedding, bias, labels, weights):
    """Losses [N], which labels came first [N], and gradients of the weighted sum: hidden (float32), embedding, bias."""
    n, vocab = hidden.shape[0], embedding.shape[0]
    size = -(-n // parts_of(n, vocab))
    decoder = embedding.astype(hidden.dtype)
    parts = []
    d_embedding = d_bias = None
    for start in range(0, n, size):
        h, y, w = (x[start : start + size] for x in (hidden, labels, weights))
        logits = jnp.einsum("nd,vd->nv", h, decoder, preferred_element_type=jnp.float32) + bias
        largest, total = largest_and_total(logits)
        normaliser = largest + jnp.log(total)
        target = jnp.take_along_axis(logits, y[:, None], axis=1)[:, 0]
        is_label = y[:, None] == jnp.arange(vocab)
        d_logits = (jnp.exp(logits - normaliser[:, None]) - is_label) * w[:, None]
        narrow = d_logits.astype(hidden.dtype)
        d_h = jnp.einsum("nv,vd->nd", narrow, decoder, preferred_element_type=jnp.float32)
        d_part = jnp.einsum("nv,nd->vd", narrow, h, preferred_element_type=jnp.float32)
        d_bias_part = narrow.sum(axis=0, dtype=jnp.float32)
        d_embedding = d_embedding + d_part if start else d_part
        d_bias = d_bias + d_bias_part if start else d_bias_part
        # Whoever uses d_h has the rest computed, too: left to itself, XLA:GPU looks up the labels' logits at the end of
        # the whole step, and keeps all logits until then.
        part = jax.lax.optimization_barrier((normaliser - target, target >= largest, d_h))
        if start + size < n:  # the next part begins when this one's logits are done with
            hidden, d_embedding, d_bias, part = jax.lax.optimization_barrier(
                (hidden, d_embedding, d_bias, part)
            )
        parts.append(part)
    losses, correct, d_hidden = map(jnp.concatenate, zip(*parts, strict=True))
    return losses, correct, d_hidden, d_embedding, d_bias


def _by_classes(chunk, hidden, embedding, bias, labels, weights):
    """The same by chunks of classes, whose logits are computed again."""
    chunks = chunks_of(embedding.shape[0], chunk)
    losses, gradients, correct = jax.vjp(
        lambda *inputs: device_losses(chunks, *inputs, labels),
        hidden,
        embedding,
        bias,
        has_aux=True,
    )
    d_hidden, d_embedding, d_bias = gradients(weights)
    return losses, correct, d_hidden.astype(jnp.float32), d_embedding, d_bias


def _forward(chunk, hidden, embedding, bias, labels, weights):
    losses, correct, *gradient = jax.lax.platform_dependent(
        hidden,
        embedding,
        bias,
        labels,
        weights,
        tpu=functools.partial(_by_classes, chunk),
        default=_by_targets,
    )
    # An empty array for its dtype: the gradient of the hidden states stays float32 until it is scaled.
    residuals = (*gradient, losses, jnp.zeros(0, hidden.dtype))
    return ((losses * weights).sum(), correct), residuals


def _backward(chunk, residuals, cotangents):
    d_hidden, d_embedding, d_bias, losses, like_hidden = residuals
    scale, _ = cotangents  # of the loss; `correct` is boolean and has no gradient
    return (
        (d_hidden * scale).astype(like_hidden.dtype),
        d_embedding * scale,
        d_bias * scale,
        None,
        losses * scale,
    )


_weighted_loss.defvjp(_forward, _backward)
