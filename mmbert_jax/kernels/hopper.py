"""Flash attention over key ranges for Hopper GPUs (H100, H200), in Pallas Mosaic GPU: bfloat16, head dim 64.

The structure is FlashAttention-3's (Shah et al. 2024, https://arxiv.org/abs/2407.08608). A thread block has two
consumer warpgroups with 64 rows each, and a producer warpgroup that brings blocks of the other operand by TMA through
rings of slots in shared memory. A consumer issues the last products of one block behind the first of the next, and
takes the next block's exponentials meanwhile, so that tensor cores and arithmetic units work at the same time.

Rows of a local layer, or of a short document, see few blocks: too few to hide a thread block's first loads and last
stores behind its own work. There a thread block is a single warpgroup, which does its own loads, and several of them
share a multiprocessor.

Both ends of the key ranges are monotone along a row, so a tile of rows walks over the blocks of `[lo[first], hi[last])`
and no others, and a block inside `[lo[last], hi[first])` needs no mask. The mask is symmetric, so the keys' gradient
walks over blocks of queries by the same two arrays.

The backward pass is two kernels, one over tiles of queries (dQ), one over tiles of keys (dK and dV): seven products
instead of the five of a fused one, but every sum stays in registers and has a fixed order: gradients are deterministic.

Letters: B batch, L row length, H heads, D head dim, R rows of a warpgroup, K rows of a block, S slots of a ring.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

_HEAD_DIM = 64
_ROWS = 64  # of a consumer warpgroup: what one wgmma instruction takes

_LOG2_E = math.log2(math.e)
_SCALE = 1 / math.sqrt(_HEAD_DIM)

# How a warpgroup holds a matrix [R, K] or [R, D] in registers, and one value a row or a column of it.
_MATRIX = plgpu.Layout.WGMMA
_PER_ROW = plgpu.Layout.WGMMA.reduce(1)
_PER_COLUMN = plgpu.Layout.WGMMA.reduce(0)


class _Plan(NamedTuple):
    """How the thread blocks of a kernel work.

    Attributes:
      consumers: warpgroups with `_ROWS` rows each; the rows of all of them are a tile.
      producer: whether a warpgroup of its own does the loads.
      slots: blocks that a ring holds.
      block: rows of a block of the other operand.
    """

    consumers: int
    producer: bool
    slots: int
    block: int

    @property
    def tile(self) -> int:
        return self.consumers * _ROWS


_SINGLE = _Plan(consumers=1, producer=False, slots=3, block=64)
_PAIR = _Plan(consumers=2, producer=True, slots=4, block=64)
_PAIR_WIDE = _PAIR._replace(block=128)
# Rows are padded to whole tiles of any plan.
_TILE = _PAIR.tile


class _Plans(NamedTuple):
    forward: _Plan
    dq: _Plan
    dkv: _Plan


def _plans(window, length):
    """Measured on an H200, see docs/benchmarks/gpu.md; blocks of 128 spill registers in the backward pass."""
    if window is not None and window <= _TILE:
        return _Plans(forward=_SINGLE, dq=_SINGLE, dkv=_SINGLE)
    if length <= 2048:
        return _Plans(forward=_SINGLE, dq=_SINGLE, dkv=_PAIR)
    return _Plans(forward=_PAIR_WIDE, dq=_PAIR, dkv=_PAIR)


def unsupported(shape: tuple[int, int, int, int], dtype, window: int | None) -> str | None:
    """Why these kernels cannot take q, k and v of this shape [B, L, H, D] and dtype; None where they can."""
    del window  # any
    if shape[-1] != _HEAD_DIM:
        return f"the Hopper kernels are written for head dim {_HEAD_DIM}, not {shape[-1]}"
    if jnp.dtype(dtype) != jnp.bfloat16:
        return f"the Hopper kernels are written for bfloat16, not {jnp.dtype(dtype).name}"
    return None


def forward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    lo: jax.Array,
    hi: jax.Array,
    *,
    window: int | None,
    interpret=False,
) -> tuple[jax.Array, jax.Array]:
    """Softmax attention in which query i sees the keys `[lo_i, hi_i)`.

    Args:
      q, k, v: bfloat16 [B, L, H, 64], rotary embedding applied. Scores are scaled by 1 / 8.
      lo, hi: int32 [B, L], both non-decreasing along a row, of a symmetric mask; see `ranges.ranges`.
      window: bound on |i - j| that `lo` and `hi` keep; chooses how thread blocks work, nothing else.
      interpret: False, or `plgpu.InterpretGPUParams` to run on a CPU.

    Returns:
      out: bfloat16 [B, L, H, 64].
      lse: float32 [B, H, L], natural logarithm of the sum of the exponentiated scores.
    """
    length = q.shape[1]
    q, k, v, lo, hi = _to_whole_tiles(length, (q, k, v), (), lo, hi)
    out, lse = _forward(q, k, v, lo, hi, _plans(window, length).forward, interpret)
    return out[:, :length], lse[:, :, :length]


def backward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    out: jax.Array,
    lse: jax.Array,
    d_out: jax.Array,
    lo: jax.Array,
    hi: jax.Array,
    *,
    window: int | None,
    interpret=False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of `forward` with respect to q, k and v.

    Args:
      out, lse: what `forward` returned.
      d_out: bfloat16 [B, L, H, 64], the cotangent of `out`.
      q, k, v, lo, hi, window, interpret: as given to `forward`.

    Returns:
      dq, dk, dv: bfloat16 [B, L, H, 64].
    """
    length = q.shape[1]
    # [B, H, L]: with it the softmax's gradient is p * (dp - delta) (FlashAttention, appendix B).
    delta = jnp.einsum("blhd,blhd->bhl", out.astype(jnp.float32), d_out.astype(jnp.float32))
    q, k, v, d_out, lse, delta, lo, hi = _to_whole_tiles(
        length, (q, k, v, d_out), (lse * _LOG2_E, delta), lo, hi
    )
    arguments = (q, k, v, d_out, lse, delta, lo, hi)
    plans = _plans(window, length)
    dq = _backward_queries(*arguments, plans.dq, interpret)
    dk, dv = _backward_keys(*arguments, plans.dkv, interpret)
    return dq[:, :length], dk[:, :length], dv[:, :length]


def _to_whole_tiles(length, matrices, vectors, lo, hi):
    """Pads [B, L, H, D] and [B, H, L] along L by zeros; the added tokens see nothing but themselves."""
    extra = -length % _TILE
    if not extra:
        return *matrices, *vectors, lo, hi
    own = jnp.broadcast_to(
        jnp.arange(length, length + extra, dtype=jnp.int32), (lo.shape[0], extra)
    )
    return (
        *(jnp.pad(x, ((0, 0), (0, extra), (0, 0), (0, 0))) for x in matrices),
        *(jnp.pad(x, ((0, 0), (0, 0), (0, extra))) for x in vectors),
        jnp.concatenate([lo, own], axis=1),
        jnp.concatenate([hi, own + 1], axis=1),
    )


class _Walk(NamedTuple):
    """The blocks that some rows see: numbers `[first, end)`; all of the rows see all of `[inner_lo, inner_hi)`."""

    first: jax.Array
    end: jax.Array
    inner_lo: jax.Array
    inner_hi: jax.Array


def _walk(lo, hi, batch, start, rows, block):
    last = start + rows - 1
    return _Walk(
        first=lax.div(lo[batch, start], block),
        end=lax.div(hi[batch, last] + (block - 1), block),
        inner_lo=lo[batch, last],
        inner_hi=hi[batch, start],
    )


class _Ring(NamedTuple):
    """Slots that are filled with one block after the other, and emptied by all consumers.

    Attributes:
      buffers: shared memory, each [S, K, D] or [S, K]; a block takes the same slot in each.
      full, free: barriers [S]; `free` is None where the one consumer does the loads itself.
    """

    buffers: tuple
    full: plgpu.Barrier
    free: plgpu.Barrier | None


class _Stream(NamedTuple):
    """The blocks of a tile on their way through a ring.

    Attributes:
      sources: from a slice of rows to what the ring's buffers are filled with.
    """

    ring: _Ring
    tile: _Walk
    block: int
    sources: Callable

    @property
    def slots(self):
        return self.ring.buffers[0].shape[0]

    def slot(self, i):
        return lax.rem(i - self.tile.first, self.slots)

    def fill(self, i):
        s = self.slot(i)
        for source, buffer in zip(
            self.sources(pl.ds(i * self.block, self.block)), self.ring.buffers, strict=True
        ):
            plgpu.copy_gmem_to_smem(source, buffer.at[s], self.ring.full.at[s])

    def wait(self, i):
        plgpu.barrier_wait(self.ring.full.at[self.slot(i)])

    def release(self, i):
        """A consumer's word that it will not read block i again."""
        if self.ring.free is not None:
            plgpu.barrier_arrive(self.ring.free.at[self.slot(i)])
        else:
            pl.when(i + self.slots < self.tile.end)(lambda: self.fill(i + self.slots))


def _matrices(count, rows):
    """Shared memory [count, rows, D], laid out as wgmma wants its operands."""
    transforms = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
    return plgpu.SMEM((count, rows, _HEAD_DIM), jnp.bfloat16, transforms=transforms)


def _vectors(count, rows):
    return plgpu.SMEM((count, rows), jnp.float32)


def _ring(plan, *buffers):
    free = plgpu.Barrier(num_barriers=plan.slots, num_arrivals=plan.consumers)
    return _Ring(
        buffers,
        full=plgpu.Barrier(num_barriers=plan.slots, num_arrivals=len(buffers)),
        free=free if plan.producer else None,
    )


def _load(plan, *streams):
    """Fills the rings: all along as the producer, or as the only consumer before its work."""
    tile = streams[0].tile
    if not plan.producer:

        @pl.loop(tile.first, lax.min(tile.end, tile.first + plan.slots))
        def _(i):
            for stream in streams:
                stream.fill(i)

        return

    plgpu.set_max_registers(40, action="decrease")

    def wait_until_free(stream, i):
        plgpu.barrier_wait(stream.ring.free.at[stream.slot(i)])

    @pl.loop(tile.first, tile.end)
    def _(i):
        for stream in streams:
            pl.when(i >= tile.first + plan.slots)(functools.partial(wait_until_free, stream, i))
            stream.fill(i)

    # Leaves no slot under way: the interpreter checks that whoever waits for a barrier sees all of its phases.
    @pl.loop(lax.max(tile.first, tile.end - plan.slots), tile.end)
    def _(i):
        for stream in streams:
            wait_until_free(stream, i)


def _roles(plan, warpgroup, load, consume):
    """Runs `load` and `consume` in the warpgroups whose work they are."""
    if not plan.producer:
        load()
        consume()
        return

    @pl.when(warpgroup == plan.consumers)
    def _():
        load()

    @pl.when(warpgroup < plan.consumers)
    def _():
        plgpu.set_max_registers(232, action="increase")
        consume()


def _pass_over(first, end, *streams):
    """Frees the blocks that the other consumer sees and this one does not.

    It waits for each block although it does not read it: a slot freed before it was filled would count for the fill
    before, which the other consumer may still read; and no copy may be under way when the kernel ends.
    """

    @pl.loop(first, end)
    def _(i):
        for stream in streams:
            stream.wait(i)
            stream.release(i)


def _masked(x, own, row_lo, row_hi, start, otherwise):
    """Scores x [R, K] against a block that begins at `start`, with `otherwise` where a row does not see a column."""

    def mask():
        column = plgpu.broadcasted_iota(jnp.int32, x.shape, 1, layout=_MATRIX) + start
        seen = (column >= _over_columns(row_lo, x)) & (column < _over_columns(row_hi, x))
        return jnp.where(seen, x, otherwise)

    at_boundary = (start < own.inner_lo) | (start + x.shape[1] > own.inner_hi)
    return lax.cond(at_boundary, mask, lambda: x)


def _over_columns(x, like):
    return lax.broadcast_in_dim(x, like.shape, [0])


def _over_rows(x, like):
    return lax.broadcast_in_dim(x, like.shape, [1])


def _filled(value, shape, layout):
    return plgpu.layout_cast(jnp.full(shape, value, jnp.float32), layout)


def _row_ranges(lo, hi, batch, rows):
    """lo and hi [R] of a warpgroup's rows, straight from global memory."""
    load = functools.partial(plgpu.load, layout=_PER_ROW, optimized=False)
    return load(lo.at[batch, rows]), load(hi.at[batch, rows])


def _staging(plan, operands, block, interpret):
    """Shared memory for `_left_operand`; nothing outside the interpreter."""
    shape = (plan.consumers, operands, _ROWS, block)
    return plgpu.SMEM(shape, jnp.bfloat16) if interpret else None


def _left_operand(x, staging, *index):
    """x [R, K] in registers, as wgmma takes it; jax's GPU interpreter (0.11.2) wants it in shared memory."""
    if staging is None:
        return x
    staging.at[index][...] = x
    plgpu.commit_smem()
    return staging.at[index]


def _launch(name, plan, kernel, arguments, out_type, scratch, interpret):
    batch, length, heads, _ = arguments[0].shape
    return plgpu.kernel(
        kernel,
        out_type=out_type,
        grid=(heads, length // plan.tile, batch),
        grid_names=("head", "tile", "batch"),
        num_threads=plan.consumers + plan.producer,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        scratch_types=scratch,
        interpret=interpret or None,
        kernel_name=name,
    )(*arguments)


def _store(*copies):
    """Copies results from shared to global memory, and waits until they have left, not until they have arrived."""
    plgpu.commit_smem()
    for source, target in copies:
        plgpu.copy_smem_to_gmem(source, target)
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)


def _place():
    return tuple(lax.axis_index(name) for name in ("batch", "head", "tile", "warpgroup"))


# Jitted: the layers of a model share one kernel, instead of each building its own while the step is compiled.
@functools.partial(jax.jit, static_argnames=("plan", "interpret"))
def _forward(q, k, v, lo, hi, plan, interpret):
    batch, length, heads, depth = q.shape
    block = plan.block
    scale = _SCALE * _LOG2_E  # exponentials are powers of two

    def kernel(
        q_g, k_g, v_g, lo_g, hi_g, out_g, lse_g, q_s, lse_s, loaded, key_ring, value_ring, staging
    ):  # fmt: skip
        b, h, t, wg = _place()
        tile = _walk(lo_g, hi_g, b, t * plan.tile, plan.tile, block)
        keys = _Stream(key_ring, tile, block, lambda rows: (k_g.at[b, rows, h],))
        values = _Stream(value_ring, tile, block, lambda rows: (v_g.at[b, rows, h],))

        def consume():
            start = t * plan.tile + wg * _ROWS
            rows = pl.ds(start, _ROWS)
            own = _walk(lo_g, hi_g, b, start, _ROWS, block)
            (k_s,), (v_s,) = key_ring.buffers, value_ring.buffers
            plgpu.copy_gmem_to_smem(q_g.at[b, rows, h], q_s.at[wg], loaded.at[wg])
            row_lo, row_hi = _row_ranges(lo_g, hi_g, b, rows)
            plgpu.barrier_wait(loaded.at[wg])
            _pass_over(tile.first, own.first, keys, values)

            def start_scores(i, scores):
                keys.wait(i)
                plgpu.wgmma(scores, q_s.at[wg], k_s.at[keys.slot(i)].T)

            def start_sum(i, p, weighted):
                plgpu.wgmma(weighted, _left_operand(p, staging, wg, 0), v_s.at[values.slot(i)])

            def softmax(i, x, largest, total):
                """Takes block i's scores x [R, K] into the running maximum and sum of a row.

                Returns both, the factor for what was summed before, and the block's weights [R, K].
                """
                keys.release(i)
                x = _masked(x, own, row_lo, row_hi, i * block, -jnp.inf)
                new = jnp.maximum(largest, x.max(axis=1) * scale)
                decay = jnp.exp2(largest - new)
                p = jnp.exp2(x * scale - _over_columns(new, x))
                return new, total * decay + p.sum(axis=1), decay, p

            def first(scores):
                start_scores(own.first, scores)
                return scores[...]

            # The maximum starts finite: a row may see nothing of its tile's first block, and inf - inf is not a number.
            *state, p = softmax(
                own.first,
                pl.run_scoped(first, plgpu.ACC((_ROWS, block))),
                _filled(-1e30, (_ROWS,), _PER_ROW),
                _filled(0, (_ROWS,), _PER_ROW),
            )
            values.wait(own.first)

            def step(i, carry):
                acc, (largest, total, decay), p = carry

                def overlap(scores, weighted):
                    start_scores(i, scores)
                    start_sum(i - 1, p, weighted)
                    x = plgpu.wgmma_accumulator_load(scores, wait_n=1)
                    *state, p_next = lax.optimization_barrier(softmax(i, x, largest, total))
                    # The next step's values are waited for here, because ptxas moves the wait for the sum to the front
                    # of its basic block, before the exponentials, and a wait for a barrier ends a block.
                    values.wait(i)
                    pv = plgpu.wgmma_accumulator_load(weighted, wait_n=0)
                    values.release(i - 1)
                    # ptxas puts all wgmma one after the other if registers that one reads are written while others run:
                    # so the weights are rounded only now.
                    pv, p_next = lax.optimization_barrier((pv, p_next))
                    return acc * _over_columns(decay, acc) + pv, state, p_next.astype(q.dtype)

                return pl.run_scoped(overlap, plgpu.ACC((_ROWS, block)), plgpu.ACC((_ROWS, depth)))

            carry = _filled(0, (_ROWS, depth), _MATRIX), state, p.astype(q.dtype)
            acc, (largest, total, decay), p = lax.fori_loop(own.first + 1, own.end, step, carry)

            def last(weighted):
                start_sum(own.end - 1, p, weighted)
                return weighted[...]

            acc = acc * _over_columns(decay, acc) + pl.run_scoped(last, plgpu.ACC((_ROWS, depth)))
            values.release(own.end - 1)
            _pass_over(own.end, tile.end, keys, values)

            q_s.at[wg][...] = (acc / _over_columns(total, acc)).astype(q.dtype)
            lse_s.at[wg][...] = largest * (1 / _LOG2_E) + jnp.log(total)
            _store((q_s.at[wg], out_g.at[b, rows, h]), (lse_s.at[wg], lse_g.at[b, h, rows]))

        _roles(plan, wg, lambda: _load(plan, keys, values), consume)

    return _launch(
        "attention_forward",
        plan,
        kernel,
        (q, k, v, lo, hi),
        (
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((batch, heads, length), jnp.float32),
        ),
        (
            _matrices(plan.consumers, _ROWS),
            _vectors(plan.consumers, _ROWS),
            plgpu.Barrier(num_barriers=plan.consumers),
            _ring(plan, _matrices(plan.slots, block)),
            _ring(plan, _matrices(plan.slots, block)),
            _staging(plan, 1, block, interpret),
        ),
        interpret,
    )


@functools.partial(jax.jit, static_argnames=("plan", "interpret"))
def _backward_queries(q, k, v, d_out, lse, delta, lo, hi, plan, interpret):
    """dQ, a tile of queries at a time; lse in units of log 2."""
    block = plan.block

    def kernel(
        q_g, k_g, v_g, do_g, lse_g, delta_g, lo_g, hi_g, dq_g,
        q_s, do_s, lse_s, delta_s, loaded, key_ring, value_ring, staging,
    ):  # fmt: skip
        b, h, t, wg = _place()
        tile = _walk(lo_g, hi_g, b, t * plan.tile, plan.tile, block)
        keys = _Stream(key_ring, tile, block, lambda rows: (k_g.at[b, rows, h],))
        values = _Stream(value_ring, tile, block, lambda rows: (v_g.at[b, rows, h],))

        def consume():
            start = t * plan.tile + wg * _ROWS
            rows = pl.ds(start, _ROWS)
            own = _walk(lo_g, hi_g, b, start, _ROWS, block)
            (k_s,), (v_s,) = key_ring.buffers, value_ring.buffers
            plgpu.copy_gmem_to_smem(q_g.at[b, rows, h], q_s.at[wg], loaded.at[wg])
            plgpu.copy_gmem_to_smem(do_g.at[b, rows, h], do_s.at[wg], loaded.at[wg])
            plgpu.copy_gmem_to_smem(lse_g.at[b, h, rows], lse_s.at[wg], loaded.at[wg])
            plgpu.copy_gmem_to_smem(delta_g.at[b, h, rows], delta_s.at[wg], loaded.at[wg])
            row_lo, row_hi = _row_ranges(lo_g, hi_g, b, rows)
            plgpu.barrier_wait(loaded.at[wg])
            row_lse = plgpu.load(lse_s.at[wg], layout=_PER_ROW)
            row_delta = plgpu.load(delta_s.at[wg], layout=_PER_ROW)
            _pass_over(tile.first, own.first, keys, values)

            def start_products(i, scores, dp):
                keys.wait(i)
                plgpu.wgmma(scores, q_s.at[wg], k_s.at[keys.slot(i)].T)
                values.wait(i)
                plgpu.wgmma(dp, do_s.at[wg], v_s.at[values.slot(i)].T)

            def finish(i, scores, dp, later):
                """dS [R, K] of block i, with `later` products issued after its own."""
                x = plgpu.wgmma_accumulator_load(scores, wait_n=later + 1)
                p = jnp.exp2(x * (_SCALE * _LOG2_E) - _over_columns(row_lse, x))
                p = lax.optimization_barrier(_masked(p, own, row_lo, row_hi, i * block, 0.0))
                dp = plgpu.wgmma_accumulator_load(dp, wait_n=later)
                values.release(i)
                return p * (dp - _over_columns(row_delta, p))

            def start_sum(i, ds, acc):
                plgpu.wgmma(acc, _left_operand(ds, staging, wg, 0), k_s.at[keys.slot(i)])

            products = plgpu.ACC((_ROWS, block)), plgpu.ACC((_ROWS, block))

            def gradient(acc):
                def first(scores, dp):
                    start_products(own.first, scores, dp)
                    return finish(own.first, scores, dp, 0).astype(q.dtype)

                def step(i, ds):
                    def overlap(scores, dp):
                        start_products(i, scores, dp)
                        start_sum(i - 1, ds, acc)
                        ds_next = lax.optimization_barrier(finish(i, scores, dp, 1))
                        plgpu.wgmma_wait(0)
                        keys.release(i - 1)
                        return lax.optimization_barrier(ds_next).astype(q.dtype)

                    return pl.run_scoped(overlap, *products)

                ds = lax.fori_loop(own.first + 1, own.end, step, pl.run_scoped(first, *products))
                start_sum(own.end - 1, ds, acc)
                return acc[...]

            dq = pl.run_scoped(gradient, plgpu.ACC((_ROWS, _HEAD_DIM)))
            keys.release(own.end - 1)
            _pass_over(own.end, tile.end, keys, values)

            q_s.at[wg][...] = (dq * _SCALE).astype(q.dtype)
            _store((q_s.at[wg], dq_g.at[b, rows, h]))

        _roles(plan, wg, lambda: _load(plan, keys, values), consume)

    return _launch(
        "attention_backward_queries",
        plan,
        kernel,
        (q, k, v, d_out, lse, delta, lo, hi),
        jax.ShapeDtypeStruct(q.shape, q.dtype),
        (
            _matrices(plan.consumers, _ROWS),
            _matrices(plan.consumers, _ROWS),
            _vectors(plan.consumers, _ROWS),
            _vectors(plan.consumers, _ROWS),
            plgpu.Barrier(num_barriers=plan.consumers, num_arrivals=4),
            _ring(plan, _matrices(plan.slots, block)),
            _ring(plan, _matrices(plan.slots, block)),
            _staging(plan, 1, block, interpret),
        ),
        interpret,
    )


@functools.partial(jax.jit, static_argnames=("plan", "interpret"))
def _backward_keys(q, k, v, d_out, lse, delta, lo, hi, plan, interpret):
    """dK and dV, a tile of keys at a time: its rows are keys, its columns queries; lse in units of log 2."""
    block = plan.block

    def kernel(
        q_g, k_g, v_g, do_g, lse_g, delta_g, lo_g, hi_g, dk_g, dv_g,
        k_s, v_s, loaded, query_ring, cotangent_ring, staging,
    ):  # fmt: skip
        b, h, t, wg = _place()
        tile = _walk(lo_g, hi_g, b, t * plan.tile, plan.tile, block)
        queries = _Stream(
            query_ring, tile, block, lambda rows: (q_g.at[b, rows, h], lse_g.at[b, h, rows])
        )
        cotangents = _Stream(
            cotangent_ring, tile, block, lambda rows: (do_g.at[b, rows, h], delta_g.at[b, h, rows])
        )

        def consume():
            start = t * plan.tile + wg * _ROWS
            rows = pl.ds(start, _ROWS)
            own = _walk(lo_g, hi_g, b, start, _ROWS, block)
            (q_s, lse_s), (do_s, delta_s) = query_ring.buffers, cotangent_ring.buffers
            plgpu.copy_gmem_to_smem(k_g.at[b, rows, h], k_s.at[wg], loaded.at[wg])
            plgpu.copy_gmem_to_smem(v_g.at[b, rows, h], v_s.at[wg], loaded.at[wg])
            row_lo, row_hi = _row_ranges(lo_g, hi_g, b, rows)
            plgpu.barrier_wait(loaded.at[wg])
            _pass_over(tile.first, own.first, queries, cotangents)

            def start_products(i, scores, dp):
                queries.wait(i)
                plgpu.wgmma(scores, k_s.at[wg], q_s.at[queries.slot(i)].T)
                cotangents.wait(i)
                plgpu.wgmma(dp, v_s.at[wg], do_s.at[cotangents.slot(i)].T)

            def finish(i, scores, dp, later):
                """P and dS, both transposed [R, K], of block i, with `later` products issued after its own."""
                s = queries.slot(i)
                column_lse = plgpu.load(lse_s.at[s], layout=_PER_COLUMN)
                column_delta = plgpu.load(delta_s.at[s], layout=_PER_COLUMN)
                x = plgpu.wgmma_accumulator_load(scores, wait_n=later + 1)
                p = jnp.exp2(x * (_SCALE * _LOG2_E) - _over_rows(column_lse, x))
                p = lax.optimization_barrier(_masked(p, own, row_lo, row_hi, i * block, 0.0))
                dp = plgpu.wgmma_accumulator_load(dp, wait_n=later)
                return p, p * (dp - _over_rows(column_delta, p))

            def start_sums(i, p, ds, dk_acc, dv_acc):
                s = queries.slot(i)
                plgpu.wgmma(dv_acc, _left_operand(p, staging, wg, 0), do_s.at[s])
                plgpu.wgmma(dk_acc, _left_operand(ds, staging, wg, 1), q_s.at[s])

            def release(i):
                queries.release(i)
                cotangents.release(i)

            def rounded(*matrices):
                return tuple(x.astype(q.dtype) for x in matrices)

            products = plgpu.ACC((_ROWS, block)), plgpu.ACC((_ROWS, block))

            def gradients(*sums):
                def first(scores, dp):
                    start_products(own.first, scores, dp)
                    return rounded(*finish(own.first, scores, dp, 0))

                def step(i, p_ds):
                    def overlap(scores, dp):
                        start_products(i, scores, dp)
                        start_sums(i - 1, *p_ds, *sums)
                        p_ds_next = lax.optimization_barrier(finish(i, scores, dp, 2))
                        plgpu.wgmma_wait(0)
                        release(i - 1)
                        return rounded(*lax.optimization_barrier(p_ds_next))

                    return pl.run_scoped(overlap, *products)

                p_ds = lax.fori_loop(own.first + 1, own.end, step, pl.run_scoped(first, *products))
                start_sums(own.end - 1, *p_ds, *sums)
                return tuple(acc[...] for acc in sums)

            sums = plgpu.ACC((_ROWS, _HEAD_DIM)), plgpu.ACC((_ROWS, _HEAD_DIM))
            dk, dv = pl.run_scoped(gradients, *sums)
            release(own.end - 1)
            _pass_over(own.end, tile.end, queries, cotangents)

            k_s.at[wg][...] = (dk * _SCALE).astype(q.dtype)
            v_s.at[wg][...] = dv.astype(q.dtype)
            _store((k_s.at[wg], dk_g.at[b, rows, h]), (v_s.at[wg], dv_g.at[b, rows, h]))

        _roles(plan, wg, lambda: _load(plan, queries, cotangents), consume)

    return _launch(
        "attention_backward_keys",
        plan,
        kernel,
        (q, k, v, d_out, lse, delta, lo, hi),
        (jax.ShapeDtypeStruct(k.shape, k.dtype), jax.ShapeDtypeStruct(v.shape, v.dtype)),
        (
            _matrices(plan.consumers, _ROWS),
            _matrices(plan.consumers, _ROWS),
            plgpu.Barrier(num_barriers=plan.consumers, num_arrivals=2),
            _ring(plan, _matrices(plan.slots, block), _vectors(plan.slots, block)),
            _ring(plan, _matrices(plan.slots, block), _vectors(plan.slots, block)),
            _staging(plan, 2, block, interpret),
        ),
        interpret,
    )
