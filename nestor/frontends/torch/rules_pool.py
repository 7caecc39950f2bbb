"""Pooling: reductions over windows, padding as the monoid's identity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nestor.frontends.torch import views
from nestor.frontends.torch.builder import Space
from nestor.frontends.torch.context import Context, cast, index_value, select
from nestor.frontends.torch.dtypes import compute_type
from nestor.frontends.torch.registry import NoRule, lower
from nestor.frontends.torch.rules_convolution import Window, window_read, windows
from nestor.frontends.torch.rules_reduce import lower_mean, state
from nestor.frontends.torch.value import Dim, Value, full, guard, linear_placeholder
from nestor.ir.affine import Affine, affine
from nestor.ir.expr import Expr, Index, binary, const, lowest
from nestor.ir.monoid import argmax_of, max_of, sum_of
from nestor.ir.types import DType

_SOURCE = "ATen/native/Pool.h"


def _with_spatial(ctx: Context, x: Value, spatial: int) -> tuple[Value, int]:
    """``x`` with one component in each spatial dimension, and how many dimensions lead."""
    lead = x.rank - spatial
    for k in range(lead, x.rank):
        x = ctx.flat(x, k)
    return x, lead


def _window_dims(ctx: Context, x: Value, lead: int, position: int | None) -> list[Dim]:
    return [*x.dims[:lead], *((s,) for s in ctx.out_shape(position)[lead:])]


def _sizes(kernel: Sequence[int], spatial: int) -> list[int]:
    return [int(kernel[k] if len(kernel) > 1 else kernel[0]) for k in range(spatial)]


def _taps(x: Value, lead: int, spec: Sequence[Window], kernel: Sequence[int]) -> list[Dim]:
    """The places of a window that can lie inside: one far larger than its image is cut to it.

    The first window starts the furthest left, so what it has behind the image's end every other
    window has too. (EfficientNets pool 7×7 pixels through windows of 1280×1280.)
    """
    taps: list[Dim] = []
    for k, size in enumerate(_sizes(kernel, len(spec))):
        extent, w = x.dims[lead + k][0], spec[k]
        if extent.is_const:
            size = max(1, min(size, -(-(extent.const + w.pad) // w.dilation)))
        taps.append((affine(size),))
    return taps


def _positions(space: Space, lead: int, spec: Sequence[Window]) -> list[tuple[Affine, ...]]:
    return [
        (space.out[lead + k][0] * w.stride - w.pad + space.reduced[k][0] * w.dilation,)
        for k, w in enumerate(spec)
    ]


def max_pool(
    ctx: Context,
    x: Value,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    spatial: int,
    *,
    with_indices: bool,
) -> tuple[Value, ...]:
    """Maximum of each window (NaN wins), and its position in the flattened input plane."""
    spec = windows(spatial, stride or kernel, padding, dilation)
    x, lead = _with_spatial(ctx, x, spatial)
    compute = compute_type(x.dtype)
    low = const(lowest(x.dtype), x.dtype)
    taps = _taps(x, lead, spec, kernel)
    indexed = with_indices and 1 in ctx.used

    def body(space: Space) -> tuple[Expr, ...]:
        where = _positions(space, lead, spec)
        pixel = cast(window_read(x, [*space.out[:lead], *where], lead, low, space), compute)
        if not indexed:
            return (pixel,)
        flat = affine(0)
        for k, group in enumerate(where):
            extent = x.dims[lead + k][0]
            if k and not extent.is_const:
                raise NoRule
            flat = flat * (extent.const if k else 1) + group[0]
        inside = window_read(
            full(x.dims, True, DType.bool),
            [*space.out[:lead], *where],
            lead,
            const(False, DType.bool),
            space,
        )
        # Padding never wins: among equals (-inf) the lowest index does.
        far = const((1 << 63) - 1, DType.i64)
        return pixel, select(inside, Index(value=flat), far)

    position = 0 if with_indices else None
    dims = _window_dims(ctx, x, lead, position)
    value = cast(state(0, compute), x.dtype)
    if indexed:
        return ctx.reduce(dims, taps, body, argmax_of(compute), (value, state(1, DType.i64)))
    found = ctx.reduce(dims, taps, body, max_of(compute), (value,))[0]
    return (found, full(found.dims, 0, DType.i64)) if with_indices else (found,)


def _declare_max_pool(spatial: int) -> None:
    @lower(f"aten.max_pool{spatial}d_with_indices.default", source=_SOURCE)
    def with_indices(
        ctx: Context,
        x: Value,
        kernel_size: Sequence[int],
        stride: Sequence[int] = (),
        padding: Sequence[int] = (0,),
        dilation: Sequence[int] = (1,),
        ceil_mode: bool = False,
    ) -> tuple[Value, ...]:
        return max_pool(ctx, x, kernel_size, stride, padding, dilation, spatial, with_indices=True)

    @lower(f"aten.max_pool{spatial}d.default", source=_SOURCE)
    def plain(
        ctx: Context,
        x: Value,
        kernel_size: Sequence[int],
        stride: Sequence[int] = (),
        padding: Sequence[int] = (0,),
        dilation: Sequence[int] = (1,),
        ceil_mode: bool = False,
    ) -> Value:
        return max_pool(
            ctx, x, kernel_size, stride, padding, dilation, spatial, with_indices=False
        )[0]


def _declare_avg_pool(spatial: int) -> None:
    @lower(f"aten.avg_pool{spatial}d.default", source="ATen/native/cpu/AvgPoolKernel.cpp")
    def average(
        ctx: Context,
        x: Value,
        kernel_size: Sequence[int],
        stride: Sequence[int] = (),
        padding: Sequence[int] = (0,),
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Value:
        return _avg_pool(
            ctx, x, kernel_size, stride, padding, spatial, count_include_pad, divisor_override
        )


def _avg_pool(
    ctx: Context,
    x: Value,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    spatial: int,
    count_include_pad: bool,
    divisor: int | None,
) -> Value:
    """Sum of each window, divided by the number of places that count."""
    spec = windows(spatial, stride or kernel, padding, (1,))
    x, lead = _with_spatial(ctx, x, spatial)
    compute = compute_type(x.dtype)
    dims = _window_dims(ctx, x, lead, None)
    counts = [
        _count(dims[lead + k], x.dims[lead + k][0], spec[k], size, count_include_pad)
        for k, size in enumerate(_sizes(kernel, spatial))
    ]

    def body(space: Space) -> tuple[Expr, ...]:
        where = _positions(space, lead, spec)
        zero = const(0, x.dtype)
        return (cast(window_read(x, [*space.out[:lead], *where], lead, zero, space), compute),)

    taps = _taps(x, lead, spec, kernel)
    if divisor is not None or all(isinstance(c, int) for c in counts):
        total = divisor or 1
        for c in () if divisor is not None else counts:
            assert isinstance(c, int)
            total *= c
        mean = binary("div", state(0, compute), const(total, compute))
        return ctx.reduce(dims, taps, body, sum_of(compute), (cast(mean, x.dtype),))[0]
    summed = ctx.reduce(dims, taps, body, sum_of(compute), (state(0, compute),))[0]
    return _divide_by_counts(ctx, summed, dims, counts, compute, x.dtype)


def _divide_by_counts(
    ctx: Context,
    summed: Value,
    dims: Sequence[Dim],
    counts: Sequence[Any],
    compute: DType,
    out: DType,
) -> Value:
    """``summed / prod(counts)``; a count is an int or a load-free vector of its dimension."""
    lead = len(dims) - len(counts)
    total = Value((), const(1, DType.i64))
    for k, count in enumerate(counts):
        line = count
        if isinstance(count, int):
            line = Value((), const(count, DType.i64))
        else:
            for _ in range(len(dims) - lead - 1 - k):
                line = views.unsqueeze(line, -1)
        total = ctx.map(
            lambda a, b: binary("mul", a, b), total, line, compute=DType.i64, out=DType.i64
        )
    return ctx.map(lambda s, n: binary("div", s, n), summed, total, compute=compute, out=out)


def _count(out: Dim, extent: Affine, w: Window, size: int, include_pad: bool) -> int | Value:
    """How many places of each window count: an int if always the same, else a load-free vector."""
    index = linear_placeholder((out,), 0)
    assert index is not None
    limit = extent + (w.pad if include_pad else 0)
    start, end = index * w.stride - w.pad, index * w.stride - w.pad + size
    if extent.is_const and out[0].is_const:
        found = set()
        for o in range(max(out[0].const, 1)):
            first = o * w.stride - w.pad
            last = min(first + size, limit.const)
            found.add(last - (first if include_pad else max(first, 0)))
        if len(found) == 1:
            return found.pop()
    high = _minimum(end, limit)
    low: Expr = Index(value=start)
    if not include_pad:
        low = binary("max", low, const(0, DType.i64))
    return Value((out,), binary("sub", high, low))


def _minimum(a: Affine, b: Affine) -> Expr:
    return binary("min", index_value(a, DType.i64), index_value(b, DType.i64))


for _spatial in (1, 2, 3):
    _declare_avg_pool(_spatial)
    _declare_max_pool(_spatial)


def _declare_adaptive(spatial: int) -> None:
    names = [f"aten.adaptive_avg_pool{spatial}d.default"]
    if spatial > 1:
        names.append(f"aten._adaptive_avg_pool{spatial}d.default")

    @lower(*names, source="ATen/native/AdaptiveAveragePooling.cpp")
    def adaptive(ctx: Context, x: Value, output_size: Sequence[Any]) -> Value:
        return _adaptive_avg(ctx, x, spatial)

    @lower(
        f"aten.adaptive_max_pool{spatial}d.default", source="ATen/native/AdaptiveMaxPooling2d.cpp"
    )
    def adaptive_max(ctx: Context, x: Value, output_size: Sequence[Any]) -> tuple[Value, ...]:
        x, lead = _with_spatial(ctx, x, spatial)
        out = ctx.out_shape(0)[lead:]
        steps = _whole_steps([x.dims[lead + k][0] for k in range(spatial)], out)
        if steps is None:
            raise NoRule
        return max_pool(ctx, x, steps, steps, (0,), (1,), spatial, with_indices=True)


def _whole_steps(extents: Sequence[Affine], out: Sequence[Affine]) -> list[int] | None:
    """Window sizes if every window is the same and they tile the input."""
    steps = []
    for extent, count in zip(extents, out):
        if not extent.is_const or not count.is_const or not count.const:
            return None
        if extent.const % count.const:
            return None
        steps.append(extent.const // count.const)
    return steps


def _adaptive_avg(ctx: Context, x: Value, spatial: int) -> Value:
    """Window ``o`` runs from ``⌊o I / O⌋`` to ``⌈(o + 1) I / O⌉``."""
    x, lead = _with_spatial(ctx, x, spatial)
    out = ctx.out_shape()[lead:]
    if all(o.is_const and o.const == 1 for o in out):
        return lower_mean(ctx, x, list(range(lead, x.rank)), True)
    extents = [x.dims[lead + k][0] for k in range(spatial)]
    if not all(e.is_const and o.is_const and o.const for e, o in zip(extents, out)):
        raise NoRule
    steps = _whole_steps(extents, out)
    if steps is not None:
        return _avg_pool(ctx, x, steps, steps, (0,), spatial, True, None)
    sizes = [(e.const, o.const) for e, o in zip(extents, out)]
    longest = [max(-((o + 1) * i // -n) - o * i // n for o in range(n)) for i, n in sizes]
    compute = compute_type(x.dtype)
    dims = _window_dims(ctx, x, lead, None)

    def body(space: Space) -> tuple[Expr, ...]:
        where, inside = [], []
        for k, (i, n) in enumerate(sizes):
            o, tap = space.out[lead + k][0], space.reduced[k][0]
            first = (o * i) // n
            where.append((first + tap,))
            inside.append(_window_end(o, i, n) - 1 - first - tap)
        zero = const(0, x.dtype)
        pixel = window_read(x, [*space.out[:lead], *where], lead, zero, space)
        return (cast(guard(pixel, inside, zero), compute),)

    taps = [(affine(n),) for n in longest]
    summed = ctx.reduce(dims, taps, body, sum_of(compute), (state(0, compute),))[0]
    counts = []
    for k, (i, n) in enumerate(sizes):
        o = linear_placeholder((dims[lead + k],), 0)
        assert o is not None
        counts.append(Value((dims[lead + k],), Index(value=_window_end(o, i, n) - (o * i) // n)))
    return _divide_by_counts(ctx, summed, dims, counts, compute, x.dtype)


def _window_end(o: Affine, extent: int, count: int) -> Affine:
    """``⌈(o + 1) * extent / count⌉``."""
    return (o * extent + extent + count - 1) // count


for _spatial in (1, 2, 3):
    _declare_adaptive(_spatial)
