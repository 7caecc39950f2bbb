"""Softmax and its relatives: maximum, sum of exponentials, and a pointwise statement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nestor.frontends.torch import views
from nestor.frontends.torch.builder import Space
from nestor.frontends.torch.context import Context, cast, select
from nestor.frontends.torch.dtypes import compute_type
from nestor.frontends.torch.registry import lower
from nestor.frontends.torch.rules_reduce import Axes, axes_of, reduce_axes, state
from nestor.frontends.torch.value import Value
from nestor.ir.expr import Expr, binary, const, unary
from nestor.ir.monoid import max_of, sum_of
from nestor.ir.types import DType


def exp_sum(
    ctx: Context, x: Value, axes: Sequence[int], *, safe: bool = False
) -> tuple[Value, Value]:
    """Maximum and sum of ``exp(x - maximum)`` over ``axes``, dimensions kept.

    With ``safe`` an infinite maximum counts as 0, so a row of ``-inf`` sums to 0, not NaN.
    """
    compute = compute_type(x.dtype)
    top = reduce_axes(
        ctx,
        x,
        axes,
        True,
        max_of(compute),
        lambda e, s, p: (cast(e, compute),),
        (finite_or_zero(state(0, compute)) if safe else state(0, compute),),
    )[0]

    def elements(e: Expr, space: Space, place: list[int]) -> tuple[Expr, ...]:
        shift = space.read(top, place) if x.rank else space.read(top)
        return (unary("exp", binary("sub", cast(e, compute), shift)),)

    total = reduce_axes(ctx, x, axes, True, sum_of(compute), elements, (state(0, compute),))[0]
    return top, total


def finite_or_zero(s: Expr) -> Expr:
    """``s``, or 0 where it is infinite."""
    return select(unary("isinf", s), const(0, s.dtype), s)


@lower(
    "aten._softmax.default",
    "aten.softmax.int",
    source="ATen/native/SoftMax.cpp",
)
def lower_softmax(ctx: Context, x: Value, dim: int, *args: Any, **keywords: Any) -> Value:
    """``exp(x - max) / sum``."""
    return softmax(ctx, x, views.normal_dim(dim, x.rank), ctx.out_dtype(), safe=False)


def softmax(ctx: Context, x: Value, axis: int, out: DType, *, safe: bool) -> Value:
    """Softmax over one dimension; ``safe`` gives 0 for rows that are all ``-inf``."""
    x = ctx.convert(x, out) if compute_type(out) is DType.f64 else x
    axes = [axis] if x.rank else []
    top, total = exp_sum(ctx, x, axes, safe=safe)

    def body(e: Expr, m: Expr, s: Expr) -> Expr:
        # The sum is at least 1: its reciprocal, taken once a row, costs half a unit in the last
        # place, a division of each element more time than its exponential's polynomial.
        quotient = binary("mul", unary("exp", binary("sub", e, m)), unary("reciprocal", s))
        if not safe:
            return quotient
        return select(binary("eq", s, const(0, s.dtype)), const(0, s.dtype), quotient)

    return ctx.map(body, x, top, total, compute=top.dtype, out=out)


@lower("aten._safe_softmax.default", source="ATen/native/transformers/attention.cpp")
def lower_safe_softmax(ctx: Context, x: Value, dim: int, dtype: Any = None) -> Value:
    """Softmax with 0 for rows that are all ``-inf``."""
    return softmax(ctx, x, views.normal_dim(dim, x.rank), ctx.out_dtype(), safe=True)


@lower("aten._log_softmax.default", "aten.log_softmax.int", source="ATen/native/SoftMax.cpp")
def lower_log_softmax(ctx: Context, x: Value, dim: int, *args: Any, **keywords: Any) -> Value:
    """``x - max - log(sum)``."""
    axes = [views.normal_dim(dim, x.rank)] if x.rank else []
    top, total = exp_sum(ctx, x, axes)

    def body(e: Expr, m: Expr, s: Expr) -> Expr:
        return binary("sub", binary("sub", e, m), unary("log", s))

    return ctx.map(body, x, top, total, compute=top.dtype, out=ctx.out_dtype())


@lower("aten.logsumexp.default", source="ATen/native/ReduceOps.cpp")
def lower_logsumexp(ctx: Context, x: Value, dim: Axes, keepdim: bool = False) -> Value:
    """``log(sum(exp(x)))``, shifted by the finite maximum."""
    out = ctx.out_dtype()
    axes = axes_of(dim, x.rank)
    top, total = exp_sum(ctx, ctx.convert(x, out), axes, safe=True)
    result = ctx.map(
        lambda m, s: binary("add", unary("log", s), m), top, total, compute=top.dtype, out=out
    )
    return result if keepdim else views.squeeze(result, axes)
