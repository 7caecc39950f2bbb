"""Ask for the rows that a sum reads next.

A sum along a row of a matrix ends where the row does, and the next one starts a stream that the
hardware has to notice first; with one row at a time and rows of some kilobytes that is most of the
time. So while one row is read, the same place some rows further on is asked for, into the second-
level cache. A prefetch never faults, so nothing is asked about where the matrix ends.

Where a statement with an elementary function reads the row too, as in a softmax, that one asks in
place of the plain reduction: the memory then works while the core computes, and not before.
"""

from __future__ import annotations

from collections.abc import Iterable

from nestor.codegen.llvm.addressing import AccessPlan, locate
from nestor.codegen.llvm.builder import Val, int_val
from nestor.codegen.llvm.context import Context
from nestor.codegen.llvm.cost import expression_cost
from nestor.codegen.llvm.expressions import Expressions
from nestor.codegen.llvm.indexing import emit_at
from nestor.codegen.llvm.types import TYPE_BYTES
from nestor.ir.affine import Affine
from nestor.ir.expr import Load, distinct_nodes, loads
from nestor.ir.loopnest import Block, Compute, Guard, Loop, Node

ROWS_AHEAD = 2
"""How far ahead: with short rows one is over before the memory answers."""

L2_SHARE = 4
"""What is asked for ahead fills at most one part in this many of the second-level cache."""

NEAR_BYTES = 2048
"""How far ahead in the same row where rows are longer than that."""

MIN_RUN_BYTES, MAX_RUN_BYTES = 256, 16384
"""Pieces of memory of a size between are asked for as a whole, the next one while one is read:
18 → 37 GB/s for a sum over rows in tiles of columns of 8 KB (Zen 4, two threads)."""

MIN_COST = 16
"""By how much what asks in a reduction's place must be more expensive [instructions]."""


def prefetch_rows(ctx: Context, loop: Loop) -> None:
    """At the start of an iteration of ``loop``: prefetch for the sums of a vector loop in it."""
    vector = loop.body
    if ctx.vector is not None or not isinstance(vector, Loop) or vector.kind != "vector":
        return
    compute = _row_compute(ctx, vector.body)
    if compute is None or not all(a.is_const for a in (*vector.lower, *vector.upper)):
        return
    cost = compute_cost(compute)
    count = vector.upper[0].const - vector.lower[0].const
    seen: list[AccessPlan] = []
    for value in compute.values:
        for node in distinct_nodes(value):
            if not isinstance(node, Load) or node.tensor not in ctx.info.tensors:
                continue
            if not all(isinstance(i, Affine) for i in node.indices):
                continue
            asking = ctx.info.asking.get(node.tensor)
            if asking != cost if asking is not None else compute.phase == "point":
                continue
            plan = Expressions(ctx).plan(node.tensor, node.indices)
            if plan is not None and plan not in seen and _is_row(plan, vector.index):
                seen.append(plan)
                _prefetch(ctx, plan, loop, vector, count)


def compute_cost(compute: Compute) -> int:
    """Rough number of instructions of a compute."""
    return sum(map(expression_cost, compute.values))


def asking_computes(computes: Iterable[Compute]) -> dict[str, int]:
    """Tensors that a cheap reduction and a much more expensive compute read → the cost of the
    latter, which asks for the rows in the former's place."""
    cheapest: dict[str, int] = {}
    dearest: dict[str, int] = {}
    for compute in computes:
        if compute.phase not in ("update", "point"):
            continue
        cost = compute_cost(compute)
        for name in {x.tensor for value in compute.values for x in loads(value)}:
            dearest[name] = max(cost, dearest.get(name, 0))
            if compute.phase == "update":
                cheapest[name] = min(cost, cheapest.get(name, cost))
    return {
        name: dearest[name] for name, cost in cheapest.items() if dearest[name] >= cost + MIN_COST
    }


def _row_compute(ctx: Context, node: Node) -> Compute | None:
    """The update of partial states in registers, under guards or not; that of a scan too. Or a
    pointwise compute."""
    while isinstance(node, Guard) and node.orelse is None:
        node = node.body
    if isinstance(node, Block):
        node = node.body[0]
    if not isinstance(node, Compute):
        return None
    if node.phase == "point":
        return node
    if node.phase != "update":
        return None
    return node if all(s.target in ctx.buffers for s in node.stores) else None


def _is_row(plan: AccessPlan, lane: str) -> bool:
    """Lanes lie along memory that the kernel only reads."""
    if not plan.storage.read_only or plan.linear.coefficient(lane) != 1:
        return False
    return not any(lane in index.variables() for index, _, _ in plan.symbolic)


def _prefetch(ctx: Context, plan: AccessPlan, loop: Loop, vector: Loop, count: int) -> None:
    distance = _next_run(ctx, plan, loop.index, count) or _distance(ctx, plan, loop.index)
    if distance is None:
        return
    old = ctx.env.get(vector.index)
    ctx.env[vector.index] = vector.lower[0]
    pointer = locate(ctx, plan).pointer
    if old is None:
        del ctx.env[vector.index]
    else:
        ctx.env[vector.index] = old
    ty = plan.storage.ty
    there = ctx.fb.emit(f"getelementptr {ty}, ptr {pointer.text}, i64 {distance.text}", "ptr")
    name = ctx.fb.module.declare("llvm.prefetch.p0", "void", "ptr, i32, i32, i32")
    for start in range(0, count * TYPE_BYTES[ty], ctx.target.line_bytes):
        at = ctx.fb.emit(f"getelementptr i8, ptr {there.text}, i64 {start}", "ptr")
        ctx.fb.line(f"call void {name}(ptr {at.text}, i32 0, i32 2, i32 1)")


def _next_run(ctx: Context, plan: AccessPlan, inner: str, count: int) -> Val | None:
    """Elements to the next piece of memory where the loops read short pieces that lie far apart,
    as tiles of columns are; None where they do not.

    Args: count: elements that one iteration of ``inner`` reads.
    """
    item, run = TYPE_BYTES[plan.storage.ty], count
    if plan.symbolic:
        return None
    for name in (inner, *_loops_around(ctx, inner)):
        step = plan.linear.coefficient(name)
        high = ctx.ranges.get(name, (None, None))[1]
        if step == run and high is not None:
            run = step * (high + 1)
            continue
        far = step * item * ROWS_AHEAD > ctx.target.l2_bytes // L2_SHARE
        if not far or not MIN_RUN_BYTES <= run * item <= MAX_RUN_BYTES:
            return None
        return int_val(step * max(1, NEAR_BYTES // (run * item)))
    return None


def _loops_around(ctx: Context, inner: str) -> list[str]:
    symbols = {s.name for s in ctx.info.symbols}
    return [n for n in reversed(ctx.variables) if n not in symbols and n != inner]


def _distance(ctx: Context, plan: AccessPlan, inner: str) -> Val | None:
    """Elements from here to what is asked for; None if no loop around goes from row to row."""
    around = _loops_around(ctx, inner)
    item = TYPE_BYTES[plan.storage.ty]
    limit = ctx.target.l2_bytes // L2_SHARE // item
    for name in around:
        constant = plan.linear.coefficient(name) * ROWS_AHEAD
        terms = [
            (index.coefficient(name) * factor * ROWS_AHEAD, stride)
            for index, factor, stride in plan.symbolic
            if index.coefficient(name)
        ]
        if not terms:
            if abs(constant) * item <= ROWS_AHEAD * ctx.target.line_bytes:
                continue
            return int_val(constant if abs(constant) <= limit else NEAR_BYTES // item)
        total = int_val(constant)
        for scale, stride in terms:
            term = emit_at(ctx, 0, f"mul nsw i64 {stride.text}, {scale}")
            total = emit_at(ctx, 0, f"add nsw i64 {total.text}, {term.text}")
        shifted = emit_at(ctx, 0, f"add nsw i64 {total.text}, {limit}")
        fits = emit_at(ctx, 0, f"icmp ule i64 {shifted.text}, {2 * limit}", "i1")
        near = f"i64 {NEAR_BYTES // item}"
        return emit_at(ctx, 0, f"select i1 {fits.text}, i64 {total.text}, {near}")
    return None
