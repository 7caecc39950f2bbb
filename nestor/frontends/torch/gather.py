"""Read a value at indices that are data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from nestor.errors import Unsupported
from nestor.frontends.torch.builder import Builder, Space, lower_bound
from nestor.frontends.torch.value import Value, placeholder
from nestor.ir.affine import Affine, Atom, FloorDiv, affine
from nestor.ir.expr import Binary, Cast, Expr, Index, IndexExpr, Load, Select, binary, const
from nestor.ir.program import Domain, IndexRange
from nestor.ir.types import DType

AnyIndex = Affine | Expr


def gatherable(ctx: Builder, value: Value) -> Value:
    """``value`` with one component a dimension, as a load that may be read at any index."""
    if any(len(d) > 1 for d in value.dims):
        value = ctx.flat_all(value)
    load = value.elem
    if isinstance(load, Load) and not load.predicate:
        if all(isinstance(i, Affine) for i in load.indices):
            return value
    return ctx.flat_all(ctx.materialise(value))


def read_at(value: Value, indices: Sequence[AnyIndex], space: Space) -> Expr:
    """The element of a ``gatherable`` value at ``indices``, one for each dimension."""
    load = value.elem
    assert isinstance(load, Load)
    where = {placeholder(k): i for k, i in enumerate(indices)}
    affine_part = {k: i for k, i in where.items() if isinstance(i, Affine)}
    data = {k: i for k, i in where.items() if not isinstance(i, Affine)}
    out: list[IndexExpr] = []
    for index in load.indices:
        assert isinstance(index, Affine)
        if index.variables() & data.keys():
            out.append(_expression(index, affine_part, data))
        else:
            out.append(index.substitute(affine_part).simplify(space.ranges))
    return replace(load, indices=tuple(out))


def _expression(a: Affine, known: Mapping[str, Affine], data: Mapping[str, Expr]) -> Expr:
    """An affine expression with some variables replaced by data."""
    linear = Affine(tuple((x, c) for x, c in a.terms if not _mentions(x, data)), a.const)
    total: Expr | None = None
    rest = linear.substitute(known)
    if rest.terms or rest.const:
        total = Index(value=rest)
    for atom, c in a.terms:
        if not _mentions(atom, data):
            continue
        if isinstance(atom, str):
            part = data[atom]
            if part.dtype is not DType.i64:
                part = Cast(x=part, dtype=DType.i64)
        else:
            op = "floordiv" if isinstance(atom, FloorDiv) else "mod"
            inner = _expression(atom.num, known, data)
            part = binary(op, inner, const(atom.den, DType.i64))
        if c != 1:
            part = binary("mul", part, const(c, DType.i64))
        total = part if total is None else Binary(op="add", a=total, b=part)
    assert total is not None
    return total


def _mentions(atom: Atom, data: Mapping[str, Expr]) -> bool:
    if isinstance(atom, str):
        return atom in data
    return bool(atom.num.variables() & data.keys())


def index_of(ctx: Builder, index: Expr, extent: Affine, space: Space, *, wraps: bool) -> AnyIndex:
    """An index: affine where it can be; with ``wraps`` negative ones count from the end."""
    if isinstance(index, Index):
        domain = Domain(ranges=_ranges(space))
        for a in (index.value, index.value + extent) if wraps else (index.value,):
            if _is_inside(ctx, a, extent, domain, space):
                return a
    if not index.dtype.is_int:
        raise Unsupported(f"an index of type {index.dtype}; use integers")
    if not wraps:
        return index
    size = Index(value=extent, dtype=index.dtype)
    wrapped = binary("add", index, size)
    return Select(condition=binary("lt", index, const(0, index.dtype)), a=wrapped, b=index)


def _is_inside(ctx: Builder, a: Affine, extent: Affine, domain: Domain, space: Space) -> bool:
    """Whether ``0 ≤ a < extent`` everywhere; symbols that must be equal for it are merged.

    ``x[arange(batch)]`` reads a tensor whose own batch size is another symbol: taking the two for
    equal keeps the access affine, and the call checks it.
    """
    low = lower_bound(a, domain, space.ranges)
    if low is None or low < 0:
        return False
    for r in reversed(domain.ranges):
        if a.coefficient(r.name) > 0:
            a = a.substitute({r.name: r.upper - 1})
    slack = extent - 1 - a
    least = lower_bound(slack, domain, space.ranges)
    if least is not None and least >= 0:
        return True
    return slack.const == 0 and not a.is_const and ctx.equal.equate(extent, a + 1)


def _ranges(space: Space) -> tuple[IndexRange, ...]:
    out = []
    for dim, group in zip(space.dims, space.where):
        for extent, index in zip(dim, group):
            if index.terms:
                out.append(IndexRange(name=str(index), lower=affine(0), upper=extent))
    return tuple(out)
