"""Affine expressions as code: hoisted scalar arithmetic, vectors of indices, conditions."""

from __future__ import annotations

from nestor.codegen.llvm.builder import Val, bool_val, int_val, vector_literal
from nestor.codegen.llvm.context import IN_BODY, LANE, Context
from nestor.ir.affine import Affine, Atom, FloorDiv

I32_LIMIT = 1 << 30


def emit_at(ctx: Context, depth: int, rhs: str, ty: str = "i64") -> Val:
    """A pure scalar instruction, in the head of scope ``depth`` if its operands are there."""
    if depth >= IN_BODY:
        return ctx.fb.emit(rhs, ty)
    return ctx.fb.emit_at(depth, rhs, ty)


def scalar_affine(ctx: Context, a: Affine) -> Val:
    """The i64 value of a resolved, lane-invariant affine."""
    return scalar_with_depth(ctx, a)[0]


def scalar_with_depth(ctx: Context, a: Affine) -> tuple[Val, int]:
    """The value and the depth of the scope where it is available.

    Terms are added outermost variable first, each in the head of its own scope, so that inner
    loops only add what changes in them.
    """
    if a.is_const:
        return int_val(a.const), 0
    parts = [(atom_value(ctx, atom), c) for atom, c in a.terms]
    parts.sort(key=lambda p: p[0][1])
    total: Val | None = None
    depth = 0
    for (value, d), c in parts:
        depth = max(depth, d)
        term = value if c == 1 else emit_at(ctx, d, f"mul nsw i64 {value.text}, {c}")
        total = (
            term if total is None else emit_at(ctx, depth, f"add nsw i64 {total.text}, {term.text}")
        )
    assert total is not None
    if a.const:
        total = emit_at(ctx, depth, f"add nsw i64 {total.text}, {a.const}")
    return total, depth


def atom_value(ctx: Context, atom: Atom) -> tuple[Val, int]:
    """An atom's i64 value and depth."""
    if isinstance(atom, str):
        var = ctx.variables[atom]
        return var.value, var.depth
    num, depth = scalar_with_depth(ctx, atom.num)
    low, _ = atom.num.bounds(ctx.ranges)
    is_div = isinstance(atom, FloorDiv)
    if low is not None and low >= 0:
        return emit_at(
            ctx, depth, f"{'udiv' if is_div else 'urem'} i64 {num.text}, {atom.den}"
        ), depth
    remainder = emit_at(ctx, depth, f"srem i64 {num.text}, {atom.den}")
    negative = emit_at(ctx, depth, f"icmp slt i64 {remainder.text}, 0", "i1")
    if is_div:
        quotient = emit_at(ctx, depth, f"sdiv i64 {num.text}, {atom.den}")
        down = emit_at(ctx, depth, f"sext i1 {negative.text} to i64")
        return emit_at(ctx, depth, f"add nsw i64 {quotient.text}, {down.text}"), depth
    up = emit_at(ctx, depth, f"select i1 {negative.text}, i64 {atom.den}, i64 0")
    return emit_at(ctx, depth, f"add nsw i64 {remainder.text}, {up.text}"), depth


def split_varying(ctx: Context, a: Affine) -> tuple[Affine, Affine]:
    """``a = uniform + varying``: terms equal in all lanes with the constant, and the others."""
    uniform: list[tuple[Atom, int]] = []
    varying: list[tuple[Atom, int]] = []
    for atom, c in a.terms:
        names = {atom} if isinstance(atom, str) else atom.num.variables()
        (uniform if ctx.varying.isdisjoint(names) else varying).append((atom, c))
    return Affine(tuple(uniform), a.const), Affine(tuple(varying))


def lane_pattern(ctx: Context, varying: Affine) -> tuple[int, ...] | None:
    """The values of ``varying`` in each lane if only the lane's number decides them."""
    if varying.variables() - {LANE}:
        return None
    return tuple(int(varying.evaluate({LANE: lane})) for lane in range(ctx.lanes))


def fits_i32(ctx: Context, a: Affine) -> bool:
    """True if ``a`` and everything computed on the way provably fits in 32 bits."""
    total = abs(a.const)
    for atom, c in a.terms:
        if not isinstance(atom, str) and not fits_i32(ctx, atom.num):
            return False
        low, high = Affine(((atom, 1),)).bounds(ctx.ranges)
        if low is None or high is None:
            return False
        total += abs(c) * max(abs(low), abs(high))
    return total < I32_LIMIT


def vector_affine(ctx: Context, a: Affine, ty: str | None = None) -> Val:
    """A resolved affine in every lane, as ``<lanes x ty>`` (i32 where it provably fits, else i64).

    With ``ty`` given the value is that of i64 arithmetic converted to ``ty``.
    """
    fb = ctx.fb
    narrow = fits_i32(ctx, a)
    work = ty if ty in ("i32", "i64") and (ty == "i64" or narrow) else "i32" if narrow else "i64"
    uniform, varying = split_varying(ctx, a)
    base = scalar_affine(ctx, uniform)
    if work == "i32" and not base.literal:
        base = fb.convert("trunc", base, "i32")
    elif base.literal:
        base = int_val(int(base.text), work)
    total = None if base.literal and base.text == "0" else fb.broadcast(base, ctx.lanes)
    pattern = lane_pattern(ctx, varying)
    if pattern is not None:
        literal = vector_literal([str(v) for v in pattern], work)
        total = literal if total is None else fb.op("add", total, literal)
    else:
        for atom, c in varying.terms:
            term = _vector_atom(ctx, atom, work)
            if c != 1:
                term = fb.op("mul", term, int_val(c, work))
            total = term if total is None else fb.op("add", total, term)
    assert total is not None
    return total if ty is None or ty == work else resize_int(ctx, total, ty, signed=True)


def resize_int(ctx: Context, value: Val, ty: str, *, signed: bool) -> Val:
    """An integer in another width."""
    have, want = int(value.ty[1:]), int(ty[1:])
    if have == want:
        return value
    if value.literal:
        return int_val(int(value.text), ty)
    opcode = "trunc" if want < have else "sext" if signed else "zext"
    return ctx.fb.convert(opcode, value, ty)


def _vector_atom(ctx: Context, atom: Atom, work: str) -> Val:
    fb = ctx.fb
    if isinstance(atom, str):
        if atom == LANE:
            return vector_literal([str(i) for i in range(ctx.lanes)], work)
        return resize_int(ctx, ctx.vectors[atom], work, signed=True)
    num = resize_int(ctx, vector_affine(ctx, atom.num), work, signed=True)
    low, _ = atom.num.bounds(ctx.ranges)
    den = int_val(atom.den, work)
    is_div = isinstance(atom, FloorDiv)
    if low is not None and low >= 0:
        return fb.op("udiv" if is_div else "urem", num, den)
    remainder = fb.op("srem", num, den)
    negative = fb.compare("icmp slt", remainder, int_val(0, work))
    if is_div:
        return fb.op("add", fb.op("sdiv", num, den), fb.convert("sext", negative, work))
    return fb.op("add", remainder, fb.select(negative, den, int_val(0, work)))


def condition(ctx: Context, conditions: tuple[Affine, ...]) -> tuple[Val, Val | None]:
    """Conjunction of ``affine ≥ 0`` as (scalar part, lane part); None: no lane part.

    What the ranges decide is left out; a contradiction makes the scalar part ``false``.
    """
    scalar: Val = bool_val(True)
    lanes: Val | None = None
    for raw in conditions:
        a = ctx.resolve(raw)
        low, high = a.bounds(ctx.ranges)
        if low is not None and low >= 0:
            continue
        if high is not None and high < 0:
            return bool_val(False), None
        if ctx.is_varying(a):
            test = _vector_condition(ctx, a)
            lanes = test if lanes is None else ctx.fb.op("and", lanes, test)
        else:
            value, depth = scalar_with_depth(ctx, a)
            test = emit_at(ctx, depth, f"icmp sge i64 {value.text}, 0", "i1")
            scalar = test if scalar.literal else ctx.fb.op("and", scalar, test)
    return scalar, lanes


def first_iteration(ctx: Context, conditions: tuple[Affine, ...]) -> Val | None:
    """Whether the conditions that differ between lanes hold in the vector loop's first iteration.

    None where they may hold in a later iteration only: unless none grows with the loop's index.
    """
    if ctx.vector is None:
        return None
    index, low = ctx.vector.index, ctx.vector.low
    total = bool_val(True)
    for raw in conditions:
        if not ctx.is_varying(ctx.resolve(raw)):
            continue
        falls = raw.coefficient(index) <= 0 and all(
            a == index or isinstance(a, str) or index not in a.num.variables() for a, _ in raw.terms
        )
        first = ctx.resolve(raw.substitute({index: low}))
        if not falls or ctx.is_varying(first):
            return None
        least, most = first.bounds(ctx.ranges)
        if least is not None and least >= 0:
            continue
        if most is not None and most < 0:
            return bool_val(False)
        value, depth = scalar_with_depth(ctx, first)
        test = emit_at(ctx, depth, f"icmp sge i64 {value.text}, 0", "i1")
        total = test if total.literal else ctx.fb.op("and", total, test)
    return total


def _vector_condition(ctx: Context, a: Affine) -> Val:
    """``a ≥ 0`` in each lane; a broadcast scalar against constants when lanes form a pattern."""
    uniform, varying = split_varying(ctx, a)
    pattern = lane_pattern(ctx, varying)
    if pattern is None:
        value = vector_affine(ctx, a)
        return ctx.fb.compare("icmp sge", value, int_val(0, value.ty))
    work = "i32" if fits_i32(ctx, a) else "i64"
    base = resize_int(ctx, scalar_affine(ctx, uniform), work, signed=True)
    limits = vector_literal([str(-v) for v in pattern], work)
    return ctx.fb.compare("icmp sge", base, limits)
