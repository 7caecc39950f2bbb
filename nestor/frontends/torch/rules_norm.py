"""Normalisations: one reduction of moments, one pointwise statement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nestor.frontends.torch import views
from nestor.frontends.torch.context import Context, cast
from nestor.frontends.torch.dtypes import compute_type
from nestor.frontends.torch.registry import NoRule, lower
from nestor.frontends.torch.rules_activation import channel_vector
from nestor.frontends.torch.rules_reduce import (
    count_of,
    moments,
    reduce_axes,
    size_expr,
    state,
)
from nestor.frontends.torch.rules_view import reshape_to
from nestor.frontends.torch.sizes import Size
from nestor.frontends.torch.value import Value
from nestor.ir.expr import Expr, binary, const, unary
from nestor.ir.monoid import sum_of


def _normalise(
    ctx: Context, x: Value, mean: Value, rstd: Value, weight: Value | None, bias: Value | None
) -> Value:
    """``(x - mean) * rstd * weight + bias``, in the computing type."""
    rest = [v for v in (weight, bias) if v is not None]

    def body(e: Expr, m: Expr, r: Expr, *affine: Expr) -> Expr:
        parts = iter(affine)
        out: Expr = binary("mul", binary("sub", e, m), r)
        out = out if weight is None else binary("mul", out, next(parts))
        return out if bias is None else binary("add", out, next(parts))

    return ctx.map(body, x, mean, rstd, *rest, compute=compute_type(x.dtype), out=x.dtype)


def mean_rstd(ctx: Context, x: Value, axes: Sequence[int], eps: float) -> tuple[Value, Value]:
    """Mean and ``1 / sqrt(variance + eps)`` over ``axes``, dimensions kept."""

    def final(mean: Expr, m2: Expr, n: Expr) -> tuple[Expr, ...]:
        variance = binary("div", m2, n)
        return mean, unary("rsqrt", binary("add", variance, const(eps, n.dtype)))

    found = moments(ctx, x, axes, True, final)
    return found[0], found[1]


@lower("aten.layer_norm.default", source="ATen/native/layer_norm.cpp")
def lower_layer_norm(
    ctx: Context,
    x: Value,
    normalized_shape: Sequence[int],
    weight: Value | None = None,
    bias: Value | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = False,
) -> Value:
    """Normalise the last dimensions."""
    axes = list(range(x.rank - len(normalized_shape), x.rank))
    mean, rstd = mean_rstd(ctx, x, axes, eps)
    return _normalise(ctx, x, mean, rstd, weight, bias)


@lower("aten.native_layer_norm.default", source="ATen/native/layer_norm.cpp")
def lower_native_layer_norm(
    ctx: Context,
    x: Value,
    normalized_shape: Sequence[int],
    weight: Value | None,
    bias: Value | None,
    eps: float,
) -> tuple[Value, Value, Value]:
    """Layer norm with its statistics."""
    axes = list(range(x.rank - len(normalized_shape), x.rank))
    mean, rstd = mean_rstd(ctx, x, axes, eps)
    return _normalise(ctx, x, mean, rstd, weight, bias), mean, rstd


@lower("aten.rms_norm.default", source="ATen/native/layer_norm.cpp")
def lower_rms_norm(
    ctx: Context,
    x: Value,
    normalized_shape: Sequence[int],
    weight: Value | None = None,
    eps: float | None = None,
) -> Value:
    """Divide by the root of the mean square of the last dimensions."""
    compute = compute_type(x.dtype)
    axes = list(range(x.rank - len(normalized_shape), x.rank))
    epsilon = 2.0 ** -_MANTISSA[compute.value] if eps is None else eps
    n = size_expr(count_of(x, axes), compute)
    mean = binary("div", state(0, compute), n)
    final = unary("rsqrt", binary("add", mean, const(epsilon, compute)))
    rstd = reduce_axes(
        ctx,
        x,
        axes,
        True,
        sum_of(compute),
        lambda e, s, p: (binary("mul", cast(e, compute), cast(e, compute)),),
        (final,),
    )[0]

    def body(e: Expr, r: Expr, *rest: Expr) -> Expr:
        out = binary("mul", e, r)
        return binary("mul", out, rest[0]) if rest else out

    operands = [x, rstd] if weight is None else [x, rstd, weight]
    return ctx.map(body, *operands, compute=compute, out=ctx.out_dtype())


_MANTISSA = {"f32": 23, "f64": 52}
"""ATen's default eps is the machine epsilon of the computing type."""


@lower("aten.group_norm.default", source="ATen/native/group_norm.cpp")
def lower_group_norm(
    ctx: Context,
    x: Value,
    groups: int,
    weight: Value | None = None,
    bias: Value | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Value:
    """Normalise groups of channels over all of their positions."""
    sizes = [x.size(k) for k in range(x.rank)]
    each = x.size(1).divide(Size(groups))
    if each is None:
        raise NoRule
    split_sizes = [Size(groups), each]
    split = reshape_to(ctx, x, [sizes[0], *split_sizes, *sizes[2:]])
    mean, rstd = mean_rstd(ctx, split, list(range(2, split.rank)), eps)
    vectors = [
        None if v is None else channel_vector(reshape_to(ctx, v, split_sizes), split.rank - 1)
        for v in (weight, bias)
    ]
    out = _normalise(ctx, split, mean, rstd, vectors[0], vectors[1])
    return reshape_to(ctx, out, sizes)


@lower("aten.native_group_norm.default", source="ATen/native/group_norm.cpp")
def lower_native_group_norm(
    ctx: Context,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    n: Any,
    c: Any,
    hw: Any,
    groups: int,
    eps: float,
) -> tuple[Value, Value, Value]:
    """Group norm; its statistics are for training."""
    if ctx.used - {0}:
        raise NoRule
    y = lower_group_norm(ctx, x, groups, weight, bias, eps)
    return y, y, y


@lower("aten.instance_norm.default", source="ATen/native/Normalization.cpp")
def lower_instance_norm(
    ctx: Context,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    running_mean: Value | None,
    running_var: Value | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Value:
    """Normalise each channel of each instance over its positions."""
    if not use_input_stats:
        assert running_mean is not None and running_var is not None
        return batch_norm(ctx, x, weight, bias, running_mean, running_var, eps)
    if running_mean is not None:
        raise NoRule
    mean, rstd = mean_rstd(ctx, x, list(range(2, x.rank)), eps)
    vectors = [None if v is None else channel_vector(v, x.rank) for v in (weight, bias)]
    return _normalise(ctx, x, mean, rstd, vectors[0], vectors[1])


def batch_norm(
    ctx: Context,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value,
    variance: Value,
    eps: float,
) -> Value:
    """``(x - mean) * (weight * rsqrt(variance + eps)) + bias``: foldable into what makes ``x``."""
    rank = max(x.rank, 2)
    operands = [
        None if v is None else channel_vector(v, rank) for v in (mean, variance, weight, bias)
    ]
    present = [v for v in operands if v is not None]
    compute = compute_type(ctx.promoted(x, *present))

    def body(e: Expr, m: Expr, v: Expr, *rest: Expr) -> Expr:
        parts = iter(rest)
        scale: Expr = unary("rsqrt", binary("add", v, const(eps, compute)))
        scale = scale if weight is None else binary("mul", next(parts), scale)
        out: Expr = binary("mul", binary("sub", e, m), scale)
        return out if bias is None else binary("add", out, next(parts))

    return ctx.map(body, x, *present, compute=compute, out=x.dtype)


@lower("aten.batch_norm.default", source="ATen/native/Normalization.cpp")
def lower_batch_norm(
    ctx: Context,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value | None,
    variance: Value | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Value:
    """Batch norm with fixed statistics; training is left to PyTorch's decomposition."""
    if training or mean is None or variance is None:
        raise NoRule
    return batch_norm(ctx, x, weight, bias, mean, variance, eps)


@lower("aten._native_batch_norm_legit_no_training.default", source="ATen/native/Normalization.cpp")
def lower_batch_norm_inference(
    ctx: Context,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value,
    variance: Value,
    momentum: float,
    eps: float,
) -> tuple[Value, Value, Value]:
    """Batch norm with fixed statistics; the saved ones are empty."""
    empty = reshape_to(ctx, views.unsqueeze(mean, 0), [Size(0)])
    return batch_norm(ctx, x, weight, bias, mean, variance, eps), empty, empty


def _batch_statistics(
    ctx: Context, x: Value, eps: float, statistics: bool
) -> tuple[Value, Value, Value | None]:
    """Mean, ``1 / sqrt(var + eps)`` and (if wanted) the unbiased variance of each channel."""

    def final(mean: Expr, m2: Expr, n: Expr) -> tuple[Expr, ...]:
        rstd = unary("rsqrt", binary("add", binary("div", m2, n), const(eps, n.dtype)))
        if not statistics:
            return mean, rstd
        return mean, rstd, binary("div", m2, binary("sub", n, const(1.0, n.dtype)))

    found = moments(ctx, x, [k for k in range(x.rank) if k != 1], False, final)
    return found[0], found[1], found[2] if statistics else None


def _normalise_channels(
    ctx: Context, x: Value, mean: Value, rstd: Value, weight: Value | None, bias: Value | None
) -> Value:
    vectors = [None if v is None else channel_vector(v, x.rank) for v in (mean, rstd, weight, bias)]
    assert vectors[0] is not None and vectors[1] is not None
    return _normalise(ctx, x, vectors[0], vectors[1], vectors[2], vectors[3])


@lower("aten._native_batch_norm_legit.no_stats", source="ATen/native/Normalization.cpp")
def lower_batch_norm_no_stats(
    ctx: Context,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Value, Value, Value]:
    """Batch norm by the batch's own statistics."""
    mean, rstd, _ = _batch_statistics(ctx, x, eps, False)
    return _normalise_channels(ctx, x, mean, rstd, weight, bias), mean, rstd


@lower("aten._native_batch_norm_legit_functional.default", source="ATen/native/Normalization.cpp")
def lower_batch_norm_training(
    ctx: Context,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    running_mean: Value,
    running_var: Value,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Value, ...]:
    """Batch norm by the batch's statistics, and the running statistics moved towards them."""
    if not training:
        raise NoRule
    mean, rstd, variance = _batch_statistics(ctx, x, eps, True)
    assert variance is not None

    def move(old: Expr, new: Expr) -> Expr:
        kept = binary("mul", const(1.0 - momentum, old.dtype), old)
        return binary("add", binary("mul", const(momentum, old.dtype), new), kept)

    compute = mean.dtype
    updates = [
        ctx.map(move, old, new, compute=compute, out=old.dtype)
        for old, new in ((running_mean, mean), (running_var, variance))
    ]
    return (_normalise_channels(ctx, x, mean, rstd, weight, bias), mean, rstd, *updates)
