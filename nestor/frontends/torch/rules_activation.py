"""Activation functions, written out as scalar expressions."""

from __future__ import annotations

import math
from collections.abc import Callable

from nestor.frontends.torch import views
from nestor.frontends.torch.context import (
    Context,
    Scalar,
    clamp_max,
    clamp_min,
    literal,
    select,
)
from nestor.frontends.torch.registry import NoRule, lower
from nestor.frontends.torch.value import Value
from nestor.ir.affine import affine
from nestor.ir.expr import Expr, binary, const, unary

_SOURCE = "ATen/native/cpu/Activation.cpp"


def _c(value: float, like: Expr) -> Expr:
    return const(value, like.dtype)


def _mul(a: Expr, b: Expr) -> Expr:
    return binary("mul", a, b)


def _add(a: Expr, b: Expr) -> Expr:
    return binary("add", a, b)


def _relu(x: Expr) -> Expr:
    return clamp_min(x, 0)


def _relu6(x: Expr) -> Expr:
    return clamp_max(clamp_min(x, 0), 6)


def _silu(x: Expr) -> Expr:
    return _mul(x, unary("sigmoid", x))


def _hardsigmoid(x: Expr) -> Expr:
    return binary("div", clamp_max(clamp_min(_add(x, _c(3, x)), 0), 6), _c(6, x))


def _hardswish(x: Expr) -> Expr:
    inner = clamp_max(clamp_min(_add(x, _c(3, x)), 0), 6)
    return binary("div", _mul(x, inner), _c(6, x))


def _softplus(x: Expr) -> Expr:
    return unary("log1p", unary("exp", x))


def _log_sigmoid(x: Expr) -> Expr:
    low = clamp_max(x, 0)
    return binary("sub", low, unary("log1p", unary("exp", unary("neg", unary("abs", x)))))


def _mish(x: Expr) -> Expr:
    # log1p(exp(x)) overflows only where tanh of it is 1.
    return _mul(x, unary("tanh", _softplus(x)))


def _simple_rule(function: Callable[[Expr], Expr]) -> Callable[..., Value]:
    def rule(ctx: Context, x: Value) -> Value:
        return ctx.map(function, x)

    return rule


_SIMPLE: dict[str, Callable[[Expr], Expr]] = {
    "relu": _relu,
    "relu6": _relu6,
    "silu": _silu,
    "hardsigmoid": _hardsigmoid,
    "hardswish": _hardswish,
    "log_sigmoid": _log_sigmoid,
    "mish": _mish,
}
for _name, _function in _SIMPLE.items():
    lower(f"aten.{_name}.default", source=_SOURCE)(_simple_rule(_function))


@lower("aten.gelu.default", source=_SOURCE)
def lower_gelu(ctx: Context, x: Value, approximate: str = "none") -> Value:
    """GELU by ``erf``, or by its ``tanh`` approximation."""

    def by_erf(a: Expr) -> Expr:
        inner = _add(_c(1, a), unary("erf", _mul(a, _c(math.sqrt(0.5), a))))
        return _mul(_mul(a, _c(0.5, a)), inner)

    def by_tanh(a: Expr) -> Expr:
        cube = _mul(_mul(a, a), a)
        argument = _mul(_c(math.sqrt(2 / math.pi), a), _add(a, _mul(_c(0.044715, a), cube)))
        return _mul(_mul(_c(0.5, a), a), _add(_c(1, a), unary("tanh", argument)))

    return ctx.map(by_tanh if approximate == "tanh" else by_erf, x)


@lower("aten.leaky_relu.default", source=_SOURCE)
def lower_leaky_relu(ctx: Context, x: Value, negative_slope: Scalar = 0.01) -> Value:
    """``x`` if positive, else ``x * slope``."""

    def body(a: Expr) -> Expr:
        return select(binary("gt", a, _c(0, a)), a, _mul(a, literal(negative_slope, a.dtype)))

    return ctx.map(body, x)


@lower("aten._prelu_kernel.default", "aten.prelu.default", source=_SOURCE)
def lower_prelu(ctx: Context, x: Value, weight: Value) -> Value:
    """Leaky ReLU with a slope for each channel (dimension 1)."""
    if weight.rank == 1:
        weight = channel_vector(weight, x.rank)
    return ctx.map(lambda a, w: select(binary("gt", a, _c(0, a)), a, _mul(a, w)), x, weight)


@lower("aten.elu.default", source=_SOURCE)
def lower_elu(
    ctx: Context, x: Value, alpha: Scalar = 1, scale: Scalar = 1, input_scale: Scalar = 1
) -> Value:
    """ELU, SELU and CELU by their three factors."""

    def body(a: Expr) -> Expr:
        negative = unary("expm1", _mul(a, literal(input_scale, a.dtype)))
        left = _mul(negative, literal(alpha * scale, a.dtype))
        return select(binary("le", a, _c(0, a)), left, _mul(a, literal(scale, a.dtype)))

    return ctx.map(body, x)


@lower("aten.hardtanh.default", source=_SOURCE)
def lower_hardtanh(ctx: Context, x: Value, low: Scalar = -1, high: Scalar = 1) -> Value:
    """Clip."""
    return ctx.map(lambda a: clamp_max(clamp_min(a, low), high), x)


@lower("aten.hardshrink.default", source=_SOURCE)
def lower_hardshrink(ctx: Context, x: Value, lambd: Scalar = 0.5) -> Value:
    """0 within ``[-lambd, lambd]``."""

    def body(a: Expr) -> Expr:
        high = binary("le", a, literal(lambd, a.dtype))
        inside = binary("and", binary("ge", a, literal(-lambd, a.dtype)), high)
        return select(inside, _c(0, a), a)

    return ctx.map(body, x)


@lower("aten.softshrink.default", source=_SOURCE)
def lower_softshrink(ctx: Context, x: Value, lambd: Scalar = 0.5) -> Value:
    """Move towards 0 by ``lambd``; NaN stays."""

    def body(a: Expr) -> Expr:
        bound = literal(lambd, a.dtype)
        low = select(binary("lt", a, literal(-lambd, a.dtype)), _add(a, bound), _mul(a, _c(0, a)))
        return select(binary("gt", a, bound), binary("sub", a, bound), low)

    return ctx.map(body, x)


@lower("aten.threshold.default", source=_SOURCE)
def lower_threshold(ctx: Context, x: Value, threshold: Scalar, value: Scalar) -> Value:
    """``value`` where ``x ≤ threshold``."""

    def body(a: Expr) -> Expr:
        test = binary("le", a, literal(threshold, a.dtype))
        return select(test, literal(value, a.dtype), a)

    return ctx.map(body, x)


@lower("aten.softplus.default", source=_SOURCE)
def lower_softplus(ctx: Context, x: Value, beta: Scalar = 1, threshold: Scalar = 20) -> Value:
    """``log(1 + exp(beta x)) / beta``, linear above the threshold."""

    def body(a: Expr) -> Expr:
        scaled = _mul(a, literal(beta, a.dtype))
        curve = binary("div", _softplus(scaled), literal(beta, a.dtype))
        return select(binary("gt", scaled, literal(threshold, a.dtype)), a, curve)

    return ctx.map(body, x)


@lower("aten.glu.default", source="ATen/native/GatedLinearUnit.cpp")
def lower_glu(ctx: Context, x: Value, dim: int = -1) -> Value:
    """First half times the sigmoid of the second half."""
    dim = views.normal_dim(dim, x.rank)
    x = ctx.flat(x, dim)
    extent = x.dims[dim][0]
    if not extent.is_const or extent.const % 2:
        raise NoRule
    half = affine(extent.const // 2)
    a = views.narrow(x, dim, affine(0), 1, half)
    b = views.narrow(x, dim, half, 1, half)
    assert a is not None and b is not None
    return ctx.map(lambda u, v: _mul(u, unary("sigmoid", v)), a, b)


def channel_vector(value: Value, rank: int) -> Value:
    """A vector over channels, shaped to broadcast against (N, C, …) of ``rank`` dimensions."""
    for _ in range(rank - 2):
        value = views.unsqueeze(value, -1)
    return value
