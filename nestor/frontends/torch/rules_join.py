"""Put tensors together and pad them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nestor.frontends.torch import views
from nestor.frontends.torch.builder import write_of
from nestor.frontends.torch.context import Context, Scalar, literal
from nestor.frontends.torch.registry import NoRule, lower
from nestor.frontends.torch.rules_view import reshape_to, slice_start
from nestor.frontends.torch.sizes import affine_from_torch, product
from nestor.frontends.torch.value import (
    Dim,
    Point,
    Value,
    at_point,
    components,
    guard,
    of_tensor,
    point,
    ranges_of,
)
from nestor.ir.affine import Affine, affine
from nestor.ir.expr import const
from nestor.ir.types import DType

_SOURCE = "ATen/native/TensorShape.cpp"


@lower("aten.cat.default", source=_SOURCE)
def lower_cat(ctx: Context, tensors: Sequence[Value], dim: int = 0) -> Value:
    """One statement a piece, each writing its slice."""
    rank = len(ctx.meta.shape)
    pieces = [t for t in tensors if t.rank == rank]  # a legacy empty vector is skipped
    return join(ctx, pieces, views.normal_dim(dim, rank), ctx.out_dtype())


def join(ctx: Context, tensors: Sequence[Value], dim: int, dtype: DType) -> Value:
    """Concatenate tensors of one rank along ``dim``."""
    pieces = [ctx.convert(ctx.flat(t, dim), dtype) for t in tensors]
    pieces = [t for t in pieces if not t.is_empty()] or pieces[:1]
    if len(pieces) == 1:
        return pieces[0]
    common: list[Dim] = []
    for k in range(pieces[0].rank):
        if k == dim:
            common.append(())
            continue
        shared, pieces = ctx.unify_dims([(t, k) for t in pieces])
        common.append(shared)
    total = affine(0)
    for t in pieces:
        total = total + t.dims[dim][0]
    dims = tuple((total,) if k == dim else d for k, d in enumerate(common))
    name, stored = ctx.stored(ctx.hint, dims, dtype)
    offset = affine(0)
    for t in pieces:
        _write_piece(ctx, name, dims, stored, t, dim, offset)
        offset = offset + t.dims[dim][0]
    return of_tensor(name, stored, dtype)


def _write_piece(
    ctx: Context,
    name: str,
    dims: Sequence[Dim],
    stored: Sequence[Dim],
    piece: Value,
    dim: int,
    offset: Affine,
) -> None:
    piece_dims = [piece.dims[dim] if k == dim else d for k, d in enumerate(dims)]
    space, domain = ctx.space(piece_dims)
    where = list(space.out)
    where[dim] = (where[dim][0] + offset,)
    write = write_of(name, dims, stored, tuple(where))
    ctx.add(domain, [write], (space.read(piece),), ranges=space.ranges)


@lower("aten.stack.default", source=_SOURCE)
def lower_stack(ctx: Context, tensors: Sequence[Value], dim: int = 0) -> Value:
    """Concatenate along a new dimension."""
    dim = views.normal_dim(dim, len(ctx.meta.shape))
    return join(ctx, [views.unsqueeze(t, dim) for t in tensors], dim, ctx.out_dtype())


@lower("aten.constant_pad_nd.default", source="ATen/native/PadNd.cpp")
def lower_constant_pad(ctx: Context, x: Value, pad: Sequence[Any], value: Scalar = 0) -> Value:
    """Pad (or, with negative amounts, crop) with a constant: a predicated view."""
    before = [affine(0)] * x.rank
    for k in range(len(pad) // 2):
        before[x.rank - 1 - k] = affine_from_torch(pad[2 * k])
    return pad_view(ctx, x, before, ctx.out_shape(), literal(value, x.dtype).value)


@lower("aten.pad.default", source="ATen/native/PadNd.cpp")
def lower_pad(
    ctx: Context, x: Value, pad: Sequence[Any], mode: str = "constant", value: Scalar | None = None
) -> Value:
    """Padding by any of the modes, by name."""
    if mode == "constant":
        return lower_constant_pad(ctx, x, pad, 0 if value is None else value)
    kind = {"reflect": "reflection", "replicate": "replication", "circular": "circular"}[mode]
    return pad_mirrored(ctx, x, pad, kind)


def pad_mirrored(ctx: Context, x: Value, padding: Sequence[Any], kind: str) -> Value:
    """Pad the last dimensions with the tensor's own elements, innermost dimension first."""
    for k in range(len(padding) // 2):
        before, after = (affine_from_torch(p) for p in padding[2 * k : 2 * k + 2])
        if not before.is_const or not after.is_const:
            raise NoRule
        x = _pad_by_itself(ctx, x, x.rank - 1 - k, before.const, after.const, kind)
    return x


def pad_view(
    ctx: Context, x: Value, before: Sequence[Affine], shape: Sequence[Affine], value: Any
) -> Value:
    """``x`` moved by ``before`` into ``shape``; ``value`` around it."""
    changed = [
        k for k in range(x.rank) if before[k] != affine(0) or x.size(k).as_affine() != shape[k]
    ]
    for k in changed:
        x = ctx.flat(x, k)
    dims = tuple((shape[k],) if k in changed else x.dims[k] for k in range(x.rank))
    where = point(dims)
    source, predicates = list(where), []
    for k in changed:
        position = where[k][0] - before[k]
        source[k] = (position,)
        predicates += [position, x.dims[k][0] - 1 - position]
    elem = at_point(x, tuple(source), ranges_of(dims))
    return Value(dims, guard(elem, predicates, const(value, x.dtype)))


def _mirror(kind: str, spatial: int) -> None:
    @lower(f"aten.{kind}_pad{spatial}d.default", source="ATen/native/cpu/PaddingKernel.cpp")
    def rule(ctx: Context, x: Value, padding: Sequence[Any]) -> Value:
        return pad_mirrored(ctx, x, padding, kind)


def _pad_by_itself(ctx: Context, x: Value, dim: int, before: int, after: int, kind: str) -> Value:
    """Pad one dimension by reflection or by its edge, or wrapped around.

    Each side reads through its own affine index under a predicate, so no index is data.
    """
    x = ctx.flat(x, dim)
    size = x.dims[dim][0]
    if before < 0 or after < 0:
        raise NoRule
    dims = (*x.dims[:dim], (size + before + after,), *x.dims[dim + 1 :])
    where = point(dims)
    i = where[dim][0] - before
    edges = {
        "reflection": (i * -1, size * 2 - 2 - i),
        "replication": (affine(0), size - 1),
        "circular": (i + size, i - size),
    }[kind]
    ranges = ranges_of(dims)

    def at(index: Affine) -> Any:
        spot: Point = (*where[:dim], (index,), *where[dim + 1 :])
        return at_point(x, spot, ranges)

    # Innermost ``other`` first: right side, then left side, then the middle.
    right = guard(at(edges[1]), [i - size], const(0, x.dtype)) if after else const(0, x.dtype)
    left = guard(at(edges[0]), [i * -1 - 1], right) if before else right
    return Value(dims, guard(at(i), [i, size - 1 - i], left))


for _spatial in (1, 2, 3):
    _mirror("reflection", _spatial)
    _mirror("replication", _spatial)


@lower("aten.roll.default", source="ATen/native/TensorTransformations.cpp")
def lower_roll(ctx: Context, x: Value, shifts: Sequence[Any], dims: Sequence[int] = ()) -> Value:
    """Rotate dimensions."""
    if not dims:
        sizes = [x.size(k) for k in range(x.rank)]
        flat = reshape_to(ctx, x, [product(components(x.dims))])
        return reshape_to(ctx, _roll(ctx, flat, 0, shifts[0]), sizes)
    for shift, dim in zip(shifts, dims):
        x = _roll(ctx, x, views.normal_dim(dim, x.rank), shift)
    return x


def _roll(ctx: Context, x: Value, dim: int, shift: Any) -> Value:
    x = ctx.flat(x, dim)
    size, by = x.dims[dim][0], affine_from_torch(shift)
    if not by.is_const or not size.is_const:
        raise NoRule
    amount = by.const % max(size.const, 1)
    if amount == 0:
        return x
    where = point(x.dims)
    i = where[dim][0]

    def at(index: Affine) -> Any:
        return at_point(x, (*where[:dim], (index,), *where[dim + 1 :]), ranges_of(x.dims))

    wrapped = guard(at(i + size - amount), [affine(amount - 1) - i], const(0, x.dtype))
    return Value(x.dims, guard(at(i - amount), [i - amount], wrapped))


@lower("aten.slice_scatter.default", source=_SOURCE)
def lower_slice_scatter(
    ctx: Context,
    x: Value,
    src: Value,
    dim: int = 0,
    start: Any = None,
    end: Any = None,
    step: int = 1,
) -> Value:
    """``x`` with a slice replaced."""
    dim = views.normal_dim(dim, x.rank)
    x, src = ctx.flat(x, dim), ctx.flat(ctx.convert(src, x.dtype), dim)
    first = slice_start(ctx, x, dim, start)
    return overlay(ctx, x, src, dim, first, int(step))


@lower("aten.select_scatter.default", source=_SOURCE)
def lower_select_scatter(ctx: Context, x: Value, src: Value, dim: int, index: Any) -> Value:
    """``x`` with one index of a dimension replaced."""
    dim = views.normal_dim(dim, x.rank)
    x = ctx.flat(x, dim)
    at = affine_from_torch(index)
    if at.is_const and at.const < 0:
        at = at + x.dims[dim][0]
    src = views.unsqueeze(ctx.convert(src, x.dtype), dim)
    return overlay(ctx, x, src, dim, at, 1)


def overlay(ctx: Context, x: Value, src: Value, dim: int, start: Affine, step: int) -> Value:
    """``src`` at ``start + step * i`` of a dimension of ``x``, else ``x``; one statement."""
    if src.is_empty():
        return x
    places: list[Dim] = []
    for k in range(x.rank):
        if k == dim:
            places.append(x.dims[k])
            continue
        common, (x, src) = ctx.unify_dims([(x, k), (src, k)])
        places.append(common)
    where = point(places)
    offset = where[dim][0] - start
    length = src.dims[dim][0]
    index = offset // step
    predicates = [index, length - 1 - index]
    if step > 1:
        predicates.append((offset % step) * -1)
    spot: Point = (
        *where[:dim],
        (index,) if length != affine(1) else (affine(0),),
        *where[dim + 1 :],
    )
    ranges = ranges_of(places)
    base = at_point(x, where, ranges)
    result = Value(tuple(places), guard(at_point(src, spot, ranges), predicates, base))
    return ctx.materialise(result)
