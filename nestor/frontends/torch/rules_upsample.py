"""Resampling. Source positions are affine in the output index wherever eager's rounding agrees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from nestor.frontends.torch.builder import Space
from nestor.frontends.torch.context import Context, cast
from nestor.frontends.torch.dtypes import compute_type
from nestor.frontends.torch.gather import AnyIndex, gatherable, read_at
from nestor.frontends.torch.registry import NoRule, lower
from nestor.frontends.torch.value import Dim, Value, at_point, guard, point, ranges_of
from nestor.ir.affine import Affine, affine
from nestor.ir.expr import Expr, Load, binary, const
from nestor.ir.types import DType

_SOURCE = "ATen/native/UpSample.h"


def _axes(ctx: Context, x: Value) -> tuple[Value, list[int], list[int]]:
    """``x`` flat in its spatial dimensions, their input sizes and output sizes; all static."""
    out = ctx.out_shape()
    for k in range(2, x.rank):
        x = ctx.flat(x, k)
    sizes = [x.dims[k][0] for k in range(2, x.rank)]
    if not all(s.is_const for s in sizes) or not all(o.is_const for o in out[2:]):
        raise NoRule
    return x, [s.const for s in sizes], [o.const for o in out[2:]]


def _scale(scales: Sequence[float | None] | None, k: int) -> float | None:
    return None if not scales else scales[k]


def affine_table(
    table: Sequence[int], extent: int, index: Affine, exact: Sequence[bool] = ()
) -> Affine | None:
    """An affine expression that, clamped to ``[0, extent)``, is ``table[index]``; or None.

    Tried: ``(a * index + b) // c`` for the simplest slopes.

    Args: exact: places where a value of 0 may not come from clamping a negative one.
    """
    n = len(table)
    if n == 1 or all(t == table[0] for t in table):
        return affine(table[0])
    slope = Fraction(table[-1] - table[0], n - 1)
    for limit in (1, 2, 3, 4, 8, 16, 64, 256, 1024):
        for a, c in _slopes(slope, limit):
            lower = [c * t - a * o for o, t in enumerate(table) if t > 0 or (exact and exact[o])]
            low = max(lower, default=0)
            inner = [c * t + c - 1 - a * o for o, t in enumerate(table) if t < extent - 1]
            if low <= min(inner, default=low):
                return (index * a + low) // c
    return None


def _slopes(slope: Fraction, limit: int) -> list[tuple[int, int]]:
    best = slope.limit_denominator(limit)
    found = [(best.numerator, best.denominator)]
    if limit <= 16:
        for c in range(1, limit + 1):
            nearest = round(slope * c)
            found += [(nearest + d, c) for d in (-1, 0, 1)]
    return [(a, c) for a, c in found if a > 0]


Pick = Callable[[int], Expr]
"""The element at a distance (0, 1) from the source position, clamped to the tensor."""


def sampler(
    ctx: Context, x: Value, dim: int, table: Sequence[int], exact: Sequence[bool] = ()
) -> tuple[tuple[Dim, ...], Pick]:
    """Read ``x`` at ``table[i]`` along a dimension; gives the new dims and a reader over them.

    The position is affine under predicates where the table allows, else it is looked up.
    """
    extent = x.dims[dim][0].const
    dims = (*x.dims[:dim], (affine(len(table)),), *x.dims[dim + 1 :])
    where, ranges = point(dims), ranges_of(dims)
    index = where[dim][0]
    source = affine_table(table, extent, index, exact)
    if source is None:
        return dims, _looked_up(ctx, x, dim, table, dims)
    base = source

    def at(position: Affine) -> Expr:
        return at_point(x, (*where[:dim], (position,), *where[dim + 1 :]), ranges)

    def pick(distance: int) -> Expr:
        position = (base + distance).simplify(ranges)
        low, high = position.bounds(ranges)
        assert low is not None and high is not None
        out = at(position)
        if high >= extent:
            out = guard(out, [extent - 1 - position], at(affine(extent - 1)))
        return guard(out, [position], at(affine(0))) if low < 0 else out

    return dims, pick


def _looked_up(
    ctx: Context, x: Value, dim: int, table: Sequence[int], dims: tuple[Dim, ...]
) -> Pick:
    """Positions from constant tables."""
    x = gatherable(ctx, x)
    extent = x.dims[dim][0].const
    where = point(dims)
    space = Space(dims, where, len(dims), ranges_of(dims))

    def pick(distance: int) -> Expr:
        places = [min(t + distance, extent - 1) for t in table]
        name = ctx.constant_vector(places, DType.i64)
        position = Load(tensor=name, indices=(where[dim][0],), dtype=DType.i64)
        indices: list[AnyIndex] = [position if k == dim else space.index(k) for k in range(x.rank)]
        return read_at(x, indices, space)

    return pick


# ------------------------------------------------------------------------------------- nearest


def nearest_table(extent: int, out: int, scale: float | None, exact: bool) -> list[int]:
    """Source of each output as eager computes it, in float32."""
    if extent == out and (scale is None or scale == 1.0):
        return list(range(out))
    ratio = np.float32(1.0 / scale) if scale else np.float32(extent) / np.float32(out)
    shift = np.float32(0.5 if exact else 0.0)
    places = (np.arange(out, dtype=np.float32) + shift) * ratio
    return [int(v) for v in np.minimum(np.floor(places), extent - 1).astype(np.int64)]


def _nearest(ctx: Context, x: Value, scales: Sequence[float | None] | None, exact: bool) -> Value:
    x, sizes, outs = _axes(ctx, x)
    for k, (extent, out) in enumerate(zip(sizes, outs)):
        table = nearest_table(extent, out, _scale(scales, k), exact)
        if table != list(range(extent)):
            dims, pick = sampler(ctx, x, 2 + k, table)
            x = Value(dims, pick(0))
    return x


def _declare_nearest(spatial: int, prefix: str, exact: bool) -> None:
    @lower(f"aten.{prefix}{spatial}d.vec", source=_SOURCE)
    def by_scale(
        ctx: Context, x: Value, output_size: Any, scale_factors: Sequence[float] | None
    ) -> Value:
        return _nearest(ctx, x, scale_factors, exact)

    @lower(f"aten.{prefix}{spatial}d.default", source=_SOURCE)
    def by_size(ctx: Context, x: Value, output_size: Any, *scales: float | None) -> Value:
        return _nearest(ctx, x, scales, exact)


for _spatial in (1, 2, 3):
    _declare_nearest(_spatial, "upsample_nearest", False)
    _declare_nearest(_spatial, "_upsample_nearest_exact", True)


# -------------------------------------------------------------------------------------- linear


def linear_tables(
    extent: int, out: int, align: bool, scale: float | None, dtype: type[np.floating[Any]]
) -> tuple[list[int], list[float]]:
    """Lower source and weight of the upper one for each output, in the computing type."""
    positions = np.arange(out, dtype=dtype)
    if align:
        ratio = dtype((extent - 1) / (out - 1)) if out > 1 else dtype(0)
        source = positions * ratio
    else:
        ratio = dtype(1.0 / scale) if scale else dtype(extent) / dtype(out)
        source = np.maximum(ratio * (positions + dtype(0.5)) - dtype(0.5), dtype(0))
    low = np.minimum(source.astype(np.int64), extent - 1)
    weight = np.clip(source - low.astype(dtype), dtype(0), dtype(1))
    return [int(v) for v in low], [float(v) for v in weight]


def _linear(ctx: Context, x: Value, align: bool, scales: Sequence[float | None] | None) -> Value:
    """One dimension after the other, innermost first as eager weights rows before columns."""
    out_dtype, compute = x.dtype, compute_type(x.dtype)
    kind = np.float64 if compute is DType.f64 else np.float32
    x, sizes, outs = _axes(ctx, x)
    for k in reversed(range(len(sizes))):
        tables = linear_tables(sizes[k], outs[k], align, _scale(scales, k), kind)
        x = _blend(ctx, x, 2 + k, sizes[k], tables, compute)
    return ctx.convert(x, out_dtype)


def _blend(
    ctx: Context,
    x: Value,
    dim: int,
    extent: int,
    tables: tuple[list[int], list[float]],
    compute: DType,
) -> Value:
    """``x[low] * (1 - w) + x[low + 1] * w``; the last index is its own upper neighbour."""
    low, weight = tables
    if low == list(range(extent)) and not any(weight):
        return x
    dims, pick = sampler(ctx, x, dim, low, [w != 0 for w in weight])
    weights = ctx.constant_vector(weight, compute)
    index = point(dims)[dim][0]
    factor = Load(tensor=weights, indices=(index,), dtype=compute)
    one = const(1, compute)

    def mix(a: Expr, b: Expr) -> Expr:
        left = binary("mul", cast(a, compute), binary("sub", one, factor))
        return binary("add", left, binary("mul", cast(b, compute), factor))

    return ctx.materialise(Value(dims, mix(pick(0), pick(1))))


def _declare_linear(spatial: int, name: str) -> None:
    @lower(f"aten.{name}.vec", source=_SOURCE)
    def by_scale(
        ctx: Context,
        x: Value,
        output_size: Any,
        align_corners: bool,
        scale_factors: Sequence[float] | None,
    ) -> Value:
        return _linear(ctx, x, align_corners, scale_factors)

    @lower(f"aten.{name}.default", source=_SOURCE)
    def by_size(
        ctx: Context, x: Value, output_size: Any, align_corners: bool, *scales: float | None
    ) -> Value:
        return _linear(ctx, x, align_corners, scales)


for _spatial, _name in enumerate(("linear1d", "bilinear2d", "trilinear3d"), start=1):
    _declare_linear(_spatial, f"upsample_{_name}")
