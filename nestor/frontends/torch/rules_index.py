"""Gathers: reads at indices that are data."""

from __future__ import annotations

from collections.abc import Sequence

from nestor.frontends.torch import views
from nestor.frontends.torch.builder import Space
from nestor.frontends.torch.context import Context
from nestor.frontends.torch.gather import AnyIndex, gatherable, index_of, read_at
from nestor.frontends.torch.registry import NoRule, lower
from nestor.frontends.torch.value import Dim, Value
from nestor.ir.expr import Expr
from nestor.ir.types import DType

_SOURCE = "ATen/native/TensorAdvancedIndexing.cpp"


@lower("aten.embedding.default", source="ATen/native/Embedding.cpp")
def lower_embedding(
    ctx: Context,
    weight: Value,
    indices: Value,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Value:
    """Rows of a table; negative indices are errors."""
    return take(ctx, weight, 0, indices, wraps=False)


@lower("aten.index_select.default", source=_SOURCE)
def lower_index_select(ctx: Context, x: Value, dim: int, index: Value) -> Value:
    """Slices of one dimension; negative indices are errors."""
    if x.rank == 0:
        raise NoRule
    if index.rank == 0:
        index = views.unsqueeze(index, 0)
    return take(ctx, x, views.normal_dim(dim, x.rank), index, wraps=False)


def take(ctx: Context, x: Value, dim: int, index: Value, *, wraps: bool) -> Value:
    """``x`` with dimension ``dim`` replaced by ``x[…, index, …]``."""
    x = gatherable(ctx, x)
    extent = x.dims[dim][0]
    dims = (*x.dims[:dim], *index.dims, *x.dims[dim + 1 :])
    places = list(range(dim, dim + index.rank))

    def body(space: Space) -> tuple[Expr, ...]:
        at = index_of(ctx, space.read(index, places), extent, space, wraps=wraps)
        rest = [k for k in range(len(dims)) if k not in places]
        where: list[AnyIndex] = [space.index(k) for k in rest]
        where.insert(dim, at)
        return (read_at(x, where, space),)

    return ctx.view_or_pointwise(dims, body)


@lower("aten.gather.default", source=_SOURCE)
def lower_gather(
    ctx: Context, x: Value, dim: int, index: Value, *, sparse_grad: bool = False
) -> Value:
    """``x[i][index[i][j][k]][k]``; negative indices are errors."""
    if x.rank == 0 or index.rank == 0:
        raise NoRule
    dim = views.normal_dim(dim, x.rank)
    x = gatherable(ctx, x)
    extent = x.dims[dim][0]
    index = ctx.flat_all(index)

    def body(space: Space) -> tuple[Expr, ...]:
        at = index_of(ctx, space.read(index), extent, space, wraps=False)
        where: list[AnyIndex] = [at if k == dim else space.index(k) for k in range(x.rank)]
        return (read_at(x, where, space),)

    return ctx.view_or_pointwise(index.dims, body)


@lower("aten.index.Tensor", "aten._unsafe_index.Tensor", source=_SOURCE)
def lower_index(ctx: Context, x: Value, indices: Sequence[Value | None]) -> Value:
    """Advanced indexing by integer tensors, broadcast against each other."""
    plan = IndexPlan(ctx, x, indices)
    x = gatherable(ctx, x)

    def body(space: Space) -> tuple[Expr, ...]:
        return (read_at(x, plan.where(space, x), space),)

    return ctx.view_or_pointwise(plan.dims, body)


class IndexPlan:
    """Where advanced indices put their common dimensions, and which element each point means.

    Attributes:
        dims: the dimensions of ``x[indices]``.
    """

    def __init__(self, ctx: Context, x: Value, indices: Sequence[Value | None]):
        given = [i for i in indices if i is not None]
        if any(not i.dtype.is_int or i.dtype is DType.u8 for i in given):
            raise NoRule  # a mask: the result's size is data
        self.ctx = ctx
        self.slots = [*indices, *([None] * (x.rank - len(indices)))]
        common, fitted = ctx.unify(given)
        places = [k for k, i in enumerate(self.slots) if i is not None]
        adjacent = places == list(range(places[0], places[0] + len(places)))
        self.first = places[0] if adjacent else 0
        kept = [k for k, i in enumerate(self.slots) if i is None]
        before = [k for k in kept if k < self.first] if adjacent else []
        after = [k for k in kept if k not in before]
        flat = ctx.flat_all(x)
        self.kept_place = {k: n for n, k in enumerate(before)}
        self.kept_place |= {k: n + len(before) + len(common) for n, k in enumerate(after)}
        self.common = list(range(len(before), len(before) + len(common)))
        self.values = dict(zip(places, fitted))
        self.dims: tuple[Dim, ...] = (
            *(flat.dims[k] for k in before),
            *common,
            *(flat.dims[k] for k in after),
        )

    def where(self, space: Space, x: Value) -> list[AnyIndex]:
        """The index into ``x`` at a point of ``dims``."""
        out: list[AnyIndex] = []
        for k in range(x.rank):
            if k in self.kept_place:
                out.append(space.index(self.kept_place[k]))
                continue
            value = self.values[k]
            tail = self.common[len(self.common) - value.rank :]
            index = space.read(value, tail)
            out.append(index_of(self.ctx, index, x.dims[k][0], space, wraps=True))
        return out
