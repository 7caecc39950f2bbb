"""Stores of a register tile whose rows, not its lanes, are contiguous in memory.

``unroll r { vector l { y[…, l, …, r] = … } }`` would store every element by itself. The tile is
transposed in registers instead: log₂ stages of interleaving two registers each (a rotation of the
bits of an element's place), after which every lane's rows stand side by side.
"""

from __future__ import annotations

from collections.abc import Callable

from nestor.codegen.llvm.addressing import AccessPlan
from nestor.codegen.llvm.builder import Val, mangle
from nestor.codegen.llvm.context import Context
from nestor.codegen.llvm.expressions import Expressions
from nestor.codegen.llvm.memory import is_streamed, store_past_caches, store_pieces
from nestor.codegen.llvm.types import MEMORY_TYPE, TYPE_BYTES
from nestor.ir.affine import Affine
from nestor.ir.expr import loads
from nestor.ir.loopnest import Compute, Loop, Node

MIN_ROWS = 4
"""With fewer rows, element by element is as good."""


def transposed_store(ctx: Context, loop: Loop) -> tuple[list[Loop], Loop, Compute] | None:
    """(unroll loops between, vector loop, compute) if ``loop``'s stores should be transposed.

    So when the innermost compute stores one element of 4 or 8 bytes to a tensor that it does not
    read, at distance 1 along ``loop`` and at a greater distance along the lanes.
    """
    if ctx.vector is not None or ctx.condition is not None or ctx.mask is not None:
        return None
    between: list[Loop] = []
    node: Node = loop.body
    while isinstance(node, Loop) and node.kind == "unroll":
        between.append(node)
        node = node.body
    if not isinstance(node, Loop) or node.kind != "vector" or not isinstance(node.body, Compute):
        return None
    compute = node.body
    if compute.monoid is not None or len(compute.stores) != 1:
        return None
    target = compute.stores[0]
    if target.target in ctx.buffers or not all(isinstance(i, Affine) for i in target.indices):
        return None
    roots = ctx.info.roots
    if any(roots.get(x.tensor) == roots[target.target] for x in loads(compute.values[0])):
        return None
    if TYPE_BYTES[MEMORY_TYPE[ctx.info.tensors[target.target].dtype]] < 4:
        return None
    plan = Expressions(ctx).plan(target.target, target.indices)
    if plan is None or not _is_row_major(ctx, plan, loop, node):
        return None
    return between, node, compute


def _is_row_major(ctx: Context, plan: AccessPlan, rows: Loop, lanes: Loop) -> bool:
    """Distance 1 along ``rows``, a constant other than 0 and ±1 along ``lanes``.

    Divisions go where the rows stay within one panel of a layout in panels.
    """
    row, lane = rows.index, lanes.index
    linear = plan.linear
    if not plan.is_plain:
        within = dict(ctx.ranges)
        for loop in (rows, lanes):
            low = max((a.const for a in loop.lower if a.is_const), default=None)
            high = min((a.const for a in loop.upper if a.is_const), default=None)
            within[loop.index] = (low, None if high is None else high - 1)
        linear = linear.substitute(dict(ctx.env)).simplify(within)
    hidden = [a.num.variables() for a, _ in linear.terms if not isinstance(a, str)]
    hidden += [index.variables() for index, _, _ in plan.symbolic]
    if any(row in names or lane in names for names in hidden):
        return False
    return linear.coefficient(row) == 1 and abs(linear.coefficient(lane)) > 1


def store_rows(
    ctx: Context, compute: Compute, rows: range, at_row: Callable[[int, Callable[[], None]], None]
) -> None:
    """Store one vector of lanes for each of ``rows``, the vector loop being set up already.

    Args: at_row: runs a function with the unrolled index bound to a row.
    """
    assert ctx.vector is not None
    streamed = 0
    for first in range(rows.start, rows.stop, ctx.lanes):
        streamed = _store_group(ctx, compute, rows[first - rows.start :], at_row, streamed)


def _store_group(
    ctx: Context,
    compute: Compute,
    left: range,
    at_row: Callable[[int, Callable[[], None]], None],
    streamed: int,
) -> int:
    """Store the next rows, as many as there are lanes.

    Args: left: the rows to be stored. streamed: what is missing of lines whose first part went past
        the caches [bytes].
    Returns: the same for the rows after these.
    """
    rows, line = left[: ctx.lanes], ctx.target.line_bytes
    values: list[Val] = []
    where: list[tuple[Val, int]] = []

    def evaluate() -> None:
        ev = Expressions(ctx)
        if not values:
            place = ev.location(compute.stores[0].target, compute.stores[0].indices)
            assert place is not None and isinstance(place.offsets, tuple)
            where.append((place.pointer, place.offsets[1]))
            storages.append((place.storage.ty, place.storage.metadata))
            element = TYPE_BYTES[place.storage.ty]
            whole = place.offsets[1] * element % line == 0 and len(left) * element >= line
            streams.append(whole and is_streamed(ctx, place, line))
        values.append(ctx.fb.broadcast(ev.evaluate(compute.values[0]), ctx.lanes))

    storages: list[tuple[str, str]] = []
    streams: list[bool] = []
    for row in rows:
        at_row(row, evaluate)
    (pointer, distance), (ty, metadata) = where[0], storages[0]
    assert ctx.vector is not None
    size = len(rows) * TYPE_BYTES[ty]
    if not streamed and streams[0]:
        streamed = line
    past = streamed >= size and len(rows) == ctx.lanes
    for lane, item in enumerate(transpose(ctx, values)[: ctx.vector.active]):
        rhs = f"getelementptr {ty}, ptr {pointer.text}, i64 {distance * lane}"
        address = ctx.fb.emit(rhs, "ptr") if lane else pointer
        if past:
            store_past_caches(ctx, item, address, size, metadata)
        else:
            _store_prefix(ctx, item, len(rows), address, metadata)
    return streamed - size if past else 0


def transpose(ctx: Context, values: list[Val]) -> list[Val]:
    """Rows of lanes → for each lane a vector of its rows (their number rounded up to 2ⁿ)."""
    fb, lanes = ctx.fb, ctx.lanes
    count = 1 << (len(values) - 1).bit_length()
    poison = Val("poison", values[0].ty, lanes)
    current = [*values, *[poison] * (count - len(values))]
    if count == lanes and lanes * TYPE_BYTES[values[0].ty] == 32:
        return _transpose_halves(ctx, current)
    low = [i // 2 + (lanes if i % 2 else 0) for i in range(lanes)]
    high = [i + lanes // 2 for i in low]
    for _ in range(count.bit_length() - 1):
        half = count // 2
        pairs = zip(current[:half], current[half:], strict=True)
        current = [fb.shuffle(a, order, b) for a, b in pairs for order in (low, high)]
    per_register = lanes // count
    out: list[Val] = []
    for register in current:
        for part in range(per_register):
            picks = list(range(part * count, (part + 1) * count))
            out.append(register if per_register == 1 else fb.shuffle(register, picks))
    return out


def _transpose_halves(ctx: Context, rows: list[Val]) -> list[Val]:
    """A square tile in registers of two 16-byte halves: halves of rows far apart are put together
    first (of rows in memory: a load into a half), the rest happens within the halves. An
    instruction that moves elements between halves takes the place of two that do not."""
    fb, lanes = ctx.fb, len(rows)
    half = lanes // 2
    order = [*range(half), *range(lanes, lanes + half)]
    out: list[Val] = []
    for side in (0, half):
        current = [
            fb.shuffle(a, [side + i for i in order], b)
            for a, b in zip(rows[:half], rows[half:], strict=True)
        ]
        for _ in range(half.bit_length() - 1):
            low = [
                base + i // 2 + (lanes if i % 2 else 0) for base in (0, half) for i in range(half)
            ]
            high = [i + half // 2 for i in low]
            pairs = zip(current[: half // 2], current[half // 2 :], strict=True)
            current = [fb.shuffle(a, picks, b) for a, b in pairs for picks in (low, high)]
        out += current
    return out


def _store_prefix(ctx: Context, value: Val, count: int, address: Val, metadata: str) -> None:
    """Store the first ``count`` lanes."""
    fb, align = ctx.fb, TYPE_BYTES[value.ty]
    if count == value.lanes:
        fb.line(f"store {value.full} {value.text}, ptr {address.text}, align {align}{metadata}")
        return
    if not ctx.target.has_masks:
        store_pieces(ctx, value, count, address, metadata)
        return
    mask = ", ".join(f"i1 {'true' if i < count else 'false'}" for i in range(value.lanes))
    name = fb.module.declare(
        f"llvm.masked.store.{mangle(value.ty, value.lanes)}.p0",
        "void",
        f"{value.full}, ptr, <{value.lanes} x i1>",
    )
    fb.line(
        f"call void {name}({value.full} {value.text}, ptr align {align} {address.text}, "
        f"<{value.lanes} x i1> <{mask}>){metadata}"
    )
