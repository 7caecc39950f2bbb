"""Scatters: writes at indices that are data, into a copy of the base."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nestor.frontends.torch import views
from nestor.frontends.torch.builder import Space
from nestor.frontends.torch.context import Context, Scalar, as_value, cast
from nestor.frontends.torch.dtypes import compute_type
from nestor.frontends.torch.gather import AnyIndex, index_of
from nestor.frontends.torch.registry import NoRule, lower
from nestor.frontends.torch.rules_index import IndexPlan
from nestor.frontends.torch.rules_pointwise import choose
from nestor.frontends.torch.rules_reduce import state
from nestor.frontends.torch.value import Dim, Value
from nestor.ir.affine import affine
from nestor.ir.expr import Expr, IndexExpr, Load
from nestor.ir.monoid import Monoid, any_of, max_of, min_of, prod_of, sum_of
from nestor.ir.program import Reduction, Write
from nestor.ir.types import DType

_SOURCE = "ATen/native/TensorAdvancedIndexing.cpp"
Where = Callable[[Space, Value], list[AnyIndex]]


def scatter(
    ctx: Context,
    base: Value,
    dims: Sequence[Dim],
    source: Value,
    where: Where,
    monoid_of: Callable[[DType], Monoid] | None,
) -> Value:
    """``base`` with ``source`` (broadcast to ``dims``) written at ``where`` of each point.

    Args: monoid_of: combines into what is there; None overwrites, the last instance winning.
    """
    out = base.dtype
    base = ctx.flat_all(base)
    target_type = out if monoid_of is None else compute_type(out)
    source = ctx.convert(source, target_type)
    target = ctx.pointwise(base.dims, lambda s: (cast(s.read(base), target_type),))[0]
    assert isinstance(target.elem, Load)
    name = target.elem.tensor
    space, domain = ctx.space(dims)
    indices: tuple[IndexExpr, ...] = tuple(where(space, target))
    write = Write(tensor=name, indices=indices)
    element = space.read(source)
    if monoid_of is None:
        ctx.add(domain, [write], (element,), scatter="last", ranges=space.ranges)
        return target
    reduction = Reduction(
        indices=domain.names,
        monoid=monoid_of(target_type),
        final=(state(0, target_type),),
        into=True,
    )
    ctx.add(domain, [write], (element,), reduction=reduction, ranges=space.ranges)
    return ctx.convert(target, out)


def _sum(dtype: DType) -> Monoid:
    return any_of() if dtype is DType.bool else sum_of(dtype)


@lower("aten.index_put.default", "aten._unsafe_index_put.default", source=_SOURCE)
def lower_index_put(
    ctx: Context,
    x: Value,
    indices: Sequence[Value | None],
    values: Value,
    accumulate: bool = False,
    unsafe: bool = False,
) -> Value:
    """``x[indices] = values``; a bool mask with one value is a selection."""
    masks = [i for i in indices if i is not None and i.dtype is DType.bool]
    if masks:
        return _masked_put(ctx, x, indices, values, accumulate)
    plan = IndexPlan(ctx, x, indices)
    return scatter(ctx, x, plan.dims, values, plan.where, _sum if accumulate else None)


def _masked_put(
    ctx: Context, x: Value, indices: Sequence[Value | None], values: Value, accumulate: bool
) -> Value:
    """One mask over the first dimensions, and a value that does not depend on how many are set."""
    mask = indices[0]
    if mask is None or len([i for i in indices if i is not None]) != 1 or accumulate:
        raise NoRule
    rest = x.rank - mask.rank
    if values.rank > rest and not (values.rank == rest + 1 and values.is_unit(0)):
        raise NoRule
    if values.rank > rest:
        values = views.squeeze(values, [0])
    for _ in range(rest):
        mask = views.unsqueeze(mask, -1)
    return choose(ctx, mask, values, x, x.dtype)


def _along(ctx: Context, dim: int, index: Value) -> Where:
    """Points of ``index`` with its data in dimension ``dim``; negative indices are errors."""

    def where(space: Space, target: Value) -> list[AnyIndex]:
        at = index_of(ctx, space.read(index), target.dims[dim][0], space, wraps=False)
        return [at if k == dim else space.index(k) for k in range(target.rank)]

    return where


def _scatter_along(
    ctx: Context,
    x: Value,
    dim: int,
    index: Value,
    source: Value | Scalar,
    monoid_of: Callable[[DType], Monoid] | None,
) -> Value:
    if x.rank == 0 or index.rank == 0:
        raise NoRule
    dim = views.normal_dim(dim, x.rank)
    if index.is_empty():
        return x
    index = ctx.flat_all(index)
    value = as_value(source, x.dtype)
    if value.rank:
        value = _crop(ctx, value, index)
    return scatter(ctx, x, index.dims, value, _along(ctx, dim, index), monoid_of)


def _crop(ctx: Context, source: Value, index: Value) -> Value:
    """The corner of ``source`` that has the shape of ``index``."""
    source = ctx.flat_all(source)
    for k in range(source.rank):
        length = index.dims[k][0]
        if source.dims[k][0] != length:
            cropped = views.narrow(source, k, affine(0), 1, length)
            assert cropped is not None
            source = cropped
    return source


@lower("aten.scatter.src", "aten.scatter.value", source=_SOURCE)
def lower_scatter(ctx: Context, x: Value, dim: int, index: Value, source: Value | Scalar) -> Value:
    """``x[i][index[i][j]] = source[i][j]``."""
    return _scatter_along(ctx, x, dim, index, source, None)


@lower("aten.scatter_add.default", source=_SOURCE)
def lower_scatter_add(ctx: Context, x: Value, dim: int, index: Value, source: Value) -> Value:
    """``x[i][index[i][j]] += source[i][j]``."""
    return _scatter_along(ctx, x, dim, index, source, _sum)


_REDUCE: dict[str, Callable[[DType], Monoid]] = {
    "sum": _sum,
    "add": _sum,
    "prod": prod_of,
    "multiply": prod_of,
    "amax": max_of,
    "amin": min_of,
}


@lower("aten.scatter_reduce.two", "aten.scatter.reduce", "aten.scatter.value_reduce",
       source=_SOURCE)  # fmt: skip
def lower_scatter_reduce(
    ctx: Context,
    x: Value,
    dim: int,
    index: Value,
    source: Value | Scalar,
    reduce: str,
    *,
    include_self: bool = True,
) -> Value:
    """Combine by sum, product, maximum or minimum."""
    if reduce not in _REDUCE or not include_self or x.dtype is DType.bool:
        raise NoRule
    return _scatter_along(ctx, x, dim, index, source, _REDUCE[reduce])


def _slices(ctx: Context, x: Value, dim: int, index: Value) -> tuple[tuple[Dim, ...], Where]:
    """Dims of ``x`` with ``dim`` as long as the vector ``index``, and where its points go."""
    x = ctx.flat_all(x)
    if index.rank == 0:
        index = views.unsqueeze(index, 0)
    dims = (*x.dims[:dim], *index.dims, *x.dims[dim + 1 :])

    def where(space: Space, target: Value) -> list[AnyIndex]:
        data: Expr = space.read(index, [dim])
        at = index_of(ctx, data, target.dims[dim][0], space, wraps=False)
        return [at if k == dim else space.index(k) for k in range(target.rank)]

    return dims, where


@lower("aten.index_add.default", source=_SOURCE)
def lower_index_add(
    ctx: Context, x: Value, dim: int, index: Value, source: Value, *, alpha: Scalar = 1
) -> Value:
    """``x[:, index[i]] += alpha * source[:, i]``."""
    if x.rank == 0 or alpha != 1:
        raise NoRule
    dim = views.normal_dim(dim, x.rank)
    dims, where = _slices(ctx, x, dim, index)
    return scatter(ctx, x, dims, source, where, _sum)


@lower("aten.index_copy.default", source=_SOURCE)
def lower_index_copy(ctx: Context, x: Value, dim: int, index: Value, source: Value) -> Value:
    """``x[:, index[i]] = source[:, i]``."""
    if x.rank == 0:
        raise NoRule
    dim = views.normal_dim(dim, x.rank)
    dims, where = _slices(ctx, x, dim, index)
    return scatter(ctx, x, dims, source, where, None)


@lower("aten.index_fill.int_Scalar", "aten.index_fill.int_Tensor", source=_SOURCE)
def lower_index_fill(ctx: Context, x: Value, dim: int, index: Value, value: Any) -> Value:
    """``x[:, index[i]] = value``."""
    if x.rank == 0:
        raise NoRule
    dim = views.normal_dim(dim, x.rank)
    dims, where = _slices(ctx, x, dim, index)
    return scatter(ctx, x, dims, as_value(value, x.dtype), where, None)
