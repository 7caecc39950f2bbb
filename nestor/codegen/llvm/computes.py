"""One ``Compute`` as code: evaluate, combine with the state, store."""

from __future__ import annotations

from nestor.codegen.llvm.addressing import Location
from nestor.codegen.llvm.builder import Val
from nestor.codegen.llvm.context import LANE, Context
from nestor.codegen.llvm.expressions import Expressions
from nestor.codegen.llvm.memory import load, store
from nestor.ir.affine import Affine
from nestor.ir.expr import Binary, Var
from nestor.ir.loopnest import Compute, Loop, Store
from nestor.ir.monoid import Monoid
from nestor.ir.types import DType


def emit_compute(ctx: Context, compute: Compute) -> None:
    """All values first, then the stores."""
    if ctx.vector is not None and _conflicts_by_index(compute):
        serialize_lanes(ctx, compute)
        return
    ev = Expressions(ctx)
    places = [ev.location(s.target, s.indices) for s in compute.stores]
    if compute.monoid is None:
        values = [ev.evaluate(v) for v in compute.values]
        _store_all(ctx, compute, places, values)
        return
    known = [p for p in places if p is not None]
    if ctx.vector is not None and any(p.offsets is None for p in known):
        if any(p.offsets is not None for p in known):
            serialize_lanes(ctx, compute)
            return
        values = reduce_lanes(ctx, compute.monoid, [ev.evaluate(v) for v in compute.values])
    elif any(_coincide(p) for p in known):
        serialize_lanes(ctx, compute)
        return
    else:
        fused = _fused_sum(ctx, ev, compute, known)
        if fused is not None:
            _store_all(ctx, compute, places, [fused])
            return
        values = [ev.evaluate(v) for v in compute.values]
    with_state(ctx, compute, places, values)


def with_state(
    ctx: Context, compute: Compute, places: list[Location | None], values: list[Val]
) -> None:
    """``stores = combine(stores, values)``."""
    assert compute.monoid is not None
    if any(p is None for p in places):
        return
    dtypes = compute.monoid.dtypes
    states = [load(ctx, p, d) for p, d in zip(places, dtypes, strict=True) if p is not None]
    _store_all(ctx, compute, places, combine(ctx, compute.monoid, states, values))


def combine(ctx: Context, monoid: Monoid, left: list[Val], right: list[Val]) -> list[Val]:
    """The monoid's combination of two states."""
    names = {f"a{i}": v for i, v in enumerate(left)}
    names.update({f"b{i}": v for i, v in enumerate(right)})
    ev = Expressions(ctx, names)
    return [ev.evaluate(e) for e in monoid.combine]


def _store_all(
    ctx: Context, compute: Compute, places: list[Location | None], values: list[Val]
) -> None:
    dtypes = [v.dtype for v in compute.values]
    if compute.monoid is not None:
        dtypes = list(compute.monoid.dtypes)
    for place, value, dtype in zip(places, values, dtypes, strict=True):
        if place is not None:
            store(ctx, place, value, dtype)


def _fused_sum(
    ctx: Context, ev: Expressions, compute: Compute, places: list[Location]
) -> Val | None:
    """``state + a*b`` as one fused operation, if contraction is allowed and it has that form."""
    value = compute.values[0]
    if (
        not ctx.info.fp_contract
        or len(places) != 1
        or compute.monoid is None
        or not is_sum(compute.monoid)
        or not isinstance(value, Binary)
        or value.op != "mul"
        or value.dtype not in (DType.f32, DType.f64)
    ):
        return None
    a, b = ev.evaluate(value.a), ev.evaluate(value.b)
    return ev.ops.fma(a, b, load(ctx, places[0], value.dtype))


def is_sum(monoid: Monoid) -> bool:
    """True if combining is one addition."""
    if len(monoid.combine) != 1:
        return False
    e = monoid.combine[0]
    if not isinstance(e, Binary) or e.op != "add":
        return False
    return isinstance(e.a, Var) and isinstance(e.b, Var) and {e.a.name, e.b.name} == {"a0", "b0"}


def reduce_lanes(ctx: Context, monoid: Monoid, values: list[Val]) -> list[Val]:
    """Combine the lanes of each component into one scalar state.

    A tree of log₂ steps: halves against each other if the monoid commutes, else neighbours, which
    keeps the order of indices. Lanes not in use count as the identity.
    """
    fb, lanes = ctx.fb, ctx.lanes
    ev = Expressions(ctx)
    mask = ctx.full_mask()
    states = [fb.broadcast(v, lanes) for v in values]
    if mask is not None:
        identity = [ev.evaluate(e) for e in monoid.identity]
        states = [fb.select(mask, s, i) for s, i in zip(states, identity, strict=True)]
    while lanes > 1:
        half = lanes // 2
        if monoid.commutative:
            first, second = list(range(half)), list(range(half, lanes))
        else:
            first, second = list(range(0, lanes, 2)), list(range(1, lanes, 2))
        if half == 1:
            left = [fb.extract(s, 0) for s in states]
            right = [fb.extract(s, 1) for s in states]
        else:
            left = [fb.shuffle(s, first) for s in states]
            right = [fb.shuffle(s, second) for s in states]
        states = combine(ctx, monoid, left, right)
        lanes = half
    return states


def lane_merge(ctx: Context, loop: Loop) -> Compute | None:
    """What a vector loop merges into one state, if the order does not matter: whole vectors may
    then be combined first, and lanes of the last one only."""
    compute = loop.body
    if not isinstance(compute, Compute) or compute.phase != "merge" or ctx.mask is not None:
        return None
    assert compute.monoid is not None
    indices = [i for s in compute.stores for i in s.indices]
    fixed = all(isinstance(i, Affine) and loop.index not in i.variables() for i in indices)
    per_lane = any(
        s.target in ctx.buffers and ctx.buffers[s.target].per_lane for s in compute.stores
    )
    return compute if fixed and compute.monoid.commutative and not per_lane else None


def merge_vector(ctx: Context, compute: Compute, states: list[list[Val]], *, last: bool) -> None:
    """Take one vector of partial states to ``states``; with the last, combine them all."""
    assert compute.monoid is not None
    ev = Expressions(ctx)
    states.append([ctx.fb.broadcast(ev.evaluate(v), ctx.lanes) for v in compute.values])
    if not last:
        return
    while len(states) > 1:
        pairs = zip(states[0::2], states[1::2])
        merged = [combine(ctx, compute.monoid, a, b) for a, b in pairs]
        states[:] = merged + (states[-1:] if len(states) % 2 else [])
    places = [Expressions(ctx).location(s.target, s.indices) for s in compute.stores]
    with_state(ctx, compute, places, reduce_lanes(ctx, compute.monoid, states[0]))


def merge_tree(ctx: Context, compute: Compute, index: str, count: int) -> None:
    """A merge over ``index`` inside a vector loop: partial states as a tree of neighbours."""
    assert compute.monoid is not None
    states: list[list[Val]] = []
    for position in range(count):
        ctx.env[index] = Affine((), position)
        ev = Expressions(ctx)
        states.append([ev.evaluate(v) for v in compute.values])
    del ctx.env[index]
    while len(states) > 1:
        pairs = zip(states[0::2], states[1::2])
        merged = [combine(ctx, compute.monoid, a, b) for a, b in pairs]
        states = merged + (states[-1:] if len(states) % 2 else [])
    places = [Expressions(ctx).location(s.target, s.indices) for s in compute.stores]
    with_state(ctx, compute, places, states[0])


def _conflicts_by_index(compute: Compute) -> bool:
    """An accumulation whose target depends on data: lanes may meet, so they take turns."""
    return compute.monoid is not None and any(_is_scatter(s) for s in compute.stores)


def _is_scatter(s: Store) -> bool:
    return any(not isinstance(i, Affine) for i in s.indices)


def _coincide(place: Location) -> bool:
    """True if two lanes may share an element."""
    if place.step is not None:
        return False  # their indices differ, and so do the elements
    if isinstance(place.offsets, tuple):
        return len(set(place.offsets)) != len(place.offsets)
    return place.offsets is not None


def serialize_lanes(ctx: Context, compute: Compute) -> None:
    """Run a compute for one lane after the other, as scalars."""
    assert ctx.vector is not None
    vector, mask, env, vectors = ctx.vector, ctx.mask, ctx.env, ctx.vectors
    varying = ctx.varying
    for lane in range(vector.active):
        position = Affine((), lane)
        test = None if mask is None else ctx.fb.extract(mask, lane)
        ctx.vector, ctx.mask, ctx.varying = None, None, {LANE}
        ctx.env = {k: v.substitute({LANE: position}) for k, v in env.items()}
        ctx.env[LANE] = position
        if test is None:
            emit_compute(ctx, compute)
        else:
            _branch(ctx, test, compute)
        ctx.vector, ctx.mask, ctx.env = vector, mask, env
        ctx.vectors, ctx.varying = vectors, varying


def _branch(ctx: Context, test: Val, compute: Compute) -> None:
    fb = ctx.fb
    then, after = fb.fresh("lane"), fb.fresh("next")
    fb.line(f"br i1 {test.text}, label %{then}, label %{after}")
    fb.start_block(then)
    fb.push_scope()
    emit_compute(ctx, compute)
    fb.line(f"br label %{after}")
    fb.pop_scope()
    fb.start_block(after)
