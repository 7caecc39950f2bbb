"""Loops, guards and buffers of a nest as code."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import assert_never

from nestor.codegen.llvm.builder import Val
from nestor.codegen.llvm.computes import emit_compute, lane_merge, merge_tree, merge_vector
from nestor.codegen.llvm.context import LANE, Context, Variable, Vector
from nestor.codegen.llvm.indexing import condition, first_iteration, scalar_affine
from nestor.codegen.llvm.outlining import emit_outlined, outlined
from nestor.codegen.llvm.prefetch import prefetch_rows
from nestor.codegen.llvm.storage import allocate, release
from nestor.codegen.llvm.transpose import (
    MIN_ROWS,
    store_rows,
    transposed_loads,
    transposed_store,
)
from nestor.codegen.llvm.windows import Windows, is_straight, stored_tensors
from nestor.errors import InternalError
from nestor.ir.affine import Affine, affine, variable
from nestor.ir.expr import Load, walk
from nestor.ir.loopnest import Alloc, Block, Compute, Guard, Loop, Node, computes
from nestor.ir.types import DType

MAX_UNROLL = 128
"""An unroll loop of more iterations runs as a serial one."""

MAX_CHUNKS = 8
"""A vector loop of more native vectors becomes a serial loop over vectors."""


def emit_node(ctx: Context, node: Node) -> None:
    """Write ``node`` at the current place."""
    match node:
        case Loop():
            _emit_loop(ctx, node)
        case Block():
            apart = outlined(ctx, node)
            for number, child in enumerate(node.body):
                if number in apart and isinstance(child, Loop):
                    emit_outlined(ctx, child)
                else:
                    emit_node(ctx, child)
        case Alloc():
            saved = dict(ctx.buffers)
            for buffer in node.buffers:
                ctx.buffers[buffer.name] = allocate(ctx, buffer, node.body)
            emit_node(ctx, node.body)
            for buffer in node.buffers:
                release(ctx, ctx.buffers[buffer.name])
            ctx.buffers = saved
        case Guard():
            _emit_guard(ctx, node)
        case Compute():
            emit_compute(ctx, node)
        case _:
            assert_never(node)


def _emit_loop(ctx: Context, loop: Loop) -> None:
    if loop.kind == "vector":
        _emit_vector(ctx, loop)
    elif loop.kind == "unroll":
        _emit_unroll(ctx, loop)
    elif loop.kind == "parallel" and not ctx.inside_parallel and ctx.vector is None:
        from nestor.codegen.llvm.parallel import emit_parallel

        emit_parallel(ctx, loop)
    elif loop.kind == "grid":
        raise InternalError(f"kernel {ctx.info.name}: a grid loop is not for a CPU")
    else:
        emit_serial(ctx, loop.index, loop.lower, loop.upper, lambda: _emit_body(ctx, loop))


def _emit_body(ctx: Context, loop: Loop) -> None:
    prefetch_rows(ctx, loop)
    emit_node(ctx, loop.body)


# --- serial and unrolled loops -----------------------------------------------------------------


def resolved_bounds(
    ctx: Context, lower: tuple[Affine, ...], upper: tuple[Affine, ...]
) -> tuple[tuple[Affine, ...], tuple[Affine, ...]]:
    """Bounds here, without those that the others imply by their intervals."""
    return (
        _dominant([ctx.resolve(a) for a in lower], ctx, sign=1),
        _dominant([ctx.resolve(a) for a in upper], ctx, sign=-1),
    )


def _dominant(bounds: list[Affine], ctx: Context, sign: int) -> tuple[Affine, ...]:
    kept: list[Affine] = []
    for a in dict.fromkeys(bounds):
        if any(_implies((b - a) * sign, ctx) for b in kept):
            continue
        kept = [b for b in kept if not _implies((a - b) * sign, ctx)]
        kept.append(a)
    return tuple(kept)


def _implies(difference: Affine, ctx: Context) -> bool:
    """The difference is never negative."""
    low = difference.bounds(ctx.ranges)[0]
    return low is not None and low >= 0


def index_range(
    ctx: Context, lower: tuple[Affine, ...], upper: tuple[Affine, ...]
) -> tuple[int | None, int | None]:
    """Inclusive interval of a loop index."""
    lows = [x for a in lower if (x := a.bounds(ctx.ranges)[0]) is not None]
    highs = [x for a in upper if (x := a.bounds(ctx.ranges)[1]) is not None]
    return (max(lows) if lows else None), (min(highs) - 1 if highs else None)


def bound_value(ctx: Context, bounds: tuple[Affine, ...], kind: str) -> Val:
    """``smax``/``smin`` of affines as an i64."""
    total = scalar_affine(ctx, bounds[0])
    for a in bounds[1:]:
        total = ctx.fb.intrinsic(f"llvm.{kind}", total, scalar_affine(ctx, a))
    return total


def emit_serial(
    ctx: Context,
    index: str,
    lower: tuple[Affine, ...],
    upper: tuple[Affine, ...],
    body: Callable[[], None],
) -> None:
    """A counted loop; one of one iteration is no loop, one of none is nothing."""
    lower, upper = resolved_bounds(ctx, lower, upper)
    if len(lower) == 1 and len(upper) == 1:
        trips = upper[0] - lower[0]
        if trips.is_const and trips.const <= 0:
            return
        if trips.is_const and trips.const == 1:
            _with_env(ctx, index, lower[0], body)
            return
    low, high = bound_value(ctx, lower, "smax"), bound_value(ctx, upper, "smin")
    interval = index_range(ctx, lower, upper)
    surely = all(_implies(u - a - 1, ctx) for u in upper for a in lower)
    counted_loop(ctx, index, low, high, interval, body, never_empty=surely)


def counted_loop(
    ctx: Context,
    index: str,
    low: Val,
    high: Val,
    interval: tuple[int | None, int | None],
    body: Callable[[], None],
    *,
    never_empty: bool,
) -> None:
    """``for index in range(low, high)`` around ``body``; the index is bound while it is written."""
    fb = ctx.fb
    head, latch, after = fb.fresh("loop"), fb.fresh("latch"), fb.fresh("after")
    before = fb.label
    if never_empty:
        fb.line(f"br label %{head}")
    else:
        test = fb.compare("icmp slt", low, high)
        fb.line(f"br i1 {test.text}, label %{head}, label %{after}")
    fb.start_block(head)
    i, following = f"%{fb.fresh('i')}", f"%{fb.fresh('n')}"
    fb.line(f"{i} = phi i64 [ {low.text}, %{before} ], [ {following}, %{latch} ]")
    fb.push_scope()
    old = ctx.variables.get(index), ctx.ranges.get(index), ctx.env.pop(index, None)
    ctx.variables[index] = Variable(Val(i, "i64"), fb.depth)
    ctx.ranges[index] = interval
    body()
    fb.line(f"br label %{latch}")
    fb.start_block(latch)
    fb.line(f"{following} = add nsw i64 {i}, 1")
    test_name = f"%{fb.fresh('t')}"
    fb.line(f"{test_name} = icmp slt i64 {following}, {high.text}")
    fb.line(f"br i1 {test_name}, label %{head}, label %{after}")
    fb.pop_scope()
    fb.start_block(after)
    _restore(ctx, index, old)


def _restore(
    ctx: Context,
    index: str,
    old: tuple[Variable | None, tuple[int | None, int | None] | None, Affine | None],
) -> None:
    var, interval, env = old
    ctx.variables.pop(index, None)
    ctx.ranges.pop(index, None)
    if var is not None:
        ctx.variables[index] = var
    if interval is not None:
        ctx.ranges[index] = interval
    if env is not None:
        ctx.env[index] = env


def _with_env(ctx: Context, index: str, value: Affine, body: Callable[[], None]) -> None:
    old = ctx.env.get(index)
    ctx.env[index] = value
    body()
    if old is None:
        del ctx.env[index]
    else:
        ctx.env[index] = old


def constant_bounds(ctx: Context, loop: Loop) -> tuple[int, int]:
    """Bounds of a vector or unroll loop. Raises: ``InternalError`` if they are not constant."""
    if all(a.is_const for a in loop.lower) and all(a.is_const for a in loop.upper):
        return max(a.const for a in loop.lower), min(a.const for a in loop.upper)
    lower, upper = resolved_bounds(ctx, loop.lower, loop.upper)
    if len(lower) != 1 or len(upper) != 1 or not lower[0].is_const or not upper[0].is_const:
        raise InternalError(
            f"kernel {ctx.info.name}: the {loop.kind} loop {loop.index} runs from {lower} to "
            f"{upper}, which are not constant"
        )
    return lower[0].const, upper[0].const


def _emit_unroll(ctx: Context, loop: Loop) -> None:
    low, high = constant_bounds(ctx, loop)
    if high - low > MAX_UNROLL and ctx.vector is None:
        emit_serial(ctx, loop.index, loop.lower, loop.upper, lambda: emit_node(ctx, loop.body))
        return
    if high - low >= MIN_ROWS:
        found = transposed_store(ctx, loop)
        if found is not None:
            between, vector, computes = found
            read = transposed_loads(ctx, computes, loop, vector) if len(computes) > 1 else ()
            tile = Transposed(loop.index, range(low, high), computes, read)
            _emit_transposed(ctx, tile, between, vector)
            return
    for position in range(low, high):
        _with_env(ctx, loop.index, affine(position), lambda: emit_node(ctx, loop.body))


@dataclass(frozen=True, slots=True)
class Transposed:
    """A tile that is stored transposed: its rows, what runs in each, and the loads of that that
    are transposed too."""

    index: str
    rows: range
    computes: list[Compute]
    read: tuple[Load, ...]


def _emit_transposed(ctx: Context, tile: Transposed, between: list[Loop], vector: Loop) -> None:
    """The loops between outside, then all rows of one vector together."""
    if between:
        first, *rest = between
        low, high = constant_bounds(ctx, first)
        for position in range(low, high):
            _with_env(
                ctx,
                first.index,
                affine(position),
                lambda: _emit_transposed(ctx, tile, rest, vector),
            )
        return

    def at_row(row: int, body: Callable[[], None]) -> None:
        _with_env(ctx, tile.index, affine(row), body)

    def run() -> None:
        for compute in tile.computes:
            emit_compute(ctx, compute)

    def whole() -> None:
        if ctx.vector is None:
            for row in tile.rows:
                at_row(row, run)
        else:
            store_rows(ctx, tile.computes, tile.rows, at_row, tile.read)

    _emit_vector(ctx, vector, whole)


# --- vector loops ------------------------------------------------------------------------------


def _emit_vector(ctx: Context, loop: Loop, body: Callable[[], None] | None = None) -> None:
    """A vector loop around ``body`` (its own by default), one native vector after the other."""
    low, high = constant_bounds(ctx, loop)
    write = body or (lambda: emit_node(ctx, loop.body))
    if ctx.vector is not None:
        _emit_inner_vector(ctx, loop, low, high)
        return
    native = native_lanes(ctx, loop.body)
    chunks = (high - low) // native
    if body is None and 1 < chunks <= MAX_CHUNKS and chunks * native == high - low:
        merge = lane_merge(ctx, loop)
        if merge is not None:
            states: list[list[Val]] = []
            for start in range(low, high, native):
                last = start + native == high
                step = functools.partial(merge_vector, ctx, merge, states, last=last)
                _emit_lanes(ctx, loop.index, affine(start), native, step, low)
            return
    if chunks > MAX_CHUNKS:
        counter = f"{loop.index}%vectors"
        emit_serial(
            ctx,
            counter,
            (affine(0),),
            (affine(chunks),),
            lambda: _emit_lanes(
                ctx, loop.index, variable(counter) * native + low, native, write, low
            ),
        )
    rest = low + chunks * native if chunks > MAX_CHUNKS else low
    if body is None and high - rest > native and (high - rest) % native == 0:
        ctx.windows = _windows(ctx, loop.body, rest, high, native)
    for start in range(rest, high, native):
        if ctx.windows is not None:
            ctx.windows.start = start
        _emit_lanes(ctx, loop.index, affine(start), min(native, high - start), write, low)
    ctx.windows = None


def _windows(ctx: Context, body: Node, low: int, high: int, lanes: int) -> Windows | None:
    """What neighbouring loads may share in these vectors; None where conditions or loops lie."""
    if ctx.condition is not None or ctx.full_mask() is not None or not is_straight(body):
        return None
    roots = ctx.info.roots
    stored = frozenset(roots.get(name, name) for name in stored_tensors(body))
    return Windows(low=low, high=high, lanes=lanes, stored=stored)


def _emit_lanes(
    ctx: Context, index: str, start: Affine, active: int, body: Callable[[], None], low: int
) -> None:
    """``active`` iterations from ``start`` at once, of a loop that starts at ``low``."""
    if active == 1:
        _with_env(ctx, index, start, body)
        return
    ctx.vector = Vector(1 << (active - 1).bit_length(), active, index, low)
    ctx.ranges[LANE] = (0, active - 1)
    value = ctx.resolve(start) + variable(LANE)
    _with_env(ctx, index, value, body)
    ctx.vector = None
    del ctx.ranges[LANE]


def _emit_inner_vector(ctx: Context, loop: Loop, low: int, high: int) -> None:
    """A vector loop inside another: merges as trees; anything else one iteration at a time."""
    body = loop.body.body if isinstance(loop.body, Block) else (loop.body,)
    if low == 0 and high > 0 and all(isinstance(b, Compute) and b.phase == "merge" for b in body):
        for b in body:
            assert isinstance(b, Compute)
            merge_tree(ctx, b, loop.index, high)
        return
    for position in range(low, high):
        _with_env(ctx, loop.index, affine(position), lambda: emit_node(ctx, loop.body))


def native_lanes(ctx: Context, node: Node) -> int:
    """Lanes of one register of the widest float that the loop computes, else the widest type."""
    floats, others = 0, 8
    for compute in computes(node):
        exprs = list(compute.values)
        if compute.monoid is not None:
            exprs += compute.monoid.identity
        for e in exprs:
            for n in walk(e):
                bits = max(8, n.dtype.bits)
                if n.dtype in (DType.f32, DType.f64):
                    floats = max(floats, bits)
                elif not n.dtype.is_storage_only:
                    others = max(others, bits)
                else:
                    others = max(others, bits)
    return ctx.target.lanes(floats or others)


# --- guards ------------------------------------------------------------------------------------


def _emit_guard(ctx: Context, guard: Guard) -> None:
    """Conditions equal in all lanes branch, others restrict the lanes."""
    scalar, lanes = condition(ctx, guard.conditions)
    if scalar.literal and scalar.text == "false":
        if guard.orelse is not None:
            emit_node(ctx, guard.orelse)
        return
    if scalar.literal:
        _emit_masked(ctx, guard, lanes)
        return
    fb = ctx.fb
    then, otherwise, after = fb.fresh("then"), fb.fresh("else"), fb.fresh("endif")
    fb.line(
        f"br i1 {scalar.text}, label %{then}, label %{after if guard.orelse is None else otherwise}"
    )
    _emit_branch(ctx, then, after, lambda: _emit_masked(ctx, guard, lanes))
    if guard.orelse is not None:
        orelse = guard.orelse
        _emit_branch(ctx, otherwise, after, lambda: emit_node(ctx, orelse))
    fb.start_block(after)


def _emit_branch(ctx: Context, label: str, after: str, body: Callable[[], None]) -> None:
    fb = ctx.fb
    fb.start_block(label)
    fb.push_scope()
    body()
    fb.line(f"br label %{after}")
    fb.pop_scope()


def _emit_masked(ctx: Context, guard: Guard, lanes: Val | None) -> None:
    if lanes is None:
        emit_node(ctx, guard.body)
        return
    with ctx.where(lanes, first_iteration(ctx, guard.conditions)):
        emit_node(ctx, guard.body)
    if guard.orelse is not None:
        with ctx.where(ctx.not_(lanes)):
            emit_node(ctx, guard.orelse)
