"""Register tiles whose rows, not their lanes, are contiguous in memory.

``unroll r { vector l { y[…, l, …, r] = … } }`` would store every element by itself. The tile is
transposed in registers instead: log₂ stages of interleaving two registers each (a rotation of the
bits of an element's place), after which every lane's rows stand side by side. What such a tile
reads the same way is loaded as it lies, and transposed too: a scan along memory then runs over
many rows at once, a lane each.
"""

from __future__ import annotations

from collections.abc import Callable

from nestor.codegen.llvm.addressing import AccessPlan, Location
from nestor.codegen.llvm.builder import Val, mangle, vec_type
from nestor.codegen.llvm.computes import emit_compute
from nestor.codegen.llvm.context import Context
from nestor.codegen.llvm.expressions import Expressions
from nestor.codegen.llvm.memory import is_streamed, store_past_caches, store_pieces
from nestor.codegen.llvm.storage import read_memory
from nestor.codegen.llvm.types import MEMORY_TYPE, TYPE_BYTES
from nestor.ir.affine import Affine
from nestor.ir.expr import Load, loads
from nestor.ir.loopnest import Block, Compute, Loop, Node

MIN_ROWS = 4
"""With fewer rows, element by element is as good."""


def transposed_store(ctx: Context, loop: Loop) -> tuple[list[Loop], Loop, list[Compute]] | None:
    """(unroll loops between, vector loop, computes) if ``loop``'s stores should be transposed.

    So when the last of the innermost computes stores one element of 4 or 8 bytes to a tensor that
    none of them reads, at distance 1 along ``loop`` and at a greater distance along the lanes, and
    the others, if any, store to buffers.
    """
    if ctx.vector is not None or ctx.condition is not None or ctx.mask is not None:
        return None
    between: list[Loop] = []
    node: Node = loop.body
    while isinstance(node, Loop) and node.kind == "unroll":
        between.append(node)
        node = node.body
    if not isinstance(node, Loop) or node.kind != "vector":
        return None
    computes = _straight_computes(node.body)
    if not computes or (between and len(computes) > 1):
        return None
    *before, last = computes
    if last.monoid is not None or len(last.stores) != 1:
        return None
    if not all(s.target in ctx.buffers for c in before for s in c.stores):
        return None
    target = last.stores[0]
    if target.target in ctx.buffers or not all(isinstance(i, Affine) for i in target.indices):
        return None
    roots = ctx.info.roots
    read = {roots.get(x.tensor) for c in computes for value in c.values for x in loads(value)}
    if roots[target.target] in read:
        return None
    if TYPE_BYTES[MEMORY_TYPE[ctx.info.tensors[target.target].dtype]] < 4:
        return None
    plan = Expressions(ctx).plan(target.target, target.indices)
    if plan is None or not _is_row_major(ctx, plan, loop, node):
        return None
    return between, node, computes


def _straight_computes(node: Node) -> list[Compute]:
    """The computes of a body that is nothing else; else none."""
    nodes = node.body if isinstance(node, Block) else (node,)
    found = [n for n in nodes if isinstance(n, Compute)]
    return found if len(found) == len(nodes) else []


def transposed_loads(
    ctx: Context, computes: list[Compute], rows: Loop, lanes: Loop
) -> tuple[Load, ...]:
    """What ``computes`` read at distance 1 along ``rows`` and at a greater one along ``lanes``."""
    found: dict[tuple[str, int], Load] = {}
    for value in (v for c in computes for v in c.values):
        for x in loads(value):
            if x.tensor in ctx.buffers or x.predicate:
                continue
            if not all(isinstance(i, Affine) for i in x.indices):
                continue
            if TYPE_BYTES[MEMORY_TYPE[ctx.info.tensors[x.tensor].dtype]] < 4:
                continue
            plan = Expressions(ctx).plan(x.tensor, x.indices)
            if plan is not None and _is_row_major(ctx, plan, rows, lanes):
                found[x.tensor, id(x.indices)] = x
    return tuple(found.values())


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
    ctx: Context,
    computes: list[Compute],
    rows: range,
    at_row: Callable[[int, Callable[[], None]], None],
    read: tuple[Load, ...] = (),
) -> None:
    """Run ``computes`` for one vector of lanes for each of ``rows``, the vector loop being set up
    already, and store what the last one makes.

    Args: at_row: runs a function with the unrolled index bound to a row. read: loads to transpose.
    """
    assert ctx.vector is not None
    streamed = 0
    for first in range(rows.start, rows.stop, ctx.lanes):
        left = rows[first - rows.start :]
        given = _load_group(ctx, left[: ctx.lanes], at_row, read)
        streamed = _store_group(ctx, computes, left, at_row, streamed, given)


def _load_group(
    ctx: Context,
    rows: range,
    at_row: Callable[[int, Callable[[], None]], None],
    read: tuple[Load, ...],
) -> list[dict[tuple[str, int], Val]]:
    """For each of ``rows`` what is read there, by tensor and indices: pieces of memory as long as
    there are rows, transposed."""
    assert ctx.vector is not None
    lanes, active, fb = ctx.lanes, ctx.vector.active, ctx.fb
    out: list[dict[tuple[str, int], Val]] = [{} for _ in rows]
    for x in read:
        where: list[Location] = []

        def find(x: Load = x, where: list[Location] = where) -> None:
            place = Expressions(ctx).location(x.tensor, x.indices)
            assert place is not None
            where.append(place)

        at_row(rows[0], find)
        (place,) = where
        assert isinstance(place.offsets, tuple)
        ty = place.storage.ty
        pieces: list[Val] = []
        for lane in range(active):
            rhs = f"getelementptr {ty}, ptr {place.pointer.text}, i64 {place.offsets[lane]}"
            address = fb.emit(rhs, "ptr")
            rhs = f"load {vec_type(ty, len(rows))}, ptr {address.text}, align {TYPE_BYTES[ty]}"
            pieces.append(_widened(ctx, read_memory(ctx, place.storage, rhs, len(rows)), lanes))
        for known, value in zip(out, transpose(ctx, pieces), strict=False):
            known[x.tensor, id(x.indices)] = _widened(ctx, value, lanes)
    return out


def _widened(ctx: Context, value: Val, lanes: int) -> Val:
    """``value`` with lanes of no meaning behind it."""
    if value.lanes == lanes:
        return value
    return ctx.fb.shuffle(value, [min(i, value.lanes - 1) for i in range(lanes)])


def _store_group(
    ctx: Context,
    computes: list[Compute],
    left: range,
    at_row: Callable[[int, Callable[[], None]], None],
    streamed: int,
    given: list[dict[tuple[str, int], Val]],
) -> int:
    """Store the next rows, as many as there are lanes.

    Args: left: the rows to be stored. streamed: what is missing of lines whose first part went past
        the caches [bytes]. given: loads whose values are known, by row.
    Returns: the same for the rows after these.
    """
    rows, line = left[: ctx.lanes], ctx.target.line_bytes
    values: list[Val] = []
    where: list[tuple[Val, int]] = []

    *before, compute = computes

    def evaluate() -> None:
        ctx.given = given[len(values)]
        for other in before:
            emit_compute(ctx, other)
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
    ctx.given = {}
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
