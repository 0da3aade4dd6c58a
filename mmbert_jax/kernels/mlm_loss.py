"""Cross-entropy over a large vocabulary without ever holding all logits.

The vocabulary is walked in chunks: the forward pass keeps a running maximum and sum (the online softmax), the
backward pass computes each chunk's logits again. Peak temporaries are N x chunk logits instead of N x V.

Chunk c holds the classes `c, c + C, c + 2C, ...` of C chunks: with the embedding sharded over its first dimension each
device then works on its own part of every chunk, and no chunk is gathered.

A vocabulary of any size goes: see `chunks_of`.

Letters: N positions, D hidden size, V vocabulary, C chunks, W classes a chunk.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

# Logit of what fills up the vocabulary, and where a maximum starts. Finite: inf - inf is not a number.
_NO_CLASS = -1e30


class Chunks(NamedTuple):
    """How the classes are walked: `count` chunks of `width` classes, of which the last ones may be no classes."""

    count: int
    width: int


def chunks_of(vocab_size: int, chunk: int) -> Chunks:
    """Equal chunks of at most `chunk` classes.

    As few as divide the vocabulary. Where that takes more than eight times as many as would be enough, the vocabulary
    is filled up with classes that no position can have: the tables are then copied once a call.
    """
    least = -(-vocab_size // chunk)
    for count in range(least, 8 * least + 1):
        if vocab_size % count == 0:
            return Chunks(count, vocab_size // count)
    # Multiples of 64 suit matrix units.
    width = -(-vocab_size // least)
    return Chunks(least, min(chunk, -(-width // 64) * 64))


def token_losses(
    hidden: jax.Array, embedding: jax.Array, bias: jax.Array, labels: jax.Array, chunk: int
) -> tuple[jax.Array, jax.Array]:
    """Negative log likelihood of each label under a tied decoder.

    Args:
      hidden: float [N, D], in the compute dtype, which is also that of the matrix products (summed in float32).
      embedding: float32 [V, D].
      bias: float32 [V].
      labels: int32 [N].
      chunk: classes whose logits are held at a time, at most.

    Returns:
      losses: float32 [N], differentiable in hidden, embedding and bias.
      correct: bool [N], whether the label has the largest logit.
    """
    losses = functools.partial(device_losses, chunks_of(embedding.shape[0], chunk))
    return _by_replica(losses)(hidden, embedding, bias, labels)


def _by_replica(losses):
    """Has each replica of the embedding (mesh axis "data") compute its own positions.

    So each sums its gradient over all chunks by itself, and the replicas' gradients are summed once, at the end: left
    to itself, XLA sums every chunk over the replicas, inside the loop. Where the vocabulary is sharded ("tensor") it
    has to be left to itself: it cannot partition the look-up of the labels' logits in such a function.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.shape.get("data", 1) == 1 or mesh.shape.get("tensor", 1) > 1:
        return losses
    own, whole = PartitionSpec("data"), PartitionSpec()
    return jax.shard_map(
        losses,
        mesh=mesh,
        axis_names={"data"},
        in_specs=(own, whole, whole, own),
        out_specs=own,
        check_vma=False,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def device_losses(chunks, hidden, embedding, bias, labels):
    """`token_losses` with the `Chunks` given, of what a device or a replica of the embedding has."""
    losses, correct, _ = _forward(chunks, hidden, embedding, bias, labels)
    return losses, correct


def _in_chunks(chunks, embedding, bias):
    """Embedding [W, C, D] and bias [W, C]: chunk c is `[:, c]`."""
    surplus = chunks.count * chunks.width - embedding.shape[0]
    if surplus:
        embedding = jnp.pad(embedding, ((0, surplus), (0, 0)))
        bias = jnp.pad(bias, (0, surplus), constant_values=_NO_CLASS)
    shape = chunks.width, chunks.count
    return embedding.reshape(*shape, embedding.shape[1]), bias.reshape(shape)


def _logits(hidden, embedding, bias, c):
    """Logits [N, W] of chunk c in float32, and the chunk's embedding [W, D] in the compute dtype."""
    weights = jax.lax.dynamic_index_in_dim(embedding, c, axis=1, keepdims=False)
    weights = _with_whole_rows(weights.astype(hidden.dtype))
    offset = jax.lax.dynamic_index_in_dim(bias, c, axis=1, keepdims=False)
    logits = jnp.einsum("nd,wd->nw", hidden, weights, preferred_element_type=jnp.float32) + offset
    return logits, weights


def _with_whole_rows(weights):
    """A chunk [W, D] gathered over "fsdp", which shards D.

    Left to itself, XLA multiplies part by part and adds up logits [N, W] in main memory, once for each part.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.shape.get("fsdp", 1) == 1:
        return weights
    return jax.lax.with_sharding_constraint(weights, PartitionSpec("tensor", None))


def _forward(chunks, hidden, embedding, bias, labels):
    n, count = hidden.shape[0], chunks.count
    embedding, bias = _in_chunks(chunks, embedding, bias)

    def body(c, carry):
        largest, total, target = carry
        logits, _ = _logits(hidden, embedding, bias, c)
        chunk_largest, chunk_total = largest_and_total(logits)
        new = jnp.maximum(largest, chunk_largest)
        total = total * jnp.exp(largest - new) + chunk_total * jnp.exp(chunk_largest - new)
        own = jnp.take_along_axis(logits, (labels // count)[:, None], axis=1)[:, 0]
        return new, total, jnp.where(labels % count == c, own, target)

    start = (jnp.full(n, -jnp.inf), jnp.zeros(n), jnp.zeros(n))
    largest, total, target = _loop(count, body, start)
    normaliser = largest + jnp.log(total)
    return normaliser - target, target >= largest, normaliser


def largest_and_total(logits):
    """The largest of logits [N, W] in a row, and the sum of the exponentials of their distances from it, both [N]."""

    def one_pass(logits):
        def merge(a, b):
            (a_largest, a_total), (b_largest, b_total) = a, b
            new = jnp.maximum(a_largest, b_largest)
            total = a_total * jnp.exp(a_largest - new) + b_total * jnp.exp(b_largest - new)
            return new, total

        start = jnp.float32(_NO_CLASS), jnp.float32(0)
        return jax.lax.reduce((logits, jnp.ones_like(logits)), start, merge, (1,))

    def two_passes(logits):
        largest = logits.max(axis=-1)
        return largest, jnp.exp(logits - largest[:, None]).sum(axis=-1)

    # XLA:CPU does not vectorise such a merge, and is seven times slower with it.
    return jax.lax.platform_dependent(logits, cuda=one_pass, default=two_passes)


def _loop(count, body, start):
    """`fori_loop` over the chunks; a single chunk needs no loop."""
    return body(0, start) if count == 1 else jax.lax.fori_loop(0, count, body, start)


def _device_losses_fwd(chunks, hidden, embedding, bias, labels):
    losses, correct, normaliser = _forward(chunks, hidden, embedding, bias, labels)
    return (losses, correct), (hidden, embedding, bias, labels, normaliser)


def _device_losses_bwd(chunks, residuals, cotangents):
    hidden, embedding, bias, labels, normaliser = residuals
    weight, _ = cotangents  # [N]; `correct` is boolean and has no gradient
    (vocab, depth), count = embedding.shape, chunks.count
    embedding, bias = _in_chunks(chunks, embedding, bias)
    classes = jnp.arange(embedding.shape[0])

    def body(c, carry):
        d_hidden, d_embedding, d_bias = carry
        logits, weights = _logits(hidden, embedding, bias, c)
        is_label = (labels % count == c)[:, None] & (classes == (labels // count)[:, None])
        d_logits = (jnp.exp(logits - normaliser[:, None]) - is_label) * weight[:, None]
        narrow = d_logits.astype(hidden.dtype)
        d_hidden += jnp.einsum("nw,wd->nd", narrow, weights, preferred_element_type=jnp.float32)
        d_chunk = jnp.einsum("nw,nd->wd", narrow, hidden, preferred_element_type=jnp.float32)
        d_embedding = jax.lax.dynamic_update_index_in_dim(d_embedding, d_chunk, c, axis=1)
        d_bias = jax.lax.dynamic_update_index_in_dim(
            d_bias, narrow.sum(axis=0, dtype=jnp.float32), c, axis=1
        )
        return d_hidden, d_embedding, d_bias

    start = (
        jnp.zeros(hidden.shape, jnp.float32),
        jnp.zeros(embedding.shape, jnp.float32),
        jnp.zeros(bias.shape, jnp.float32),
    )
    d_hidden, d_embedding, d_bias = _loop(count, body, start)
    return (
        d_hidden.astype(hidden.dtype),
        d_embedding.reshape(-1, depth)[:vocab],
        d_bias.reshape(-1)[:vocab],
        None,
    )


device_losses.defvjp(_device_losses_fwd, _device_losses_bwd)
