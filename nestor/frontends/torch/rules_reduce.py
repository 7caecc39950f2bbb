"""Reductions and scans over whole dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from nestor.frontends.torch import views
from nestor.frontends.torch.builder import Space
from nestor.frontends.torch.context import Context, Scalar, cast, index_value, select
from nestor.frontends.torch.dtypes import compute_type
from nestor.frontends.torch.registry import lower
from nestor.frontends.torch.rules_pointwise import power
from nestor.frontends.torch.rules_view import reshape_to
from nestor.frontends.torch.sizes import Size, product
from nestor.frontends.torch.value import Value, full
from nestor.ir.expr import Binary, Expr, Index, Var, binary, const, unary
from nestor.ir.monoid import (
    Monoid,
    all_of,
    any_of,
    argmax_of,
    argmin_of,
    max_of,
    min_of,
    prod_of,
    sum_of,
    welford_of,
)
from nestor.ir.types import DType

_SOURCE = "ATen/native/ReduceOps.cpp"
Axes = int | Sequence[int] | None


def axes_of(dim: Axes, rank: int, *, empty_is_all: bool = True) -> list[int]:
    """Reduced dimensions in order; None and (for most operators) an empty list mean all."""
    if dim is None or (empty_is_all and not isinstance(dim, int) and len(dim) == 0):
        return list(range(rank))
    which = [dim] if isinstance(dim, int) else list(dim)
    return sorted({views.normal_dim(d, rank) for d in which if rank})


def state(position: int, dtype: DType) -> Var:
    """A component of a reduction's final state."""
    return Var(name=f"s{position}", dtype=dtype)


def reduce_axes(
    ctx: Context,
    x: Value,
    axes: Sequence[int],
    keepdim: bool,
    monoid: Monoid,
    elements: Callable[[Expr, Space, list[int]], tuple[Expr, ...]],
    final: tuple[Expr, ...],
) -> tuple[Value, ...]:
    """Reduce ``axes`` of ``x``.

    Args: elements: state components from an element, the point, and for each dimension of ``x`` its
        place in the space; final: one expression a result.
    """
    kept = [k for k in range(x.rank) if k not in axes]
    place = [0] * x.rank
    for n, k in enumerate([*kept, *axes]):
        place[k] = n

    def body(space: Space) -> tuple[Expr, ...]:
        return elements(space.read(x, place), space, place)

    results = ctx.reduce([x.dims[k] for k in kept], [x.dims[k] for k in axes], body, monoid, final)
    if keepdim:
        results = tuple(_unreduce(r, axes) for r in results)
    return results


def _unreduce(value: Value, axes: Sequence[int]) -> Value:
    for k in axes:
        value = views.unsqueeze(value, k)
    return value


def count_of(x: Value, axes: Sequence[int]) -> Size:
    """How many elements one reduction combines."""
    return product(e for k in axes for e in x.dims[k])


def size_expr(size: Size, dtype: DType) -> Expr:
    """A size as a scalar of a float type."""
    out: Expr = const(size.coefficient, dtype)
    for factor in size.factors:
        out = Binary(op="mul", a=out, b=index_value(factor, dtype))
    return out


# ------------------------------------------------------------------------- sums and the like


@lower("aten.sum.dim_IntList", "aten.sum.default", source=_SOURCE)
def lower_sum(
    ctx: Context, x: Value, dim: Axes = None, keepdim: bool = False, *, dtype: Any = None
) -> Value:
    """Sum, accumulated in the computing type of the result."""
    out = ctx.out_dtype()
    compute = compute_type(out)
    axes = axes_of(dim, x.rank)
    final = (cast(state(0, compute), out),)
    return reduce_axes(
        ctx, x, axes, keepdim, sum_of(compute), lambda e, s, p: (cast(e, compute),), final
    )[0]


@lower("aten.mean.dim", "aten.mean.default", source=_SOURCE)
def lower_mean(
    ctx: Context, x: Value, dim: Axes = None, keepdim: bool = False, *, dtype: Any = None
) -> Value:
    """Sum divided by the count."""
    out = ctx.out_dtype()
    compute = compute_type(out)
    axes = axes_of(dim, x.rank)
    count = size_expr(count_of(x, axes), compute)
    final = (cast(binary("div", state(0, compute), count), out),)
    return reduce_axes(
        ctx, x, axes, keepdim, sum_of(compute), lambda e, s, p: (cast(e, compute),), final
    )[0]


@lower("aten.prod.dim_int", "aten.prod.default", source=_SOURCE)
def lower_prod(
    ctx: Context, x: Value, dim: Axes = None, keepdim: bool = False, *, dtype: Any = None
) -> Value:
    """Product."""
    out = ctx.out_dtype()
    compute = compute_type(out)
    final = (cast(state(0, compute), out),)
    return reduce_axes(
        ctx,
        x,
        axes_of(dim, x.rank),
        keepdim,
        prod_of(compute),
        lambda e, s, p: (cast(e, compute),),
        final,
    )[0]


def _extremum(monoid_of: Callable[[DType], Monoid]) -> Callable[..., Value]:
    def rule(ctx: Context, x: Value, dim: Axes = None, keepdim: bool = False) -> Value:
        return extremum(ctx, x, axes_of(dim, x.rank), keepdim, monoid_of)

    return rule


def extremum(
    ctx: Context,
    x: Value,
    axes: Sequence[int],
    keepdim: bool,
    monoid_of: Callable[[DType], Monoid],
) -> Value:
    """Greatest or least element; NaN wins."""
    if x.dtype is DType.bool:
        monoid = any_of() if monoid_of is max_of else all_of()
    else:
        monoid = monoid_of(compute_type(x.dtype))
    compute = monoid.dtypes[0]
    final = (cast(state(0, compute), x.dtype),)
    return reduce_axes(ctx, x, axes, keepdim, monoid, lambda e, s, p: (cast(e, compute),), final)[0]


lower("aten.amax.default", "aten.max.default", source=_SOURCE)(_extremum(max_of))
lower("aten.amin.default", "aten.min.default", source=_SOURCE)(_extremum(min_of))


def _logical(monoid_of: Callable[[], Monoid]) -> Callable[..., Value]:
    def rule(ctx: Context, x: Value, dim: Axes = None, keepdim: bool = False) -> Value:
        out = ctx.out_dtype()
        return reduce_axes(
            ctx,
            x,
            axes_of(dim, x.rank, empty_is_all=True),
            keepdim,
            monoid_of(),
            lambda e, s, p: (cast(e, DType.bool),),
            (cast(state(0, DType.bool), out),),
        )[0]

    return rule


lower("aten.any.default", "aten.any.dim", "aten.any.dims", source=_SOURCE)(_logical(any_of))
lower("aten.all.default", "aten.all.dim", "aten.all.dims", source=_SOURCE)(_logical(all_of))


# ------------------------------------------------------------------------------------ arguments


def arg_extremum(
    ctx: Context, x: Value, axis: int, keepdim: bool, monoid_of: Callable[[DType], Monoid]
) -> tuple[Value, Value]:
    """Value and position of the extreme element of one dimension, the first of equals."""
    compute = DType.u8 if x.dtype is DType.bool else compute_type(x.dtype)
    final = (cast(state(0, compute), x.dtype), state(1, DType.i64))

    def elements(e: Expr, space: Space, place: list[int]) -> tuple[Expr, ...]:
        return cast(e, compute), Index(value=space.index(place[axis]))

    found = reduce_axes(ctx, x, [axis], keepdim, monoid_of(compute), elements, final)
    return found[0], found[1]


def _arg(monoid_of: Callable[[DType], Monoid]) -> Callable[..., Value]:
    def rule(ctx: Context, x: Value, dim: int | None = None, keepdim: bool = False) -> Value:
        rank = x.rank
        if dim is None or rank == 0:
            x = reshape_to(ctx, x, [product(e for d in x.dims for e in d)])
            index = arg_extremum(ctx, x, 0, False, monoid_of)[1]
            for _ in range(rank if keepdim else 0):
                index = views.unsqueeze(index, 0)
            return index
        return arg_extremum(ctx, x, views.normal_dim(dim, x.rank), keepdim, monoid_of)[1]

    return rule


lower("aten.argmax.default", source=_SOURCE)(_arg(argmax_of))
lower("aten.argmin.default", source=_SOURCE)(_arg(argmin_of))


def _with_index(
    monoid_of: Callable[[DType], Monoid], plain: Callable[[DType], Monoid]
) -> Callable[..., tuple[Value, Value]]:
    def rule(ctx: Context, x: Value, dim: int, keepdim: bool = False) -> tuple[Value, Value]:
        if x.rank == 0:
            return x, full((), 0, DType.i64)
        axis = views.normal_dim(dim, x.rank)
        if 1 not in ctx.used:
            value = extremum(ctx, x, [axis], keepdim, plain)
            return value, full(value.dims, 0, DType.i64)
        return arg_extremum(ctx, x, axis, keepdim, monoid_of)

    return rule


lower("aten.max.dim", source=_SOURCE)(_with_index(argmax_of, max_of))
lower("aten.min.dim", source=_SOURCE)(_with_index(argmin_of, min_of))


# ------------------------------------------------------------------------------ moments, norms


def moments(
    ctx: Context,
    x: Value,
    axes: Sequence[int],
    keepdim: bool,
    final: Callable[..., tuple[Expr, ...]],
) -> tuple[Value, ...]:
    """Welford's mean and sum of squared deviations of ``axes``; ``final(mean, m2, count)``."""
    compute = compute_type(x.dtype)
    one, zero = const(1, compute), const(0, compute)
    results = final(state(0, compute), state(1, compute), size_expr(count_of(x, axes), compute))
    return reduce_axes(
        ctx,
        x,
        axes,
        keepdim,
        welford_of(compute),
        lambda e, s, p: (cast(e, compute), zero, one),
        results,
    )


def _deviation(root: bool, mean: bool) -> Callable[..., Any]:
    def rule(
        ctx: Context,
        x: Value,
        dim: Any = None,
        unbiased: Any = None,
        keepdim: bool = False,
        *,
        correction: Any = None,
    ) -> Any:
        if isinstance(dim, bool):  # the overload without dimensions takes ``unbiased`` first
            dim, unbiased = None, dim
        if correction is None:
            correction = 1 if unbiased is None or unbiased is True else 0
        out = x.dtype

        def final(m: Expr, m2: Expr, n: Expr) -> tuple[Expr, ...]:
            degrees = binary("sub", n, const(float(correction), n.dtype))
            positive = binary("max", degrees, const(0, n.dtype))
            variance = binary("div", m2, positive)
            spread = cast(unary("sqrt", variance) if root else variance, out)
            return (spread, cast(m, out)) if mean else (spread,)

        found = moments(ctx, x, axes_of(dim, x.rank), keepdim, final)
        return found if mean else found[0]

    return rule


lower("aten.var.correction", "aten.var.dim", "aten.var.default", source=_SOURCE)(
    _deviation(False, False)
)
lower("aten.std.correction", "aten.std.dim", "aten.std.default", source=_SOURCE)(
    _deviation(True, False)
)
lower("aten.var_mean.correction", source=_SOURCE)(_deviation(False, True))
lower("aten.std_mean.correction", source=_SOURCE)(_deviation(True, True))


@lower("aten.linalg_vector_norm.default", source="ATen/native/LinearAlgebra.cpp")
def lower_vector_norm(
    ctx: Context,
    x: Value,
    ord: Scalar = 2,
    dim: Axes = None,
    keepdim: bool = False,
    *,
    dtype: Any = None,
) -> Value:
    """The ``ord``-norm."""
    out = ctx.out_dtype()
    compute = compute_type(out)
    axes = axes_of(dim, x.rank)
    s = state(0, compute)
    final: Expr = s
    if ord == 0:
        monoid = sum_of(compute)
    elif ord == math.inf:
        monoid = max_of(compute)
    elif ord == -math.inf:
        monoid = min_of(compute)
    else:
        monoid = sum_of(compute)
        final = _root(s, float(ord))

    def elements(e: Expr, space: Space, place: list[int]) -> tuple[Expr, ...]:
        magnitude = unary("abs", cast(e, compute))
        if ord == 0:
            is_zero = binary("eq", magnitude, const(0, compute))
            return (select(is_zero, const(0, compute), const(1, compute)),)
        if math.isinf(ord):
            return (magnitude,)
        return (power(cast(e, compute) if ord == 2 else magnitude, ord),)

    if ord == math.inf:
        # The norm of nothing is 0, not the identity of max.
        monoid = Monoid(name="max0", identity=(const(0, compute),), combine=monoid.combine)
    return reduce_axes(ctx, x, axes, keepdim, monoid, elements, (cast(final, out),))[0]


def _root(s: Expr, order: float) -> Expr:
    if order == 1:
        return s
    if order == 2:
        return unary("sqrt", s)
    return binary("pow", s, const(1.0 / order, s.dtype))


@lower(
    "aten.norm.ScalarOpt_dim",
    "aten.norm.Scalar",
    "aten.norm.ScalarOpt_dim_dtype",
    source="ATen/native/LinearAlgebra.cpp",
)
def lower_norm(
    ctx: Context,
    x: Value,
    p: Scalar | None = None,
    dim: Axes = None,
    keepdim: bool = False,
    **keywords: Any,
) -> Value:
    """The older name of the vector norm."""
    return lower_vector_norm(ctx, x, 2 if p is None else p, dim, keepdim)
