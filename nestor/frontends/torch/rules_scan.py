"""Scans: running combinations along a dimension."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nestor.frontends.torch import views
from nestor.frontends.torch.builder import Space, write_of
from nestor.frontends.torch.context import Context, cast, select
from nestor.frontends.torch.dtypes import compute_type
from nestor.frontends.torch.registry import NoRule, lower
from nestor.frontends.torch.rules_reduce import state
from nestor.frontends.torch.value import Value, of_tensor
from nestor.ir.expr import Expr, Index, Var, binary, const, highest, lowest, unary
from nestor.ir.monoid import Monoid, prod_of, sum_of
from nestor.ir.program import Reduction
from nestor.ir.types import DType

_SOURCE = "ATen/native/ReduceOps.cpp"


def scan(
    ctx: Context,
    x: Value,
    axis: int,
    monoid: Monoid,
    elements: Callable[[Expr, Space], tuple[Expr, ...]],
    final: tuple[Expr, ...],
) -> tuple[Value, ...]:
    """Inclusive running combination along one dimension."""
    x = ctx.flat(x, axis)
    space, domain = ctx.space(x.dims)
    parts = elements(space.read(x), space)
    index = space.where[axis][0]
    if not index.terms:  # a single element: its own state
        return ctx.reduce(x.dims, [], lambda s: elements(s.read(x), s), monoid, final)
    outs = [ctx.stored(ctx.hint, x.dims, e.dtype) for e in final]
    name = index.terms[0][0]
    assert isinstance(name, str)
    reduction = Reduction(indices=(name,), monoid=monoid, final=final, scan=True)
    writes = [write_of(n, x.dims, d, space.out) for n, d in outs]
    ctx.add(domain, writes, parts, reduction=reduction, ranges=space.ranges)
    return tuple(of_tensor(n, d, e.dtype) for (n, d), e in zip(outs, final))


def _running_type(out: DType) -> DType:
    """The type that a running sum is kept in, as in ATen (``acc_type`` on the CPU).

    In the output's own type, each rounding would stay in all later results: the error would grow
    with the length, and a scan cannot be reassociated against that.
    """
    compute = compute_type(out)
    return DType.f64 if out is DType.f32 else compute


def _running(monoid_of: Callable[[DType], Monoid]) -> Callable[..., Value]:
    def rule(ctx: Context, x: Value, dim: int, *, dtype: Any = None) -> Value:
        out = ctx.out_dtype()
        compute = _running_type(out)
        if x.rank == 0:
            return ctx.convert(x, out)
        return scan(
            ctx,
            x,
            views.normal_dim(dim, x.rank),
            monoid_of(compute),
            lambda e, s: (cast(e, compute),),
            (cast(state(0, compute), out),),
        )[0]

    return rule


lower("aten.cumsum.default", source=_SOURCE)(_running(sum_of))
lower("aten.cumprod.default", source=_SOURCE)(_running(prod_of))


def _running_extremum(op: str, start: Callable[[DType], float | int | bool]) -> Callable[..., Any]:
    def rule(ctx: Context, x: Value, dim: int) -> tuple[Value, Value]:
        if x.rank == 0 or x.dtype is DType.bool:
            raise NoRule
        axis = views.normal_dim(dim, x.rank)
        compute = compute_type(x.dtype)
        monoid = last_extremum(op, start(compute), compute)
        found = scan(
            ctx,
            x,
            axis,
            monoid,
            lambda e, s: (cast(e, compute), Index(value=s.index(axis))),
            (cast(state(0, compute), x.dtype), state(1, DType.i64)),
        )
        return found[0], found[1]

    return rule


def last_extremum(op: str, start: float | int | bool, dtype: DType) -> Monoid:
    """Extreme value and its position, the last of equals and of NaN, as ``cummax`` wants it."""
    a0, a1 = Var(name="a0", dtype=dtype), Var(name="a1", dtype=DType.i64)
    b0, b1 = Var(name="b0", dtype=dtype), Var(name="b1", dtype=DType.i64)
    take: Expr = binary(op, b0, a0)
    if dtype.is_float:
        b_nan, a_number = unary("isnan", b0), unary("not", unary("isnan", a0))
        take = binary("or", b_nan, binary("and", a_number, take))
    # The identity joins anywhere: its position -1 never beats an element.
    take = binary("and", binary("ge", b1, const(0, DType.i64)), take)
    take = binary("or", binary("lt", a1, const(0, DType.i64)), take)
    return Monoid(
        name=f"last_{op}",
        identity=(const(start, dtype), const(-1, DType.i64)),
        combine=(select(take, b0, a0), select(take, b1, a1)),
        commutative=False,
    )


lower("aten.cummax.default", source=_SOURCE)(_running_extremum("ge", lowest))
lower("aten.cummin.default", source=_SOURCE)(_running_extremum("le", highest))
