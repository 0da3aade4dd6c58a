"""Attention in plain XLA, for every platform: exact, O(L x window) on local layers, memory linear in L on global ones.

Global layers walk over tiles of queries and, from the first key that one of them sees to the last, tiles of keys, with
an online softmax (Rabe and Staats 2021, arXiv 2112.05682; Dao et al. 2022, arXiv 2205.14135). Local layers compare each
block of queries with its own keys and those of the two blocks beside it. The backward pass computes scores again from
the row-wise logarithm of the sum of exponentials (`lse`) that the forward pass left.

Letters: B batch (of rows, or of chunks of rows), L length, H heads, D head dim, Q queries of a tile, S its keys.
"""

import functools
import math

import jax
import jax.numpy as jnp

# Queries and keys of a tile of a global layer, whose scores (of 12 heads 3 MB) should stay in a CPU's cache. A smaller
# tile sees fewer keys of other documents, and needs more sums of outputs and of dK and dV.
_TILE = 256
# Local layers: queries in blocks at least this long.
_LOCAL_BLOCK = 64
# Blocks of a local layer that a CPU computes at a time, so that their scores stay in the cache too.
_BLOCKS_PER_CHUNK = 4


def unsupported(shape: tuple[int, int, int, int], dtype, window: int | None) -> str | None:
    """Why inputs of this shape cannot be computed here: there is no such reason."""
    del shape, dtype, window
    return None


def forward(q, k, v, lo, hi, *, window: int | None) -> tuple[jax.Array, jax.Array]:
    """Softmax attention over key ranges.

    Args:
      q, k, v: float [B, L, H, D].
      lo, hi: int32 [B, L], see `ranges.Ranges`; window: its bound on |i - j|, if any.

    Returns:
      out [B, L, H, D] in v's dtype, and float32 [B, H, L] the logarithm of each query's sum of exponentials.
    """
    if _is_local(q.shape[1], window):
        return _local_forward(max(_LOCAL_BLOCK, window), q, k, v, lo, hi)
    return _global_forward(q, k, v, lo, hi)


def backward(q, k, v, out, lse, d_out, lo, hi, *, window: int | None):
    """Gradients of q, k and v, each [B, L, H, D] in its own dtype, from what `forward` gave and out's cotangent."""
    delta = (out.astype(jnp.float32) * d_out.astype(jnp.float32)).sum(axis=-1).swapaxes(1, 2)
    arrays = (q, k, v, d_out, lse, delta, lo, hi)
    if _is_local(q.shape[1], window):
        gradients = _local_backward(max(_LOCAL_BLOCK, window), *arrays)
    else:
        gradients = _global_backward(*arrays)
    return tuple(x.astype(y.dtype) for x, y in zip(gradients, (q, k, v), strict=True))


def _is_local(length, window):
    """Whether comparing blocks with their neighbours saves anything."""
    return window is not None and length > 3 * max(_LOCAL_BLOCK, window)


def _pad(x, axis, multiple):
    """Zeros at the end of an axis, up to a multiple."""
    extra = -x.shape[axis] % multiple
    return jnp.pad(x, [(0, extra if i == axis else 0) for i in range(x.ndim)]) if extra else x


def _pad_ranges(lo, hi, multiple):
    """Ranges [B, L] up to a multiple of tokens; those added see themselves alone."""
    batch, length = lo.shape
    own = jnp.arange(length, length + -length % multiple, dtype=lo.dtype)
    own = jnp.broadcast_to(own, (batch, own.size))
    return jnp.concatenate([lo, own], axis=1), jnp.concatenate([hi, own + 1], axis=1)


_product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def _scores(q, k, lo, hi, key_positions):
    """Scaled scores float32 [..., H, Q, S], -inf where a query [..., H, Q, D] does not see a key [..., H, S, D]."""
    scores = _product("...hqd,...hsd->...hqs", q, k)
    j = key_positions[..., None, :]
    seen = (j >= lo[..., None]) & (j < hi[..., None])
    return jnp.where(seen[..., None, :, :], scores * (1 / math.sqrt(q.shape[-1])), -jnp.inf)


def _tile_gradients(q, k, v, d_out, lse, delta, lo, hi, key_positions):
    """What a tile adds to the gradients of its q, k and v, float32."""
    p = jnp.exp(_scores(q, k, lo, hi, key_positions) - lse[..., None])
    dp = _product("...hqd,...hsd->...hqs", d_out, v)
    ds = (p * (dp - delta[..., None]) * (1 / math.sqrt(q.shape[-1]))).astype(q.dtype)
    return (
        _product("...hqs,...hsd->...hqd", ds, k),
        _product("...hqs,...hqd->...hsd", ds, q),
        _product("...hqs,...hqd->...hsd", p.astype(d_out.dtype), d_out),
    )


# --- global layers: one tile of queries after the other, each against the tiles of keys that it sees ---


def _global_forward(q, k, v, lo, hi):
    """q, k, v [B, L, H, D], lo, hi [B, L] -> out [B, L, H, D], lse [B, H, L]."""
    length = q.shape[1]
    tile = _tile(length)
    q, k, v = (_pad(_heads_first(x), 2, tile) for x in (q, k, v))
    out, lse = _by_row(functools.partial(_row_forward, tile), q, k, v, *_pad_ranges(lo, hi, tile))
    return _heads_first(out)[:, :length], lse[:, :, :length]


def _global_backward(q, k, v, d_out, lse, delta, lo, hi):
    """Arrays as above, lse and delta [B, H, L] -> gradients [B, L, H, D] in float32."""
    length = q.shape[1]
    tile = _tile(length)
    arrays = (*map(_heads_first, (q, k, v, d_out)), lse, delta)
    arrays = (_pad(x, 2, tile) for x in arrays)
    gradients = _by_row(functools.partial(_row_backward, tile), *arrays, *_pad_ranges(lo, hi, tile))
    return tuple(_heads_first(x)[:, :length] for x in gradients)


def _tile(length):
    """Queries (and keys) of a tile, `_TILE` or less: rows are padded to a multiple of it, which should add little."""
    return -(-length // (8 * -(-length // _TILE))) * 8


def _heads_first(x):
    """[B, L, H, D] -> [B, H, L, D], or back: each head's matrix in one piece."""
    return x.swapaxes(1, 2)


def _by_row(function, *arrays):
    """A CPU takes one row after the other: each skips what it does not see, and one row's tile fills the cores."""

    def one_by_one(*arrays):
        def one(row):
            return tuple(x[0] for x in function(*(x[None] for x in row)))

        return jax.lax.map(one, arrays)

    if len(arrays[0]) == 1:
        return function(*arrays)
    return jax.lax.platform_dependent(*arrays, cpu=one_by_one, default=function)


def _at(x, first, tile, axis=2):
    """The tile of x that starts at `first`."""
    return jax.lax.dynamic_slice_in_dim(x, first, tile, axis)


def _put(x, part, first):
    return jax.lax.dynamic_update_slice_in_dim(x, part, first, 2)


def _with_tile_more(x, tile):
    """Keys [B, H, L, D] and a tile of zeros: the last tile that queries see may reach beyond the row."""
    return jnp.pad(x, [(0, 0), (0, 0), (0, tile), (0, 0)])


def _over_keys(lo, hi, tile, body, start):
    """Calls `body` with the start of each tile of keys that these queries [B, Q] see: ranges grow along a row."""
    first, stop = lo[:, 0].min(), hi[:, -1].max()
    tiles = (stop - first + tile - 1) // tile
    return jax.lax.fori_loop(0, tiles, lambda i, carry: body(first + i * tile, carry), start)


def _row_forward(tile, q, k, v, lo, hi):
    """q, k, v [B, H, L, D], lo, hi [B, L] -> out [B, H, L, D], lse [B, H, L]; L in whole tiles."""

    k, v = (_with_tile_more(x, tile) for x in (k, v))

    def queries(first):
        q_tile = _at(q, first, tile)
        seen = [_at(x, first, tile, axis=1) for x in (lo, hi)]

        def keys(j, carry):
            largest, total, weighted = carry
            scores = _scores(q_tile, _at(k, j, tile), *seen, j + jnp.arange(tile))
            new = jnp.maximum(largest, scores.max(axis=-1))
            p = jnp.exp(scores - new[..., None])
            shrink = jnp.exp(largest - new)
            part = _product("...hqs,...hsd->...hqd", p.astype(v.dtype), _at(v, j, tile))
            return new, total * shrink + p.sum(axis=-1), weighted * shrink[..., None] + part

        # Finite, since a query may see nothing of its first tile: -inf minus -inf is NaN.
        largest = jnp.full(q_tile.shape[:3], -1e30, jnp.float32)
        start = (largest, jnp.zeros_like(largest), jnp.zeros(q_tile.shape, jnp.float32))
        largest, total, weighted = _over_keys(*seen, tile, keys, start)
        return (weighted / total[..., None]).astype(v.dtype), largest + jnp.log(total)

    out, lse = jax.lax.map(queries, jnp.arange(0, q.shape[2], tile))  # [L / Q, B, H, Q, ...]
    return tuple(jnp.moveaxis(x, 0, 2).reshape(*q.shape[:3], *x.shape[4:]) for x in (out, lse))


def _row_backward(tile, q, k, v, d_out, lse, delta, lo, hi):
    """Arrays as in `_row_forward`, lse and delta [B, H, L] -> gradients [B, H, L, D] in float32."""

    length = q.shape[2]
    k, v = (_with_tile_more(x, tile) for x in (k, v))

    def queries(i, carry):
        first = i * tile
        q_tile, *others = (_at(x, first, tile) for x in (q, d_out, lse, delta))
        seen = [_at(x, first, tile, axis=1) for x in (lo, hi)]

        def keys(j, carry):
            dq_tile, dk, dv = carry
            k_tile, v_tile = _at(k, j, tile), _at(v, j, tile)
            positions = j + jnp.arange(tile)
            dq_part, dk_part, dv_part = _tile_gradients(
                q_tile, k_tile, v_tile, *others, *seen, positions
            )
            dk = _put(dk, _at(dk, j, tile) + dk_part, j)
            dv = _put(dv, _at(dv, j, tile) + dv_part, j)
            return dq_tile + dq_part, dk, dv

        dq, dk, dv = carry
        start = (jnp.zeros(q_tile.shape, jnp.float32), dk, dv)
        dq_tile, dk, dv = _over_keys(*seen, tile, keys, start)
        return _put(dq, dq_tile, first), dk, dv

    start = tuple(jnp.zeros(x.shape, jnp.float32) for x in (q, k, v))
    dq, dk, dv = jax.lax.fori_loop(0, length // tile, queries, start)
    return dq, dk[:, :, :length], dv[:, :, :length]


# --- local layers: blocks of queries, each against three blocks of keys; a window no longer than a block ends there ---
# N blocks a row, C of them a chunk, G chunks at a time. A chunk has the keys of C + 2 blocks.


def _local_forward(block, q, k, v, lo, hi):
    """q, k, v [B, L, H, D], lo, hi [B, L] -> out [B, L, H, D], lse [B, H, L]."""
    length = q.shape[1]
    q, k, v = (_blocks(x, block) for x in (q, k, v))
    out, lse = _in_chunks(_chunk_forward, (q, *_block_ranges(lo, hi, block)), (k, v))
    return _rows(out)[:, :length], _rows(lse).swapaxes(1, 2)[:, :, :length]


def _local_backward(block, q, k, v, d_out, lse, delta, lo, hi):
    """Arrays as above, lse and delta [B, H, L] -> gradients [B, L, H, D] in float32."""
    length = q.shape[1]
    rowwise = (x.swapaxes(1, 2) for x in (lse, delta))
    q, k, v, *others = (_blocks(x, block) for x in (q, k, v, d_out, *rowwise))
    queries = (q, *others, *_block_ranges(lo, hi, block))
    return tuple(_rows(x)[:, :length] for x in _in_chunks(_chunk_backward, queries, (k, v)))


def _blocks(x, block):
    """[B, L, H, ...] -> [B, N, H, Q, ...], padded to whole blocks."""
    x = _pad(x, 1, block)
    return x.reshape(len(x), -1, block, *x.shape[2:]).swapaxes(2, 3)


def _rows(x):
    """[B, N, H, Q, ...] -> [B, L, H, ...]."""
    x = x.swapaxes(2, 3)
    return x.reshape(len(x), -1, *x.shape[3:])


def _block_ranges(lo, hi, block):
    """[B, L] -> [B, N, Q], counted from the start of the block before."""
    lo, hi = (x.reshape(len(x), -1, block) for x in _pad_ranges(lo, hi, block))
    start = (jnp.arange(lo.shape[1])[:, None] - 1) * block
    return lo - start, hi - start


def _in_chunks(function, queries, keys):
    """Calls `function(*queries, *keys)`, all [B, N, ...] here and [G, C, ...] there, keys with the blocks beside.

    A CPU computes one chunk after the other; elsewhere a row is one chunk and everything is computed at once.
    """
    blocks = queries[0].shape[1]

    def one_by_one(queries, keys):
        def one(chunk):
            return tuple(x[0] for x in function(*(x[None] for x in chunk)))

        size = math.gcd(blocks, _BLOCKS_PER_CHUNK)
        chunks = [_split(x, size) for x in queries] + [_split_wider(x, size) for x in keys]
        return tuple(_join(x, size, blocks) for x in jax.lax.map(one, chunks))

    def at_once(queries, keys):
        wider = [_split_wider(x, blocks) for x in keys]
        return tuple(_join(x, blocks, blocks) for x in function(*queries, *wider))

    return jax.lax.platform_dependent(queries, keys, cpu=one_by_one, default=at_once)


def _split(x, size):
    """[B, N, ...] -> [B N / C, C, ...]."""
    return x.reshape(-1, size, *x.shape[2:])


def _split_wider(x, size):
    """[B, N, ...] -> [B N / C, C + 2, ...]: the chunk, the block before it and the one after it."""
    x = jnp.pad(x, [(0, 0), (1, 1), *[(0, 0)] * (x.ndim - 2)])
    before, after = x[:, :-2:size], x[:, size + 1 :: size]
    own = _split(x[:, 1:-1], size)
    edges = (edge.reshape(-1, 1, *x.shape[2:]) for edge in (before, after))
    return jnp.concatenate([next(edges), own, next(edges)], axis=1)


def _join(x, size, blocks):
    """[B N / C, C, ...] -> [B, N, ...]; of C + 2 blocks the outer ones are added to the chunks beside."""
    x = x.reshape(-1, blocks // size, *x.shape[1:])
    if x.shape[2] != size:
        before, x, after = x[:, 1:, 0], x[:, :, 1:-1], x[:, :-1, -1]
        x = x.at[:, :-1, -1].add(before).at[:, 1:, 0].add(after)
    return x.reshape(len(x), blocks, *x.shape[3:])


def _three(x):
    """[G, C + 2, H, Q, D] -> [G, C, H, 3 Q, D]: each block between its neighbours."""
    return jnp.concatenate([x[:, :-2], x[:, 1:-1], x[:, 2:]], axis=3)


def _add_three(x):
    """The transpose of `_three`."""
    parts = jnp.split(x, 3, axis=3)
    return sum(jnp.pad(part, [(0, 0), (i, 2 - i), *[(0, 0)] * 3]) for i, part in enumerate(parts))


def _chunk_forward(q, lo, hi, k, v):
    """q [G, C, H, Q, D], lo, hi [G, C, Q], k, v [G, C + 2, H, Q, D] -> out like q, lse [G, C, H, Q]."""
    scores = _scores(q, _three(k), lo, hi, jnp.arange(3 * q.shape[3]))
    largest = scores.max(axis=-1)  # finite: a query sees at least itself
    p = jnp.exp(scores - largest[..., None])
    total = p.sum(axis=-1)
    weighted = _product("...hqs,...hsd->...hqd", p.astype(v.dtype), _three(v))
    return (weighted / total[..., None]).astype(v.dtype), largest + jnp.log(total)


def _chunk_backward(q, d_out, lse, delta, lo, hi, k, v):
    """Arrays as above -> dq [G, C, ...], dk and dv [G, C + 2, ...], float32."""
    positions = jnp.arange(3 * q.shape[3])
    dq, dk, dv = _tile_gradients(q, _three(k), _three(v), d_out, lse, delta, lo, hi, positions)
    return dq, _add_three(dk), _add_three(dv)
