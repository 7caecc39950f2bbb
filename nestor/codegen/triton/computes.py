"""Computes of a nest as statements over the tile that is open."""

from __future__ import annotations

from nestor.codegen.triton.blocks import Context, Register, Value
from nestor.codegen.triton.expressions import Expressions, register_dims, store
from nestor.codegen.triton.names import TYPES, Names, combine_name, literal
from nestor.codegen.triton.online import emit_online, runs_along
from nestor.codegen.triton.products import emit_product
from nestor.errors import Unsupported
from nestor.ir.affine import Affine, affine
from nestor.ir.expr import Const, IndexExpr, Load
from nestor.ir.loopnest import Block, Compute, Guard, Node, Store
from nestor.ir.monoid import Monoid


def emit_compute(ctx: Context, node: Compute) -> None:
    """One phase of a statement, for all instances of the tile at once."""
    match node.phase:
        case "init":
            _init(ctx, node)
        case "update" | "merge":
            _update(ctx, node)
        case _:
            _store_all(ctx, node)


def _store_all(ctx: Context, node: Compute) -> None:
    writer = Expressions(ctx)
    values = [writer.value(v) for v in node.values]
    if len(values) > 1:  # all are evaluated before any is stored
        values = [v if v.text.isidentifier() else ctx.assign("value", v) for v in values]
    for target, expr, value in zip(node.stores, node.values, values):
        if isinstance(expr, Const):
            value = Value(f"tl.full({ctx.shape(frozenset())}, {value.text}, {TYPES[expr.dtype]})")
        store(ctx, target, value, expr.dtype)


def _init(ctx: Context, node: Compute) -> None:
    """A state's start, in every element of its blocks, tested or not."""
    for target, expr in zip(node.stores, node.values):
        register = ctx.registers.get(target.target)
        if register is None or not isinstance(expr, Const):
            store(ctx, target, Expressions(ctx).value(expr), expr.dtype)
            continue
        register_dims(ctx, target.target, register, target.indices)
        sizes = [register.sizes[d] for d in register.places]
        shape = f"({', '.join(map(str, sizes))}{',' if len(sizes) == 1 else ''})"
        value = literal(expr.value, expr.dtype)
        register.name = register.name or ctx.names.fresh(target.target)
        ctx.line(f"{register.name} = tl.full({shape}, {value}, {TYPES[expr.dtype]})")


def _update(ctx: Context, node: Compute) -> None:
    """Combine elements with a state; along the tile's loops that the state does not have, elements
    are combined among themselves first."""
    monoid = node.monoid
    assert monoid is not None
    if all(s.target not in ctx.registers for s in node.stores):
        _update_memory(ctx, node, monoid)
        return
    state = [_state_of(ctx, s) for s in node.stores]
    kept = frozenset(d for dims in state for d in dims)
    free = frozenset(n for s in node.stores for i in s.indices for n in _loops_of(i))
    before, conditions = ctx.axes, ctx.conditions
    _hide(ctx, frozenset(before) & free - kept)
    over = tuple(a for a in ctx.axes if a not in kept)
    special = over and (
        emit_product(ctx, node, state[0], over) or emit_online(ctx, node, state, over)
    )
    if not special:
        if over and runs_along(node):
            raise Unsupported("a softmax along several loops at once")
        writer = Expressions(ctx)
        values = [writer.value(v) for v in node.values]
        values = _masked(ctx, values, monoid, frozenset(over))
        if over:
            if not monoid.commutative:
                raise Unsupported("a reduction in order within a tile")
            values = _reduced(ctx, values, monoid, kept, over)
        ctx.axes = tuple(a for a in ctx.axes if a in kept)
        old = [_read(ctx, s, dims) for s, dims in zip(node.stores, state)]
        new = _combined(ctx, monoid, old, values)
        for target, value, expr in zip(node.stores, new, node.values):
            store(ctx, target, value, expr.dtype)
    ctx.axes, ctx.conditions = before, conditions


def _loops_of(index: IndexExpr) -> frozenset[str]:
    return index.variables() if isinstance(index, Affine) else frozenset()


def _hide(ctx: Context, hidden: frozenset[str]) -> None:
    """Leave loops that the state has, but along which nothing changes it, out of the tile."""
    rest = frozenset(ctx.axes) - hidden
    if any(c.variables() & hidden and c.variables() & rest for c in ctx.conditions):
        raise Unsupported(
            "a test of which results a term belongs to, where all results are the same"
        )
    ctx.axes = tuple(a for a in ctx.axes if a not in hidden)
    ctx.conditions = tuple(c for c in ctx.conditions if not c.variables() & hidden)


def _update_memory(ctx: Context, node: Compute, monoid: Monoid) -> None:
    """Combine elements with what memory holds, as a reduction does that scatters."""
    writer = Expressions(ctx)
    values = [writer.value(v) for v in node.values]
    old = [
        writer.load(Load(tensor=s.target, indices=s.indices, dtype=v.dtype))
        for s, v in zip(node.stores, node.values)
    ]
    for target, new, expr in zip(node.stores, _combined(ctx, monoid, old, values), node.values):
        store(ctx, target, new, expr.dtype)


def scan_parts(node: Node) -> tuple[Compute, Compute, tuple[Affine, ...]] | None:
    """The update and the final of a scan that a loop's body is, and what is tested around both."""
    conditions: tuple[Affine, ...] = ()
    while isinstance(node, Guard) and node.orelse is None:
        conditions, node = (*conditions, *node.conditions), node.body
    if not isinstance(node, Block) or len(node.body) != 2:
        return None
    parts = []
    for child in node.body:
        if isinstance(child, Guard) and child.orelse is None:
            conditions, child = (*conditions, *child.conditions), child.body
        parts.append(child)
    first, second = parts
    if not isinstance(first, Compute) or not isinstance(second, Compute):
        return None
    is_scan = (first.phase, second.phase) == ("update", "final")
    if not is_scan or first.statement != second.statement:
        return None
    return first, second, tuple(dict.fromkeys(conditions))


def emit_scan(ctx: Context, update: Compute, final: Compute) -> None:
    """A scan along the innermost loop of the tile, from the state that tiles before it left."""
    monoid = update.monoid
    assert monoid is not None
    state = [_state_of(ctx, s) for s in update.stores]
    axis = ctx.axes[-1]
    dims = frozenset(ctx.axes)
    if any(axis in d for d in state):
        raise Unsupported("a scan whose state varies along the scanned loop")
    writer = Expressions(ctx)
    values = [writer.value(v) for v in update.values]
    values = _masked(ctx, values, monoid, frozenset({axis}))
    full = [ctx.spread(v, dims, t) for v, t in zip(values, monoid.dtypes)]
    named = [ctx.assign("element", v).text for v in full]
    given = named[0] if len(named) == 1 else f"({', '.join(named)})"
    scanned = [ctx.names.fresh("scanned") for _ in named]
    at = len(ctx.axes) - 1
    ctx.line(f"{', '.join(scanned)} = tl.associative_scan({given}, {at}, {combine_name(monoid)})")
    old = [_read(ctx, s, d) for s, d in zip(update.stores, state)]
    running = _combined(ctx, monoid, old, [Value(t, dims) for t in scanned])
    kept = {s.target: ctx.registers[s.target] for s in update.stores}
    for target, value, expr in zip(update.stores, running, update.values):
        name = ctx.assign("running", value).text
        before = kept[target.target]
        ctx.registers[target.target] = Register(
            expr.dtype, before.shape, name, ctx.axes, places=before.places
        )
    _store_all(ctx, final)
    ctx.registers.update(kept)
    if monoid.commutative:
        last = _reduced(ctx, [Value(t, dims) for t in named], monoid, dims - {axis}, (axis,))
    else:  # all that a reduction may put in any order is one element, and identities
        is_last = f"{ctx.affine(affine(axis)).text} == {ctx.sizes[axis] - 1}"
        ends = [
            Value(f"tl.where({is_last}, {t}, {literal(i.value, i.dtype)})", dims)
            for t, i in zip(scanned, monoid.identity)
        ]
        last = _reduced(ctx, ends, monoid, dims - {axis}, (axis,))
    ctx.axes = ctx.axes[:-1]
    old = [_read(ctx, s, d) for s, d in zip(update.stores, state)]
    for target, value, expr in zip(update.stores, _combined(ctx, monoid, old, last), update.values):
        store(ctx, target, value, expr.dtype)
    ctx.axes = (*ctx.axes, axis)


def _state_of(ctx: Context, target: Store) -> tuple[str, ...]:
    register = ctx.registers.get(target.target)
    if register is None:
        raise Unsupported(f"a reduction whose state is in memory ({target.target})")
    return register_dims(ctx, target.target, register, target.indices)


def _read(ctx: Context, target: Store, dims: tuple[str, ...]) -> Value:
    register = ctx.registers[target.target]
    ordered = tuple(a for a in ctx.axes if a in dims)
    text = register.name
    if ordered != dims:
        text = f"tl.permute({text}, {tuple(dims.index(a) for a in ordered)})"
    return Value(ctx.expanded(text, ordered), frozenset(dims))


def _masked(ctx: Context, values: list[Value], monoid: Monoid, over: frozenset[str]) -> list[Value]:
    """Identities in place of elements that a test leaves out.

    Tests on loops that the state has need none: what is computed there is never stored. Tests that
    no loop of the tile decides hold for the whole tile or for nothing of it.
    """
    axes = frozenset(ctx.axes)
    tests = tuple(c for c in ctx.conditions if c.variables() & over or not c.variables() & axes)
    mask = ctx.condition(tests)
    if not mask.text:
        return values
    named = ctx.assign("mask", mask)
    return [
        Value(f"tl.where({named.text}, {v.text}, {literal(i.value, i.dtype)})", v.dims | named.dims)
        for v, i in zip(values, monoid.identity)
    ]


def _reduced(
    ctx: Context,
    values: list[Value],
    monoid: Monoid,
    kept: frozenset[str],
    over: tuple[str, ...],
) -> list[Value]:
    """Elements combined along the loops ``over``; what is left has the dimensions ``kept``."""
    dims = kept | frozenset(over)
    full = [ctx.spread(v, dims, t) for v, t in zip(values, monoid.dtypes)]
    named = [ctx.assign("element", v) for v in full]
    function = combine_name(monoid)
    texts = [v.text for v in named]
    for axis in reversed(over):
        at = ctx.axes.index(axis)
        given = texts[0] if len(texts) == 1 else f"({', '.join(texts)})"
        results = [ctx.names.fresh("part") for _ in texts]
        ctx.line(f"{', '.join(results)} = tl.reduce({given}, {at}, {function})")
        texts = results
    return [Value(t, kept) for t in texts]


def _combined(ctx: Context, monoid: Monoid, old: list[Value], values: list[Value]) -> list[Value]:
    variables = {f"a{c}": v for c, v in enumerate(old)} | {
        f"b{c}": ctx.assign("value", v) if len(values) > 1 else v for c, v in enumerate(values)
    }
    writer = Expressions(ctx, variables)
    found = [writer.value(e) for e in monoid.combine]
    if len(found) > 1:
        found = [ctx.assign("state", v) for v in found]
    return found


def combine_function(monoid: Monoid, functions: dict[str, str]) -> str:
    """The source of a monoid's function, which takes two states and gives one; what it calls is
    added to ``functions``."""
    count = len(monoid.combine)
    ctx = Context(tensors={}, pointers={}, names=Names(), functions=functions)
    given = [f"{side}{c}" for side in "ab" for c in range(count)]
    writer = Expressions(ctx, {name: Value(name) for name in given})
    results = [writer.value(e).text for e in monoid.combine]
    lines = [
        "@triton.jit",
        f"def {combine_name(monoid)}({', '.join(given)}):",
        *ctx.lines,
        f"    return {', '.join(results)}",
    ]
    return "\n".join(lines)
