"""Convolutions as contractions over shifted windows; padding is a predicated load of zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nestor.frontends.torch import views
from nestor.frontends.torch.builder import Space
from nestor.frontends.torch.context import Context, cast
from nestor.frontends.torch.dtypes import compute_type
from nestor.frontends.torch.registry import NoRule, lower
from nestor.frontends.torch.rules_activation import channel_vector
from nestor.frontends.torch.rules_contract import add_scaled
from nestor.frontends.torch.rules_join import pad_view
from nestor.frontends.torch.rules_reduce import state
from nestor.frontends.torch.rules_view import reshape_to
from nestor.frontends.torch.sizes import Size
from nestor.frontends.torch.value import Dim, Value, at_point, guard
from nestor.ir.affine import Affine, affine
from nestor.ir.expr import Expr, binary, const
from nestor.ir.monoid import sum_of
from nestor.ir.types import DType

_SOURCE = "ATen/native/Convolution.cpp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """One spatial dimension: input position ``output * stride - pad + tap * dilation``."""

    stride: int
    pad: int
    dilation: int


def windows(
    rank: int, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> list[Window]:
    """One ``Window`` a spatial dimension; lists of one element hold for all."""
    return [
        Window(stride=_at(stride, k), pad=_at(padding, k), dilation=_at(dilation, k))
        for k in range(rank)
    ]


def _at(values: Sequence[int], k: int) -> int:
    return int(values[k] if len(values) > 1 else values[0])


def window_read(
    value: Value, where: Sequence[tuple[Affine, ...]], first: int, other: Expr, space: Space
) -> Expr:
    """``value`` at ``where``, or ``other`` outside it in the dimensions from ``first``.

    Dimensions from ``first`` must have one component.
    """
    predicates: list[Affine] = []
    for k in range(first, value.rank):
        position, extent = where[k][0], value.dims[k][0]
        predicates += [position, extent - 1 - position]
    elem = at_point(value, tuple(where), space.ranges)
    return guard(elem, predicates, other)


@lower("aten.convolution.default", source=_SOURCE)
def lower_convolution(
    ctx: Context,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Value:
    """Convolution of 1 to 3 spatial dimensions, grouped, dilated, or transposed."""
    return convolve(ctx, x, weight, bias, stride, padding, dilation, groups, transposed=transposed)


def convolve(
    ctx: Context,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    *,
    transposed: bool = False,
) -> Value:
    """The shared rule; an input without a batch gets one for the while."""
    spatial = weight.rank - 2
    if x.rank == spatial + 1:
        y = convolve(
            ctx,
            views.unsqueeze(x, 0),
            weight,
            bias,
            stride,
            padding,
            dilation,
            groups,
            transposed=transposed,
        )
        return views.squeeze(y, [0])
    if x.rank != spatial + 2:
        raise NoRule
    spec = windows(spatial, stride, padding, dilation)
    out = ctx.out_dtype()
    inner = out if bias is None else compute_type(out)
    x, weight = _split_groups(ctx, x, weight, groups, transposed)
    form = _transposed if transposed else _direct
    y = form(ctx, x, weight, spec, inner)
    y = reshape_to(
        ctx, y, [y.size(0), y.size(1) * y.size(2), *(y.size(k) for k in range(3, y.rank))]
    )
    if bias is None:
        return y
    return add_scaled(ctx, y, channel_vector(bias, y.rank), 1, 1, out)


def _split_groups(
    ctx: Context, x: Value, weight: Value, groups: int, transposed: bool
) -> tuple[Value, Value]:
    """Input as (N, G, C, …), weight as (G, O, C, …); one component a spatial dimension."""
    g = Size(groups)
    each = x.size(1).divide(g)
    rows = weight.size(0).divide(g)
    if each is None or rows is None:
        raise NoRule
    x = reshape_to(ctx, x, [x.size(0), g, each, *(x.size(k) for k in range(2, x.rank))])
    for k in range(3, x.rank):
        x = ctx.flat(x, k)
    rest = [weight.size(k) for k in range(1, weight.rank)]
    weight = reshape_to(ctx, weight, [g, rows, *rest])
    if transposed:
        weight = views.transpose(weight, 1, 2)
    for k in range(3, weight.rank):
        weight = ctx.flat(weight, k)
    return x, weight


def _spatial_out(ctx: Context, count: int) -> list[Dim]:
    return [(s,) for s in ctx.out_shape()[-count:]]


def _direct(ctx: Context, x: Value, weight: Value, spec: list[Window], out: DType) -> Value:
    """Output dims (N, G, O, spatial…); reduced dims (C, taps…)."""
    compute = compute_type(x.dtype)
    n = len(spec)
    zero = const(0, x.dtype)
    channels, (x, weight) = ctx.unify_dims([(x, 2), (weight, 2)])

    def body(space: Space) -> tuple[Expr, ...]:
        at, red = space.out, space.reduced
        position = [
            (at[3 + k][0] * w.stride - w.pad + red[1 + k][0] * w.dilation,)
            for k, w in enumerate(spec)
        ]
        pixel = window_read(x, [at[0], at[1], red[0], *position], 3, zero, space)
        factor = at_point(weight, (at[1], at[2], red[0], *red[1:]), space.ranges)
        return (binary("mul", cast(pixel, compute), cast(factor, compute)),)

    outer = [x.dims[0], x.dims[1], weight.dims[1], *_spatial_out(ctx, n)]
    taps = [channels, *(weight.dims[3 + k] for k in range(n))]
    return ctx.reduce(outer, taps, body, sum_of(compute), (cast(state(0, compute), out),))[0]


def _transposed(ctx: Context, x: Value, weight: Value, spec: list[Window], out: DType) -> Value:
    """Gather form: ``input = (output + pad - tap * dilation) / stride`` where that is whole."""
    compute = compute_type(x.dtype)
    n = len(spec)
    zero = const(0, x.dtype)
    channels, (x, weight) = ctx.unify_dims([(x, 2), (weight, 2)])

    def body(space: Space) -> tuple[Expr, ...]:
        at, red = space.out, space.reduced
        whole: list[Affine] = []
        position = []
        for k, w in enumerate(spec):
            shifted = at[3 + k][0] + w.pad - red[1 + k][0] * w.dilation
            if w.stride > 1:
                whole.append((shifted % w.stride) * -1)
            position.append((shifted // w.stride,))
        pixel = window_read(x, [at[0], at[1], red[0], *position], 3, zero, space)
        pixel = guard(pixel, whole, zero)
        factor = at_point(weight, (at[1], at[2], red[0], *red[1:]), space.ranges)
        return (binary("mul", cast(pixel, compute), cast(factor, compute)),)

    outer = [x.dims[0], x.dims[1], weight.dims[1], *_spatial_out(ctx, n)]
    taps = [channels, *(weight.dims[3 + k] for k in range(n))]
    return ctx.reduce(outer, taps, body, sum_of(compute), (cast(state(0, compute), out),))[0]


def _declare(spatial: int) -> None:
    @lower(f"aten.conv{spatial}d.default", source=_SOURCE)
    def direct(
        ctx: Context,
        x: Value,
        weight: Value,
        bias: Value | None = None,
        stride: Sequence[int] = (1,),
        padding: Sequence[int] = (0,),
        dilation: Sequence[int] = (1,),
        groups: int = 1,
    ) -> Value:
        return convolve(ctx, x, weight, bias, stride, padding, dilation, groups)

    @lower(f"aten.conv{spatial}d.padding", source=_SOURCE)
    def named_padding(
        ctx: Context,
        x: Value,
        weight: Value,
        bias: Value | None = None,
        stride: Sequence[int] = (1,),
        padding: str = "valid",
        dilation: Sequence[int] = (1,),
        groups: int = 1,
    ) -> Value:
        amounts = [0] * spatial
        if padding == "same":
            x, amounts = _same_padding(ctx, x, weight, dilation, spatial)
        return convolve(ctx, x, weight, bias, stride, amounts, dilation, groups)

    name = f"aten.conv_transpose{spatial}d.{'default' if spatial == 1 else 'input'}"

    @lower(name, source=_SOURCE)
    def transposed(
        ctx: Context,
        x: Value,
        weight: Value,
        bias: Value | None = None,
        stride: Sequence[int] = (1,),
        padding: Sequence[int] = (0,),
        output_padding: Sequence[int] = (0,),
        groups: int = 1,
        dilation: Sequence[int] = (1,),
    ) -> Value:
        return convolve(ctx, x, weight, bias, stride, padding, dilation, groups, transposed=True)


def _same_padding(
    ctx: Context, x: Value, weight: Value, dilation: Sequence[int], spatial: int
) -> tuple[Value, list[int]]:
    """Padding that keeps the size; an odd total pads one more on the right, as a view."""
    amounts = []
    shape = [s.as_affine() for s in (x.size(k) for k in range(x.rank))]
    for k in range(spatial):
        taps = weight.size(2 + k).constant
        if taps is None:
            raise NoRule
        total = _at(dilation, k) * (taps - 1)
        amounts.append(total // 2)
        extent = shape[x.rank - spatial + k]
        if total % 2 and extent is not None:
            shape[x.rank - spatial + k] = extent + 1
    sizes = [s for s in shape if s is not None]
    if len(sizes) != x.rank:
        raise NoRule
    return pad_view(ctx, x, [affine(0)] * x.rank, sizes, 0.0), amounts


for _spatial in (1, 2, 3):
    _declare(_spatial)
