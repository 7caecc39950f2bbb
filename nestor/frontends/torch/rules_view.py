"""Views: index maps, never copies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nestor.errors import Unsupported
from nestor.frontends.torch import views
from nestor.frontends.torch.context import Context
from nestor.frontends.torch.registry import NoRule, lower
from nestor.frontends.torch.reshape import reshape
from nestor.frontends.torch.sizes import Size, affine_from_torch, product, size_from_torch, size_of
from nestor.frontends.torch.value import Dim, Value, components, of_tensor, remap
from nestor.ir.affine import Affine, affine

_SOURCE = "ATen/native/TensorShape.cpp"


@lower("aten.view.default", "aten._unsafe_view.default", "aten.reshape.default",
          "aten.unflatten.int", "aten.flatten.using_ints",
       source=_SOURCE)  # fmt: skip
def lower_view(ctx: Context, x: Value, *args: Any) -> Value:
    """Any reshape; the result's sizes are known from the fake tensor."""
    return reshape_to(ctx, x, [size_from_torch(s) for s in ctx.meta.shape])


def reshape_to(ctx: Context, x: Value, sizes: Sequence[Size]) -> Value:
    """``x`` with other dimensions, through memory where indices would not be affine.

    Raises: Unsupported when even that cannot be said: a symbolic size that splits another.
    """
    out = reshape(x, sizes)
    if out is not None:
        return out
    stored = ctx.materialise(x)
    out = reshape(stored, sizes)
    if out is not None:
        return out
    dims: list[Dim] = []
    for size in sizes:
        extent = size.as_affine()
        head = () if size.coefficient == 1 else (affine(size.coefficient),)
        dims.append((extent,) if extent is not None else (*size.factors, *head))
    name = ctx.alias(ctx.name_of(stored), list(components(dims)))
    if product(components(dims)) != product(components(stored.dims)):
        raise Unsupported(
            f"a reshape to sizes {', '.join(map(str, sizes))}: make a dimension static"
        )
    return of_tensor(name, dims, x.dtype)


@lower("aten.view.dtype", source=_SOURCE)
def lower_view_dtype(ctx: Context, x: Value, dtype: Any) -> Value:
    """Reinterpreting bytes is not expressible, except as the same type."""
    if ctx.out_dtype() is x.dtype:
        return x
    raise NoRule


@lower("aten.permute.default", source=_SOURCE)
def lower_permute(ctx: Context, x: Value, dims: Sequence[int]) -> Value:
    """Reorder dimensions."""
    return views.permute(x, dims)


@lower("aten.transpose.int", source=_SOURCE)
def lower_transpose(ctx: Context, x: Value, dim0: int, dim1: int) -> Value:
    """Swap two dimensions."""
    return views.transpose(x, dim0, dim1)


@lower("aten.t.default", "aten.mT.default", source=_SOURCE)
def lower_t(ctx: Context, x: Value) -> Value:
    """Matrix transpose."""
    return views.transpose(x, -2, -1) if x.rank >= 2 else x


@lower("aten.expand.default", "aten.broadcast_to.default", source=_SOURCE)
def lower_expand(ctx: Context, x: Value, size: Sequence[Any], implicit: bool = False) -> Value:
    """Broadcast."""
    return views.expand(x, ctx.out_dims())


@lower("aten.expand_as.default", source=_SOURCE)
def lower_expand_as(ctx: Context, x: Value, other: Value) -> Value:
    """Broadcast to the shape of another tensor."""
    return views.expand(x, ctx.out_dims())


@lower("aten.unsqueeze.default", source=_SOURCE)
def lower_unsqueeze(ctx: Context, x: Value, dim: int) -> Value:
    """Insert a dimension of size 1."""
    return views.unsqueeze(x, dim)


@lower("aten.squeeze.default", "aten.squeeze.dim", "aten.squeeze.dims",
       source=_SOURCE)  # fmt: skip
def lower_squeeze(ctx: Context, x: Value, dim: int | Sequence[int] | None = None) -> Value:
    """Drop dimensions of size 1."""
    which = range(x.rank) if dim is None else [dim] if isinstance(dim, int) else dim
    return views.squeeze(x, list(which))


@lower("aten.slice.Tensor", source=_SOURCE)
def lower_slice(
    ctx: Context, x: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Value:
    """Every ``step``-th element from ``start``; the length is known from the fake tensor."""
    dim = views.normal_dim(dim, x.rank)
    length = size_from_torch(ctx.meta.shape[dim])
    if length == x.size(dim) and step == 1:
        return x
    extent = length.as_affine()
    if extent is None:
        raise Unsupported("a slice whose length is a product of symbolic sizes; make one static")
    return narrowed(ctx, x, dim, slice_start(ctx, x, dim, start), int(step), extent)


def slice_start(ctx: Context, x: Value, dim: int, start: Any) -> Affine:
    """A slice's start, from the front and clamped as Python does."""
    if start is None:
        return affine(0)
    first = affine_from_torch(start)
    extent = x.size(dim).as_affine()
    low, high = first.bounds(ctx.symbol_ranges())
    if extent is not None and high is not None and high < 0:
        first = first + extent
        low = first.bounds(ctx.symbol_ranges())[0]
    if first.is_const and extent is not None and extent.is_const:
        return affine(min(max(first.const, 0), extent.const))
    if low is not None and low < 0:
        raise Unsupported("a slice whose symbolic start may lie before the tensor")
    return first


def narrowed(ctx: Context, x: Value, dim: int, start: Affine, step: int, length: Affine) -> Value:
    """``views.narrow``, through memory where it must be."""
    out = views.narrow(x, dim, start, step, length)
    if out is None:
        out = views.narrow(ctx.flat(x, dim), dim, start, step, length)
    assert out is not None
    return out


@lower("aten.narrow.default", source=_SOURCE)
def lower_narrow(ctx: Context, x: Value, dim: int, start: Any, length: Any) -> Value:
    """A contiguous slice."""
    return lower_slice(ctx, x, dim, start)


@lower("aten.select.int", source=_SOURCE)
def lower_select(ctx: Context, x: Value, dim: int, index: Any) -> Value:
    """One index of a dimension, which disappears."""
    dim = views.normal_dim(dim, x.rank)
    where = affine_from_torch(index)
    if where.is_const and where.const < 0:
        extent = x.size(dim).as_affine()
        if extent is None:
            raise Unsupported("a negative index into a product of symbolic sizes")
        where = where + extent
    out = views.select(x, dim, where)
    return views.select(ctx.flat(x, dim), dim, where) or x if out is None else out


@lower("aten.split_with_sizes.default", source=_SOURCE)
def lower_split_with_sizes(
    ctx: Context, x: Value, sizes: Sequence[Any], dim: int = 0
) -> tuple[Value, ...]:
    """Cut a dimension into pieces."""
    dim = views.normal_dim(dim, x.rank)
    start, out = affine(0), []
    for size in sizes:
        length = affine_from_torch(size)
        out.append(narrowed(ctx, x, dim, start, 1, length))
        start = start + length
    return tuple(out)


@lower("aten.split.Tensor", "aten.chunk.default",
       "aten.unsafe_split.Tensor",
       "aten.unsafe_chunk.default", source=_SOURCE)  # fmt: skip
def lower_split(ctx: Context, x: Value, size: Any, dim: int = 0) -> tuple[Value, ...]:
    """Cut a dimension into equal pieces; their sizes are known from the fake tensors."""
    dim = views.normal_dim(dim, x.rank)
    return lower_split_with_sizes(ctx, x, [m.shape[dim] for m in ctx.meta], dim)


@lower("aten.unbind.int", source=_SOURCE)
def lower_unbind(ctx: Context, x: Value, dim: int = 0) -> tuple[Value, ...]:
    """All slices along a dimension."""
    return tuple(lower_select(ctx, x, dim, k) for k in range(len(ctx.meta)))


@lower("aten.unfold.default", source=_SOURCE)
def lower_unfold(ctx: Context, x: Value, dim: int, size: int, step: int) -> Value:
    """Windows of a dimension, the index within a window last."""
    if x.rank == 0:
        raise NoRule
    dim = views.normal_dim(dim, x.rank)
    x = ctx.flat(x, dim)
    count = affine_from_torch(ctx.meta.shape[dim])
    dims = (*x.dims[:dim], (count,), *x.dims[dim + 1 :], (affine(size),))
    return remap(x, dims, lambda p: (*p[:dim], (p[dim][0] * step + p[-1][0],), *p[dim + 1 : -1]))


@lower("aten.flip.default", source="ATen/native/TensorTransformations.cpp")
def lower_flip(ctx: Context, x: Value, dims: Sequence[int]) -> Value:
    """Reverse dimensions."""
    return views.flip(x, dims)


@lower("aten.repeat.default", source=_SOURCE)
def lower_repeat(ctx: Context, x: Value, repeats: Sequence[Any]) -> Value:
    """Tile: each dimension becomes (copies, own), merged."""
    while x.rank < len(repeats):
        x = views.unsqueeze(x, 0)
    counts = [size_from_torch(r) for r in repeats]
    dims: list[Dim] = []
    for count, own in zip(counts, x.dims):
        if count.is_one:
            dims.append(own)
            continue
        copies = count.as_affine()
        if copies is None:
            raise Unsupported("a repeat count that is a product of symbolic sizes")
        rest = () if product(own).is_one else own
        dims.append((copies, *rest))

    def where(p: tuple[tuple[Affine, ...], ...]) -> list[tuple[Affine, ...]]:
        out: list[tuple[Affine, ...]] = []
        for count, own, group in zip(counts, x.dims, p):
            if product(own).is_one:
                out.append((affine(0),))
            else:
                out.append(group if count.is_one else group[1:])
        return out

    return remap(x, dims, where)


@lower("aten.repeat_interleave.self_int", source="ATen/native/Repeat.cpp")
def lower_repeat_interleave(
    ctx: Context, x: Value, repeats: Any, dim: int | None = None, output_size: Any = None
) -> Value:
    """Each element ``repeats`` times in a row."""
    if dim is None:
        x = reshape_to(ctx, x, [product(components(x.dims))])
        dim = 0
    dim = views.normal_dim(dim, x.rank)
    copies = affine_from_torch(repeats)
    own = () if product(x.dims[dim]).is_one else x.dims[dim]
    if size_of(copies).is_one:
        return x
    dims = (*x.dims[:dim], (*own, copies), *x.dims[dim + 1 :])
    kept = own

    def where(p: tuple[tuple[Affine, ...], ...]) -> list[tuple[Affine, ...]]:
        return [*p[:dim], p[dim][:-1] if kept else (affine(0),), *p[dim + 1 :]]

    return remap(x, dims, where)


@lower("aten.diagonal.default", source=_SOURCE)
def lower_diagonal(ctx: Context, x: Value, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Value:
    """The diagonal of two dimensions, last."""
    a, b = views.normal_dim(dim1, x.rank), views.normal_dim(dim2, x.rank)
    x = ctx.flat(ctx.flat(x, a), b)
    length = affine_from_torch(ctx.meta.shape[-1])
    rest = [k for k in range(x.rank) if k not in (a, b)]
    dims = (*(x.dims[k] for k in rest), (length,))

    def where(p: tuple[tuple[Affine, ...], ...]) -> list[tuple[Affine, ...]]:
        out: list[tuple[Affine, ...]] = [()] * x.rank
        for k, group in zip(rest, p):
            out[k] = group
        out[a] = (p[-1][0] + max(-offset, 0),)
        out[b] = (p[-1][0] + max(offset, 0),)
        return out

    return remap(x, dims, where)


@lower("aten.pixel_shuffle.default", source="ATen/native/PixelShuffle.cpp")
def lower_pixel_shuffle(ctx: Context, x: Value, factor: int) -> Value:
    """(…, C·r², H, W) to (…, C, H·r, W·r)."""
    *lead, c, h, w = (x.size(k) for k in range(x.rank))
    r = Size(factor)
    channels = c.divide(Size(factor * factor))
    if channels is None:
        raise NoRule
    n = len(lead)
    x = reshape_to(ctx, x, [*lead, channels, r, r, h, w])
    x = views.permute(x, [*range(n), n, n + 3, n + 1, n + 4, n + 2])
    return reshape_to(ctx, x, [*lead, channels, h * r, w * r])


@lower("aten.pixel_unshuffle.default", source="ATen/native/PixelShuffle.cpp")
def lower_pixel_unshuffle(ctx: Context, x: Value, factor: int) -> Value:
    """(…, C, H·r, W·r) to (…, C·r², H, W)."""
    *lead, c, h, w = (x.size(k) for k in range(x.rank))
    r = Size(factor)
    rows, columns = h.divide(r), w.divide(r)
    if rows is None or columns is None:
        raise NoRule
    n = len(lead)
    x = reshape_to(ctx, x, [*lead, c, rows, r, columns, r])
    x = views.permute(x, [*range(n), n, n + 2, n + 4, n + 1, n + 3])
    return reshape_to(ctx, x, [*lead, c * r * r, rows, columns])


@lower("aten.channel_shuffle.default", source="ATen/native/ChanelShuffle.cpp")
def lower_channel_shuffle(ctx: Context, x: Value, groups: int) -> Value:
    """Interleave channel groups."""
    n, c, *rest = (x.size(k) for k in range(x.rank))
    each = c.divide(Size(groups))
    if each is None:
        raise NoRule
    x = reshape_to(ctx, x, [n, Size(groups), each, *rest])
    return reshape_to(ctx, views.transpose(x, 1, 2), [n, c, *rest])
