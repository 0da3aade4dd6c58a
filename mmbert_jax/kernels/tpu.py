"""Flash attention over key ranges for TPUs, in Pallas Mosaic TPU: bfloat16 or float32, head dim 64.

A register and a tile of memory are 128 lanes wide, a head only 64. So the kernels take heads by pairs, straight out of
[B, L, H * 64]: nothing is transposed or padded in memory. For scores, a tile of queries is stacked twice, the lanes of
the other head set to zero, and multiplied with the pair's keys at once; weights times the pair's values fill 128 lanes,
of which each half of the stack keeps its own. The matrix unit would have padded 64 to 128 otherwise: no work is added.

Global layers hold a row's keys and values (8192 tokens: 2 MiB each) in VMEM and visit, in blocks, what a tile sees.
Both ends of the key ranges are monotone along a row, so these are the blocks of `[lo[first], hi[last])`, and those
inside `[lo[last], hi[first])` need no mask. Local layers bring a tile's keys with a halo of the window on both sides,
and compare each part of the tile with the one block that holds all it can see.

The mask is symmetric, so the gradients of keys and values visit queries by the same two arrays. The backward pass is
two kernels, one over tiles of queries (dQ), one over tiles of keys (dK and dV): seven products instead of the five of a
fused one, but every sum has a fixed order, so gradients are deterministic, and nothing of them is held in float32.

Letters: B batch, L row length, H heads, P pairs of heads, R rows of a part of a tile, N columns of a block.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.tpu as pltpu
import jax.numpy as jnp
from jax import lax

_HEAD_DIM = 64
_LANES = 128
_PAIR = _LANES // _HEAD_DIM

_LOG2_E = math.log2(math.e)
_SCALE = 1 / math.sqrt(_HEAD_DIM)

# Not measured on a TPU: the sizes rest on arithmetic and on what compiles for v5e, v5p and v6e, and are the same for
# all three for want of a measurement that would tell them apart.
# Global: a pair's scores [2 * 256, 512] are 1 MiB in float32, of which the backward pass holds four; they are multiples
# of the matrix unit's side (128, and 256 from v6e on), and a step of the grid is some 20 us of products.
_GLOBAL_ROWS = 256
_GLOBAL_COLUMNS = 512
# Local: with a window of 64, 128 queries see 256 keys, half of which a query sees; 256 would see 384, a third. A step
# of the grid takes several such parts, so that the halo adds an eighth to the traffic, not the double.
_LOCAL_ROWS = 128
_LOCAL_TILE = 1024
# Up to this a part's one block of columns is smaller than those of global layers.
_LARGEST_LOCAL_WINDOW = 128
# Halos are whole tiles of memory (16 rows of bfloat16), and half registers in the lanes.
_HALO_UNIT = 64

_MIB = 1 << 20
# The smallest VMEM of a core among the three (v5p's, 64 MiB), less what the compiler wants for itself.
_VMEM = 48 * _MIB
# Scores and what is made of them, and the tiles that are not whole rows.
_WORKING_SET = 12 * _MIB


def unsupported(shape: tuple[int, int, int, int], dtype, window: int | None) -> str | None:
    """Why these kernels cannot take q, k and v of this shape [B, L, H, D] and dtype; None where they can."""
    if shape[-1] != _HEAD_DIM:
        return f"the TPU kernels are written for head dim {_HEAD_DIM}, not {shape[-1]}"
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float32):
        return f"the TPU kernels are written for bfloat16 and float32, not {jnp.dtype(dtype).name}"
    length = shape[1] + -shape[1] % _LANES
    if _vmem_bytes(_plan(length, window), length, dtype) > _VMEM:
        return f"the TPU kernels hold a row in VMEM, and one of {shape[1]} tokens does not fit"
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
      q, k, v: bfloat16 or float32 [B, L, H, 64], rotary embedding applied. Scores are scaled by 1 / 8.
      lo, hi: int32 [B, L], both non-decreasing along a row, of a symmetric mask; see `ranges.ranges`.
      window: bound on |i - j| that `lo` and `hi` keep; what lies beyond is not looked at.
      interpret: True, or `pltpu.InterpretParams`, to run on a CPU.

    Returns:
      out: [B, L, H, 64] in q's dtype.
      lse: float32 [B, H, L], natural logarithm of the sum of the exponentiated scores.
    """
    shape = q.shape
    q, k, v, lo, hi = _to_whole_tiles(shape, (q, k, v), (), lo, hi)
    plan = _plan(q.shape[1], window)
    out, lse = _call(
        "attention_forward",
        _forward_kernel,
        plan,
        [(q, "own"), (k, "reach"), (v, "reach"), (_stacked(lo, hi), "own ranges")],
        [(q, "own"), (_per_token(q), "own vectors")],
        bounds=_bounds(lo, hi, plan),
        products=2,
        interpret=interpret,
    )
    return _heads_apart(out, shape), lse.reshape(q.shape[0], -1, q.shape[1])[
        :, : shape[2], : shape[1]
    ]


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
      d_out: [B, L, H, 64] in q's dtype, the cotangent of `out`.
      q, k, v, lo, hi, window, interpret: as given to `forward`.

    Returns:
      dq, dk, dv: [B, L, H, 64] in q's dtype.
    """
    shape = q.shape
    # [B, H, L]: with it the softmax's gradient is p * (dp - delta) (FlashAttention, appendix B).
    delta = (out.astype(jnp.float32) * d_out.astype(jnp.float32)).sum(axis=-1).swapaxes(1, 2)
    q, k, v, d_out, lse, delta, lo, hi = _to_whole_tiles(
        shape, (q, k, v, d_out), (lse * _LOG2_E, delta), lo, hi
    )
    plan = _plan(q.shape[1], window)
    shared = {"bounds": _bounds(lo, hi, plan), "interpret": interpret}
    seen = (_stacked(lo, hi), "own ranges")

    def vectors(what):
        return (lse, what), (delta, what)

    (dq,) = _call(
        "attention_backward_queries",
        _backward_queries_kernel,
        plan,
        [(q, "own"), (k, "reach"), (v, "reach"), (d_out, "own"), *vectors("own vectors"), seen],
        [(q, "own")],
        products=3,
        **shared,
    )
    dk, dv = _call(
        "attention_backward_keys",
        _backward_keys_kernel,
        plan,
        [(q, "reach"), (k, "own"), (v, "own"), (d_out, "reach"), *vectors("row vectors"), seen],
        [(k, "own"), (v, "own")],
        products=4,
        **shared,
    )
    return tuple(_heads_apart(x, shape) for x in (dq, dk, dv))


class _Plan(NamedTuple):
    """How a row of L tokens is cut.

    Attributes:
      tile: tokens of a step of the grid; divides L.
      rows: tokens of a part of a tile; divides the tile.
      columns: tokens of a block that rows are compared with.
      halo: None where whole rows are in VMEM. Else a part sees no more than so many tokens on either side of it.
      length: L.
      window: as given.
    """

    tile: int
    rows: int
    columns: int
    halo: int | None
    length: int
    window: int | None

    @property
    def reach(self):
        """Tokens of the other operand that a step of the grid has in VMEM."""
        if self.halo is None:
            return self.length
        return min(self.tile + 2 * self.halo, self.length)

    def first_in_reach(self, t):
        """The first of them, for tile t."""
        if self.reach == self.length:
            return 0
        return pl.multiple_of(
            _clamp(t * self.tile - self.halo, 0, self.length - self.reach), _HALO_UNIT
        )


def _plan(length, window):
    if window is not None and window <= _LARGEST_LOCAL_WINDOW:
        halo = window + -window % _HALO_UNIT
        columns = _LOCAL_ROWS + 2 * halo
        if columns < length:
            tile = _largest_divisor(length, _LOCAL_TILE)
            return _Plan(tile, _LOCAL_ROWS, columns, halo, length, window)
    rows = _largest_divisor(length, _GLOBAL_ROWS)
    return _Plan(rows, rows, min(_GLOBAL_COLUMNS, length), None, length, window)


def _largest_divisor(length, limit):
    """The largest multiple of 128 up to `limit` that divides the length, itself a multiple of 128."""
    return next(x for x in range(limit, 0, -_LANES) if length % x == 0)


def _clamp(x, low, high):
    return jnp.minimum(jnp.maximum(x, low), high)


def _vmem_bytes(plan, length, dtype):
    """What the hungriest kernel, that of the keys' gradient, takes: two arrays in two buffers; lse and delta too."""
    matrices = 4 * plan.reach * _LANES * jnp.dtype(dtype).itemsize
    vectors = 4 * length * 8 * 4
    return matrices + vectors + _WORKING_SET


# --- arrays around the kernels ---


def _to_whole_tiles(shape, matrices, vectors, lo, hi):
    """Heads by pairs, [B, L, P * 128] and [B, P, 2, L], and L and H padded by zeros to whole registers.

    The added tokens see nothing but themselves.
    """
    batch, length, heads, _ = shape
    longer, more = -length % _LANES, -heads % _PAIR

    def matrix(x):
        x = jnp.pad(x, ((0, 0), (0, longer), (0, more), (0, 0)))
        return x.reshape(batch, length + longer, -1)

    def vector(x):
        x = jnp.pad(x, ((0, 0), (0, more), (0, longer)))
        return x.reshape(batch, -1, _PAIR, length + longer)

    if longer:
        own = jnp.broadcast_to(
            jnp.arange(length, length + longer, dtype=jnp.int32), (batch, longer)
        )
        lo, hi = jnp.concatenate([lo, own], axis=1), jnp.concatenate([hi, own + 1], axis=1)
    return *map(matrix, matrices), *map(vector, vectors), lo, hi


def _heads_apart(x, shape):
    batch, length, heads, depth = shape
    return x.reshape(batch, x.shape[1], -1, depth)[:, :length, :heads]


def _stacked(lo, hi):
    """[B, 2, L]"""
    return jnp.stack([lo, hi], axis=1)


def _per_token(q):
    """Shape and dtype of the lse of q [B, L, P * 128]."""
    batch, length, lanes = q.shape
    return jax.ShapeDtypeStruct((batch, lanes // _LANES, _PAIR, length), jnp.float32)


def _bounds(lo, hi, plan):
    """int32 [B * tiles * 4]: lo[first], lo[last], hi[first], hi[last] of each tile; flat, since SMEM pads rows."""
    first, last = slice(None, None, plan.tile), slice(plan.tile - 1, None, plan.tile)
    return jnp.stack([lo[:, first], lo[:, last], hi[:, first], hi[:, last]], axis=-1).reshape(-1)


def _call(name, kernel, plan, inputs, outputs, *, bounds, products, interpret):
    """Runs a kernel over [B, P, tiles].

    Args:
      inputs, outputs: arrays, or shapes, each with what a step sees of it: its tile ("own"), all that the tile can see
        ("reach"), or the whole row.
      bounds: `_bounds`, which only kernels that have whole rows need.
      products: matrix products for each score, for the estimate of costs.
    """
    batch, length, lanes = inputs[0][0].shape
    pairs, depth = lanes // _LANES, _HEAD_DIM
    tile = plan.tile
    if plan.reach == length:
        reach = pl.BlockSpec((1, length, _LANES), lambda b, p, t, *_: (b, 0, p))
    else:
        reach = pl.BlockSpec(
            (pl.Element(1), pl.Element(plan.reach), pl.Element(_LANES)),
            lambda b, p, t, *_: (b, plan.first_in_reach(t), p * _LANES),
        )
    specs = {
        "own": pl.BlockSpec((1, tile, _LANES), lambda b, p, t, *_: (b, t, p)),
        "reach": reach,
        "own vectors": pl.BlockSpec((1, 1, _PAIR, tile), lambda b, p, t, *_: (b, p, 0, t)),
        "row vectors": pl.BlockSpec((1, 1, _PAIR, length), lambda b, p, t, *_: (b, p, 0, 0)),
        "own ranges": pl.BlockSpec((1, 2, tile), lambda b, p, t, *_: (b, 0, t)),
    }
    arrays = [array for array, _ in inputs]
    seen = length if plan.window is None else min(length, 2 * plan.window + 1)
    scores = batch * pairs * _PAIR * length * seen
    scalars = [bounds] if plan.halo is None else []
    return pl.pallas_call(
        functools.partial(kernel, plan),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(batch, pairs, length // tile),
            in_specs=[specs[what] for _, what in inputs],
            out_specs=[specs[what] for _, what in outputs],
        ),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x, _ in outputs],
        compiler_params=pltpu.CompilerParams(
            # Tiles come last and in order: what the whole row gives is fetched once.
            dimension_semantics=("parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=_vmem_bytes(plan, length, arrays[0].dtype),
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * products * scores * depth,
            transcendentals=scores,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x, _ in inputs + outputs),
        ),
        interpret=interpret,
        name=name,
    )(*scalars, *arrays)


# --- what kernels share ---


class _Part(NamedTuple):
    """Some rows of a tile.

    Attributes:
      batch, tile: where the grid is.
      rows: their place in the tile.
      first: number of the first one in the row.
    """

    batch: jax.Array
    tile: jax.Array
    rows: pl.Slice
    first: jax.Array


def _for_parts(plan, compute):
    """`compute(part)` for the parts of a step's tile."""
    batch, tile = pl.program_id(0), pl.program_id(2)

    @pl.loop(0, plan.tile // plan.rows)
    def _(i):
        place = pl.multiple_of(i * plan.rows, plan.rows)
        compute(_Part(batch, tile, pl.ds(place, plan.rows), tile * plan.tile + place))


class _Block(NamedTuple):
    """Columns that a part of a tile is compared with.

    Attributes:
      start: number of its first token in the row.
      floor: tokens before this one belong to another block; None where there is no other.
      reach: its place in what is in VMEM.
      masked: whether some row does not see some column.
    """

    start: jax.Array
    floor: jax.Array | None
    reach: pl.Slice
    masked: bool


def _for_blocks(plan, bounds, part, step, carry):
    """`carry = step(block, carry)` for the blocks that a part sees, in order.

    Args:
      bounds: the reference to what `_bounds` gave, in a list; an empty one where there is a halo.
    """
    if plan.halo is not None:
        start = _clamp(part.first - plan.halo, 0, plan.length - plan.columns)
        place = pl.multiple_of(start - plan.first_in_reach(part.tile), _HALO_UNIT)
        return step(_Block(start, None, pl.ds(place, plan.columns), masked=True), carry)

    at = 4 * (part.batch * (plan.length // plan.tile) + part.tile)
    lo_first, lo_last, hi_first, hi_last = (bounds[0][at + i] for i in range(4))
    # Blocks begin where the first row's keys do, not at multiples of their size: fewer of them, fewer with a mask.
    begin = lax.div(lo_first, _LANES) * _LANES
    end = pl.cdiv(hi_last - begin, plan.columns)
    inner = jnp.minimum(pl.cdiv(lo_last - begin, plan.columns), end)
    inner_end = jnp.maximum(lax.div(hi_first - begin, plan.columns), inner)

    def visit(masked):
        def body(i, carry):
            floor = begin + i * plan.columns
            start = pl.multiple_of(jnp.minimum(floor, plan.length - plan.columns), _LANES)
            return step(_Block(start, floor, pl.ds(start, plan.columns), masked), carry)

        return body

    carry = lax.fori_loop(0, inner, visit(masked=True), carry)
    carry = lax.fori_loop(inner, inner_end, visit(masked=False), carry)
    return lax.fori_loop(inner_end, end, visit(masked=True), carry)


def _masked(x, block, lo, hi, otherwise):
    """x [2R, N], with `otherwise` where a row, which sees `[lo, hi)` [2R, 1], does not see a column of the block."""
    if not block.masked:
        return x
    column = lax.broadcasted_iota(jnp.int32, x.shape, 1) + block.start
    lo = lo if block.floor is None else jnp.maximum(lo, block.floor)
    return jnp.where((column >= lo) & (column < hi), x, otherwise)


def _is_first_head(shape):
    return lax.broadcasted_iota(jnp.int32, shape, 1) < _HEAD_DIM


def _head_by_head(x):
    """[R, 128] -> [2R, 128]: twice the rows, each time with one of the pair's heads and zeros for the other."""
    first = _is_first_head(x.shape)
    wide = x.astype(jnp.float32)  # v5e selects nothing narrower
    return jnp.concatenate([jnp.where(first, wide, 0), jnp.where(first, 0, wide)]).astype(x.dtype)


def _side_by_side(x):
    """[2R, 128] -> [R, 128]: from each half of the rows the lanes of its head."""
    rows = x.shape[0] // _PAIR
    return jnp.where(_is_first_head((rows, _LANES)), x[:rows], x[rows:])


def _columns(vectors):
    """[2, R] -> [2R, 1]"""
    return jnp.concatenate([vectors[i].reshape(-1, 1) for i in range(_PAIR)])


def _ranges(seen_ref, rows):
    """lo and hi, each [2R, 1]: both heads see the same."""
    return (jnp.concatenate([seen_ref[0, i, rows].reshape(-1, 1)] * _PAIR) for i in range(2))


def _product(a, b, axis_of_b):
    """a [M, K] times b, [K, N] or, if its axis 1 is summed over, [N, K] -> float32 [M, N]."""
    return lax.dot_general(
        a,
        b,
        (((1,), (axis_of_b,)), ((), ())),
        preferred_element_type=jnp.float32,
        precision=lax.Precision.HIGHEST if a.dtype == jnp.float32 else None,
    )


_times_transposed = functools.partial(_product, axis_of_b=1)
_times = functools.partial(_product, axis_of_b=0)


# --- the kernels: what a step of the grid computes ---


def _forward_kernel(plan, *refs):
    *bounds, q_ref, k_ref, v_ref, seen_ref, out_ref, lse_ref = refs

    def compute(part):
        rows = part.rows
        q = _head_by_head(q_ref[0, rows, :])
        lo, hi = _ranges(seen_ref, rows)

        def step(block, carry):
            largest, total, acc = carry
            v = v_ref[0, block.reach, :]
            x = _times_transposed(q, k_ref[0, block.reach, :]) * (_SCALE * _LOG2_E)
            x = _masked(x, block, lo, hi, -jnp.inf)
            new = jnp.maximum(largest, x.max(axis=1, keepdims=True))
            decay = jnp.exp2(largest - new)
            p = jnp.exp2(x - new)
            total = total * decay + p.sum(axis=1, keepdims=True)
            return new, total, acc * decay + _times(p.astype(v.dtype), v)

        # The maximum starts finite: a row may see nothing of its tile's first block, and inf - inf is not a number.
        largest = jnp.full((q.shape[0], 1), -1e30, jnp.float32)
        zeros = jnp.zeros(q.shape, jnp.float32)
        largest, total, acc = _for_blocks(plan, bounds, part, step, (largest, zeros[:, :1], zeros))
        out_ref[0, rows, :] = _side_by_side(acc / total).astype(out_ref.dtype)
        lse = largest * (1 / _LOG2_E) + jnp.log(total)
        for head in range(_PAIR):
            own = slice(head * plan.rows, (head + 1) * plan.rows)
            lse_ref[0, 0, head, rows] = lse[own].reshape(-1)

    _for_parts(plan, compute)


def _backward_queries_kernel(plan, *refs):
    """dQ; lse in units of log 2."""
    *bounds, q_ref, k_ref, v_ref, do_ref, lse_ref, delta_ref, seen_ref, dq_ref = refs

    def compute(part):
        rows = part.rows
        q, do = (_head_by_head(x[0, rows, :]) for x in (q_ref, do_ref))
        lse, delta = (_columns(x[0, 0, :, rows]) for x in (lse_ref, delta_ref))
        lo, hi = _ranges(seen_ref, rows)

        def step(block, dq):
            k = k_ref[0, block.reach, :]
            p = jnp.exp2(_times_transposed(q, k) * (_SCALE * _LOG2_E) - lse)
            p = _masked(p, block, lo, hi, 0.0)
            ds = p * (_times_transposed(do, v_ref[0, block.reach, :]) - delta)
            return dq + _times(ds.astype(k.dtype), k)

        dq = _for_blocks(plan, bounds, part, step, jnp.zeros(q.shape, jnp.float32))
        dq_ref[0, rows, :] = (_side_by_side(dq) * _SCALE).astype(dq_ref.dtype)

    _for_parts(plan, compute)


def _backward_keys_kernel(plan, *refs):
    """dK and dV: rows are keys, columns are queries; lse in units of log 2."""
    *bounds, q_ref, k_ref, v_ref, do_ref, lse_ref, delta_ref, seen_ref, dk_ref, dv_ref = refs

    def compute(part):
        rows = part.rows
        k, v = (_head_by_head(x[0, rows, :]) for x in (k_ref, v_ref))
        lo, hi = _ranges(seen_ref, rows)

        def minus(x, ref, block):
            """x [2R, N] less a vector of each head's queries."""
            vectors = _lanes(plan, ref, block.start)
            halves = jnp.split(x, _PAIR)
            return jnp.concatenate([half - vectors[i : i + 1] for i, half in enumerate(halves)])

        def step(block, carry):
            dk, dv = carry
            q, do = q_ref[0, block.reach, :], do_ref[0, block.reach, :]
            p = jnp.exp2(minus(_times_transposed(k, q) * (_SCALE * _LOG2_E), lse_ref, block))
            p = _masked(p, block, lo, hi, 0.0)
            ds = p * minus(_times_transposed(v, do), delta_ref, block)
            return dk + _times(ds.astype(q.dtype), q), dv + _times(p.astype(do.dtype), do)

        zeros = jnp.zeros(k.shape, jnp.float32)
        dk, dv = _for_blocks(plan, bounds, part, step, (zeros, zeros))
        dk_ref[0, rows, :] = (_side_by_side(dk) * _SCALE).astype(dk_ref.dtype)
        dv_ref[0, rows, :] = _side_by_side(dv).astype(dv_ref.dtype)

    _for_parts(plan, compute)


def _lanes(plan, ref, start):
    """A block's part [2, N] of a row's vectors. Loads begin at whole registers, blocks of local layers at half ones."""
    whole = pl.multiple_of(lax.div(start, _LANES) * _LANES, _LANES)
    x = ref[0, 0, :, pl.ds(whole, plan.columns)]
    if plan.halo is None or plan.halo % _LANES == 0:
        return x
    # At the row's end there is no register more, but blocks end there as whole ones do.
    after = pl.multiple_of(jnp.minimum(whole + plan.columns, plan.length - _LANES), _LANES)
    more = jnp.concatenate([x, ref[0, 0, :, pl.ds(after, _LANES)]], axis=1)
    return jnp.where(start == whole, x, more[:, _HALO_UNIT : _HALO_UNIT + plan.columns])
