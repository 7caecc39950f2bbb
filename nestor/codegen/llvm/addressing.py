"""Where an access lies: a pointer that is equal in all lanes, and how the lanes differ from it.

Accesses are analysed once (``AccessPlan``) and then placed many times, since a register tile
repeats each of them with other constants. Address arithmetic is put into the heads of the loops
whose indices it depends on, so that an inner loop adds only what changes in it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd

from nestor.codegen.llvm.builder import Val, int_val
from nestor.codegen.llvm.context import IN_BODY, LANE, Context, Storage
from nestor.codegen.llvm.indexing import (
    emit_at,
    lane_pattern,
    scalar_with_depth,
    split_varying,
    vector_affine,
)
from nestor.ir.affine import Affine, Interval, affine_sum


@dataclass(frozen=True, slots=True)
class Location:
    """Where the lanes of an access lie.

    Attributes:
        storage: the memory.
        pointer: address of the first lane (of every lane, if ``offsets`` is None).
        offsets: per lane, in elements from ``pointer``: constants, or a vector of integers; None
            if all lanes coincide.
        inside: True if all lanes, unused ones too, provably lie in the storage; only decided where
            some lanes are not to be touched.
        inner_start: for a private buffer, the constant start in its last dimension, if known.
        step: with a vector of offsets, the run-time distance of neighbouring lanes [elements], if
            they are at equal distances; it is available in the function's head.
        is_fixed: True if no iteration of the vector loop around moves it.
        row: what ``pointer`` is a constant distance from, and that distance [elements].
        grain: the distance of ``pointer`` from the storage's start is a multiple of it [elements];
            only decided for what is written past the caches, else 1.
        room: how many elements of the storage surely lie before the first lane, and behind the
            last; only decided for lanes at a constant distance greater than 1, else none.
    """

    storage: Storage
    pointer: Val
    offsets: tuple[int, ...] | Val | None
    inside: bool
    inner_start: int | None = None
    step: Val | None = None
    is_fixed: bool = False
    row: tuple[Val, int] | None = None
    grain: int = 1
    room: tuple[int, int] = (0, 0)

    @property
    def is_contiguous(self) -> bool:
        """Lane ``l`` is ``l`` elements after the first."""
        o = self.offsets
        return isinstance(o, tuple) and o is stride_pattern(1, len(o))

    @property
    def is_reversed(self) -> bool:
        """Lane ``l`` is ``l`` elements before the first."""
        o = self.offsets
        return isinstance(o, tuple) and o is stride_pattern(-1, len(o))


@functools.cache
def stride_pattern(stride: int, lanes: int) -> tuple[int, ...]:
    """Offsets of lanes at equal distances; one object for each pattern."""
    return tuple(stride * lane for lane in range(lanes))


@dataclass(frozen=True, slots=True)
class AccessPlan:
    """An access before it is placed.

    Attributes:
        storage: the memory.
        linear: the element offset over the nest's loop indices, as far as strides are constant.
        symbolic: (index, constant factor, run-time stride) of the other dimensions.
        inner: the index of the last dimension.
        is_plain: ``linear`` has no division and ``symbolic`` is empty.
        names: the variables of all indices.
    """

    storage: Storage
    linear: Affine
    symbolic: tuple[tuple[Affine, int, Val], ...]
    inner: Affine
    is_plain: bool
    names: frozenset[str]

    def is_fixed(self, ctx: Context) -> bool:
        """True if the access is the same in all iterations of the vector loop around."""
        if ctx.vector is None or ctx.vector.index in self.names:
            return False
        return not any(n.startswith("%") for n in self.names)  # a data-dependent index


def plan_access(storage: Storage, indices: list[Affine]) -> AccessPlan:
    """Analyse an access by its *physical* indices."""
    constant: list[tuple[Affine, int]] = []
    symbolic: list[tuple[Affine, int, Val]] = []
    for index, (factor, value) in zip(indices, storage.strides, strict=True):
        if value is None:
            constant.append((index, factor))
        else:
            symbolic.append((index, factor, value))
    linear = affine_sum(constant)
    is_plain = not symbolic and all(isinstance(a, str) for a, _ in linear.terms)
    inner = indices[-1] if indices else Affine()
    names = frozenset[str]().union(*(i.variables() for i in indices))
    return AccessPlan(storage, linear, tuple(symbolic), inner, is_plain, names)


def locate(ctx: Context, plan: AccessPlan) -> Location:
    """Place an access here."""
    if plan.is_plain:
        found = _locate_plain(ctx, plan)
        if found is not None:
            return found
    linear = ctx.resolve(plan.linear)
    symbolic = [(ctx.resolve(i), factor, stride) for i, factor, stride in plan.symbolic]
    uniform, varying = split_varying(ctx, linear)
    offsets: tuple[int, ...] | Val | None = None
    start = 0
    symbolic_varies = any(ctx.is_varying(i) for i, _, _ in symbolic)
    step: Val | None = None
    if symbolic_varies:
        step = _symbolic_step(ctx, varying, symbolic)
        offsets, symbolic = _symbolic_offsets(ctx, varying, symbolic)
    elif varying.terms:
        pattern = lane_pattern(ctx, varying)
        if pattern is None:
            offsets = vector_affine(ctx, varying)
        else:
            start = pattern[0]
            offsets = _canonical(tuple(p - start for p in pattern))
    base = _pointer(ctx, plan.storage, uniform, symbolic)
    const = uniform.const + start
    pointer = _step(ctx, plan.storage, base, int_val(const), IN_BODY) if const else base
    known = not symbolic and not isinstance(offsets, Val)
    inside = known and _is_inside(ctx, plan.storage, linear)
    start_inside = _inner_start(ctx, plan)
    fixed = plan.is_fixed(ctx)
    row = (base, const)
    grain = 1
    if plan.storage.root in ctx.streamed:
        parts = [c * factor for i, factor, _ in symbolic for c in (i.const, *_factors(i))]
        grain = gcd(const, *_factors(uniform), *parts)
    room = _room(ctx, plan.storage, linear, offsets) if known else (0, 0)
    return Location(
        plan.storage, pointer, offsets, inside, start_inside, step, fixed, row, grain, room
    )


def _factors(a: Affine) -> list[int]:
    return [c for _, c in a.terms]


def _canonical(offsets: tuple[int, ...]) -> tuple[int, ...] | None:
    """None if all lanes coincide; the shared object if they are at equal distances."""
    if not any(offsets):
        return None
    regular = stride_pattern(offsets[1], len(offsets))
    return regular if offsets == regular else offsets


def _locate_plain(ctx: Context, plan: AccessPlan) -> Location | None:
    """The common case: a sum of indices. None if an index means more than a number or a lane."""
    env = ctx.env
    const, stride = plan.linear.const, 0
    terms: list[tuple[str, int]] = []
    for atom, c in plan.linear.terms:
        value = env.get(atom)  # type: ignore[arg-type]
        if value is None:
            if atom in ctx.varying:
                return None
            terms.append((atom, c))  # type: ignore[arg-type]
        elif not value.terms:
            const += c * value.const
        elif len(value.terms) == 1 and value.terms[0][0] == LANE:
            stride += c * value.terms[0][1]
            const += c * value.const
        else:
            return None
    base = _plain_pointer(ctx, plan.storage, tuple(terms))
    pointer = _step(ctx, plan.storage, base, int_val(const), IN_BODY) if const else base
    offsets = stride_pattern(stride, ctx.lanes) if stride else None
    if ctx.condition is None and ctx.full_mask() is None:
        streamed = plan.storage.root in ctx.streamed
        grain = gcd(const, *(c for _, c in terms)) if streamed else 1
        room = _room(ctx, plan.storage, plan.linear, offsets)
        return Location(
            plan.storage, pointer, offsets, True, row=(base, const), grain=grain, room=room
        )
    inside = _is_inside(ctx, plan.storage, ctx.resolve(plan.linear))
    start = _inner_start(ctx, plan)
    return Location(plan.storage, pointer, offsets, inside, start, None, plan.is_fixed(ctx))


def _room(
    ctx: Context, storage: Storage, linear: Affine, offsets: tuple[int, ...] | Val | None
) -> tuple[int, int]:
    """Elements that surely lie before the first lane and behind the last."""
    if not isinstance(offsets, tuple) or offsets[1] <= 1 or storage.size is None:
        return 0, 0
    low, high = ctx.resolve(linear).bounds(_with_all_lanes(ctx))
    if low is None or high is None:
        return 0, 0
    return max(0, low), max(0, storage.size - 1 - high)


def _plain_pointer(ctx: Context, storage: Storage, terms: tuple[tuple[str, int], ...]) -> Val:
    """The address of a sum of scalar indices, remembered where it is available."""
    if not terms:
        return storage.pointer
    depth = max(ctx.variables[name].depth for name, _ in terms)
    if depth >= IN_BODY:
        return _pointer(ctx, storage, Affine(terms), [])
    known = ctx.fb.scopes[depth].pointers
    key = (storage.pointer.text, terms)
    found = known.get(key)
    if found is None:
        found = known[key] = _pointer(ctx, storage, Affine(terms), [])
    return found


def _inner_start(ctx: Context, plan: AccessPlan) -> int | None:
    if not plan.storage.private:
        return None
    inner = ctx.resolve(plan.inner)
    if inner.coefficient(LANE) == 1 and len(inner.terms) == 1:
        return inner.const
    return inner.const if inner.is_const else None


def _with_all_lanes(ctx: Context) -> Mapping[str, Interval]:
    """The ranges of all names, of the lanes with unused ones."""
    if ctx.vector is None or ctx.vector.active == ctx.vector.lanes:
        return ctx.ranges
    return {**ctx.ranges, LANE: (0, ctx.vector.lanes - 1)}


def _is_inside(ctx: Context, storage: Storage, linear: Affine) -> bool:
    if storage.size is None:
        return False
    low, high = linear.bounds(_with_all_lanes(ctx))
    return low is not None and high is not None and low >= 0 and high < storage.size


def _symbolic_offsets(
    ctx: Context, varying: Affine, symbolic: list[tuple[Affine, int, Val]]
) -> tuple[Val, list[tuple[Affine, int, Val]]]:
    """Lane offsets with run-time strides, in i64; the uniform parts stay for the pointer."""
    fb = ctx.fb
    total = vector_affine(ctx, varying, "i64") if varying.terms else None
    rest: list[tuple[Affine, int, Val]] = []
    for index, factor, stride in symbolic:
        uniform, part = split_varying(ctx, index)
        rest.append((uniform, factor, stride))
        if part.terms:
            term = fb.op("mul", vector_affine(ctx, part * factor, "i64"), stride)
            total = term if total is None else fb.op("add", total, term)
    assert total is not None
    return total, rest


def _symbolic_step(
    ctx: Context, varying: Affine, symbolic: list[tuple[Affine, int, Val]]
) -> Val | None:
    """The run-time distance of neighbouring lanes; None if it is not the same for all."""
    if varying.variables() - {LANE} or any(a != LANE for a, _ in varying.terms):
        return None
    total = int_val(varying.coefficient(LANE))
    for index, factor, stride in symbolic:
        part = split_varying(ctx, index)[1]
        if any(a != LANE for a, _ in part.terms):
            return None
        scale = part.coefficient(LANE) * factor
        if scale:
            term = emit_at(ctx, 0, f"mul nsw i64 {stride.text}, {scale}")
            total = emit_at(ctx, 0, f"add nsw i64 {total.text}, {term.text}")
    return total


def _pointer(
    ctx: Context,
    storage: Storage,
    uniform: Affine,
    symbolic: list[tuple[Affine, int, Val]],
) -> Val:
    """The address but for its constant part, each loop's part added in that loop's head."""
    terms: list[tuple[int, Val]] = []
    for atom, c in uniform.terms:
        value, depth = scalar_with_depth(ctx, Affine(((atom, c),)))
        terms.append((depth, value))
    for index, factor, stride in symbolic:
        for atom, c in index.terms:
            value, depth = scalar_with_depth(ctx, Affine(((atom, c * factor),)))
            product = emit_at(ctx, depth, f"mul nsw i64 {value.text}, {stride.text}")
            terms.append((depth, product))
        if index.const:
            terms.append((0, emit_at(ctx, 0, f"mul nsw i64 {stride.text}, {index.const * factor}")))
    terms.sort(key=lambda t: t[0])
    pointer = storage.pointer
    at = 0
    while at < len(terms):
        depth, total = terms[at]
        at += 1
        while at < len(terms) and terms[at][0] == depth:
            total = emit_at(ctx, depth, f"add nsw i64 {total.text}, {terms[at][1].text}")
            at += 1
        pointer = _step(ctx, storage, pointer, total, depth)
    return pointer


def _step(ctx: Context, storage: Storage, pointer: Val, offset: Val, depth: int) -> Val:
    rhs = f"getelementptr {storage.ty}, ptr {pointer.text}, i64 {offset.text}"
    return emit_at(ctx, depth, rhs, "ptr")
