"""Element by element: arithmetic, comparisons, logic, casts, selection."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from nestor.frontends.torch import dtypes
from nestor.frontends.torch.context import (
    Context,
    Operand,
    Scalar,
    as_value,
    clamp_max,
    clamp_min,
    literal,
    select,
)
from nestor.frontends.torch.registry import NoRule, lower
from nestor.frontends.torch.value import Dim, Value, point, ranges_of, read
from nestor.frontends.torch.views import expand
from nestor.ir.expr import Const, Expr, binary, const, unary
from nestor.ir.types import DType

_OPS = "ATen/native/UnaryOps.cpp"
_BINARY = "ATen/native/BinaryOps.cpp"

# ------------------------------------------------------------------------------------- unary

_FLOAT_UNARY = {
    name: name
    for name in (
        "exp exp2 expm1 log log2 log1p sqrt rsqrt sin cos tan asin acos atan sinh cosh tanh asinh"
        " acosh atanh erf erfc sigmoid reciprocal lgamma"
    ).split()
}
_KEEP_UNARY = {"neg": "neg", "abs": "abs", "sgn": "sign", "sign": "sign"}
_ROUNDING = {"floor": "floor", "ceil": "ceil", "trunc": "trunc", "round": "round"}


def _simple_unary(op: str) -> Callable[..., Value]:
    def rule(ctx: Context, x: Value) -> Value:
        compute = dtypes.compute_type(ctx.out_dtype())
        return ctx.map(lambda a: unary(op, a), x, compute=compute)

    return rule


def _rounding(op: str) -> Callable[..., Value]:
    def rule(ctx: Context, x: Value) -> Value:
        return ctx.map(lambda a: unary(op, a), x) if x.dtype.is_float else x

    return rule


for _name, _op in (_FLOAT_UNARY | _KEEP_UNARY).items():
    lower(f"aten.{_name}.default", source=_OPS)(_simple_unary(_op))
for _name, _op in _ROUNDING.items():
    lower(f"aten.{_name}.default", source=_OPS)(_rounding(_op))


@lower("aten.log10.default", source=_OPS)
def lower_log10(ctx: Context, x: Value) -> Value:
    """Logarithm to base 10."""
    compute = dtypes.compute_type(ctx.out_dtype())
    scale = const(1.0 / math.log(10.0), compute)
    return ctx.map(lambda a: binary("mul", unary("log", a), scale), x, compute=compute)


@lower("aten.frac.default", source=_OPS)
def lower_frac(ctx: Context, x: Value) -> Value:
    """Fractional part, with the operand's sign."""
    return ctx.map(lambda a: binary("sub", a, unary("trunc", a)), x)


@lower("aten.square.default", source=_OPS)
def lower_square(ctx: Context, x: Value) -> Value:
    """``x * x``."""
    return ctx.map(lambda a: binary("mul", a, a), x)


@lower("aten.isfinite.default", source=_OPS)
def lower_isfinite(ctx: Context, x: Value) -> Value:
    """Neither infinite nor NaN; true for integers."""
    if not x.dtype.is_float:
        return ctx.map(lambda a: const(True, DType.bool), x)
    zero = const(0.0, dtypes.compute_type(x.dtype))
    return ctx.map(lambda a: binary("eq", binary("sub", a, a), zero), x)


@lower("aten.logical_not.default", source=_OPS)
def lower_logical_not(ctx: Context, x: Value) -> Value:
    """Logical negation of any type."""
    return ctx.map(lambda a: unary("not", a), x, compute=DType.bool)


@lower("aten.bitwise_not.default", source=_OPS)
def lower_bitwise_not(ctx: Context, x: Value) -> Value:
    """Complement; logical on bool."""
    return ctx.map(lambda a: unary("not", a), x)


# ------------------------------------------------------------------------------------- binary


def _arithmetic(op: str) -> Callable[..., Value]:
    """``add`` and ``sub`` with PyTorch's ``alpha``; bool addition is ``or``."""

    def rule(ctx: Context, a: Operand, b: Operand, alpha: Scalar = 1) -> Value:
        def body(x: Expr, y: Expr) -> Expr:
            if x.dtype is DType.bool:
                if op != "add" or alpha != 1:
                    raise NoRule
                return binary("or", x, y)
            scaled = y if alpha == 1 else binary("mul", literal(alpha, y.dtype), y)
            return binary(op, x, scaled)

        return ctx.map(body, a, b)

    return rule


for _name in ("add", "sub"):
    lower(f"aten.{_name}.Tensor", f"aten.{_name}.Scalar", source=_BINARY)(_arithmetic(_name))


@lower("aten.rsub.Scalar", "aten.rsub.Tensor", source=_BINARY)
def lower_rsub(ctx: Context, a: Value, b: Operand, alpha: Scalar = 1) -> Value:
    """``b - alpha * a``."""

    def body(x: Expr, y: Expr) -> Expr:
        return binary("sub", y, x if alpha == 1 else binary("mul", literal(alpha, x.dtype), x))

    return ctx.map(body, a, b)


@lower("aten.mul.Tensor", "aten.mul.Scalar", source=_BINARY)
def lower_mul(ctx: Context, a: Operand, b: Operand) -> Value:
    """Product; ``and`` on bool."""
    return ctx.map(lambda x, y: binary("and" if x.dtype is DType.bool else "mul", x, y), a, b)


@lower("aten.div.Tensor", "aten.div.Scalar", source=_BINARY)
def lower_div(ctx: Context, a: Operand, b: Operand) -> Value:
    """True division; integers become the default float type."""
    compute = dtypes.compute_type(ctx.out_dtype())
    return ctx.map(lambda x, y: binary("div", x, y), a, b, compute=compute)


@lower("aten.div.Tensor_mode", "aten.div.Scalar_mode", source=_BINARY)
def lower_div_mode(ctx: Context, a: Operand, b: Operand, rounding_mode: str | None = None) -> Value:
    """Division rounded down or towards zero."""
    if rounding_mode is None:
        return lower_div(ctx, a, b)
    op = {"floor": "floordiv", "trunc": "truncdiv"}[rounding_mode]
    return ctx.map(lambda x, y: binary(op, x, y), a, b)


def _promoting(op: str) -> Callable[..., Value]:
    def rule(ctx: Context, a: Operand, b: Operand) -> Value:
        return ctx.map(lambda x, y: binary(op, x, y), a, b)

    return rule


_PLAIN_BINARY = {
    "floor_divide.default": "floordiv",
    "floor_divide.Scalar": "floordiv",
    "remainder.Tensor": "mod",
    "remainder.Scalar": "mod",
    "fmod.Tensor": "rem",
    "fmod.Scalar": "rem",
    "maximum.default": "max",
    "max.other": "max",
    "min.other": "min",
    "minimum.default": "min",
    "bitwise_and.Tensor": "and",
    "bitwise_and.Scalar": "and",
    "bitwise_or.Tensor": "or",
    "bitwise_or.Scalar": "or",
    "bitwise_xor.Tensor": "xor",
    "bitwise_xor.Scalar": "xor",
    "__and__.Tensor": "and",
    "__and__.Scalar": "and",
    "__or__.Tensor": "or",
    "__or__.Scalar": "or",
    "__xor__.Tensor": "xor",
    "__xor__.Scalar": "xor",
    "bitwise_left_shift.Tensor": "shl",
    "bitwise_left_shift.Tensor_Scalar": "shl",
    "bitwise_right_shift.Tensor": "shr",
    "bitwise_right_shift.Tensor_Scalar": "shr",
    "__lshift__.Tensor": "shl",
    "__lshift__.Scalar": "shl",
    "__rshift__.Tensor": "shr",
    "__rshift__.Scalar": "shr",
}
for _name, _op in _PLAIN_BINARY.items():
    lower(f"aten.{_name}", source=_BINARY)(_promoting(_op))

_COMPARE = ("eq", "ne", "lt", "le", "gt", "ge")
for _name in _COMPARE:
    lower(f"aten.{_name}.Tensor", f"aten.{_name}.Scalar", source=_BINARY)(_promoting(_name))


def _logical(op: str) -> Callable[..., Value]:
    def rule(ctx: Context, a: Value, b: Value) -> Value:
        return ctx.map(lambda x, y: binary(op, x, y), a, b, compute=DType.bool)

    return rule


for _name, _op in (("and", "and"), ("or", "or"), ("xor", "xor")):
    lower(f"aten.logical_{_name}.default", source=_BINARY)(_logical(_op))


def _is_test(op: str) -> Callable[..., Value]:
    def rule(ctx: Context, x: Value) -> Value:
        if not x.dtype.is_float:
            return ctx.map(lambda a: const(False, DType.bool), x)
        return ctx.map(lambda a: unary(op, a), x)

    return rule


for _name in ("isnan", "isinf"):
    lower(f"aten.{_name}.default", source=_OPS)(_is_test(_name))


@lower("aten.atan2.default", source=_BINARY)
def lower_atan2(ctx: Context, a: Value, b: Value) -> Value:
    """Angle of ``(b, a)``."""
    compute = dtypes.compute_type(ctx.out_dtype())
    return ctx.map(lambda x, y: binary("atan2", x, y), a, b, compute=compute)


def _number_or_other(op: str) -> Callable[..., Value]:
    def rule(ctx: Context, a: Value, b: Value) -> Value:
        def body(x: Expr, y: Expr) -> Expr:
            if not x.dtype.is_float:
                return binary(op, x, y)
            rest = select(unary("isnan", y), x, binary(op, x, y))
            return select(unary("isnan", x), y, rest)

        return ctx.map(body, a, b)

    return rule


lower("aten.fmax.default", source=_BINARY)(_number_or_other("max"))
lower("aten.fmin.default", source=_BINARY)(_number_or_other("min"))


@lower("aten.pow.Tensor_Scalar", source="ATen/native/cpu/PowKernel.cpp")
def lower_pow_scalar(ctx: Context, x: Value, exponent: Scalar) -> Value:
    """Power by a literal; small exponents become products, as in ATen."""
    compute = dtypes.compute_type(ctx.out_dtype())
    return ctx.map(lambda a: power(a, exponent), x, compute=compute)


def power(a: Expr, exponent: Scalar) -> Expr:
    """``a ** exponent`` by the special cases that ATen has."""
    squared = binary("mul", a, a)
    if exponent == 0:
        return const(1, a.dtype)
    if exponent == 1:
        return a
    if exponent == 2:
        return squared
    if exponent == 3:
        return binary("mul", squared, a)
    if a.dtype.is_float:
        if exponent == 0.5:
            return unary("sqrt", a)
        if exponent == -0.5:
            return unary("rsqrt", a)
        if exponent == -1:
            return unary("reciprocal", a)
        if exponent == -2:
            return unary("reciprocal", squared)
    return binary("pow", a, literal(exponent, a.dtype))


@lower("aten.pow.Tensor_Tensor", "aten.pow.Scalar", source="ATen/native/cpu/PowKernel.cpp")
def lower_pow(ctx: Context, a: Operand, b: Value) -> Value:
    """Power by a tensor."""
    return ctx.map(lambda x, y: binary("pow", x, y), a, b)


@lower("aten.addcmul.default", source="ATen/native/PointwiseOps.cpp")
def lower_addcmul(ctx: Context, x: Value, a: Value, b: Value, value: Scalar = 1) -> Value:
    """``x + value * a * b``."""

    def body(x: Expr, a: Expr, b: Expr) -> Expr:
        left = a if value == 1 else binary("mul", literal(value, a.dtype), a)
        return binary("add", x, binary("mul", left, b))

    return ctx.map(body, x, a, b)


@lower("aten.addcdiv.default", source="ATen/native/PointwiseOps.cpp")
def lower_addcdiv(ctx: Context, x: Value, a: Value, b: Value, value: Scalar = 1) -> Value:
    """``x + value * a / b``."""

    def body(x: Expr, a: Expr, b: Expr) -> Expr:
        left = a if value == 1 else binary("mul", literal(value, a.dtype), a)
        return binary("add", x, binary("div", left, b))

    return ctx.map(body, x, a, b)


@lower("aten.lerp.Tensor", "aten.lerp.Scalar", source="ATen/native/Lerp.h")
def lower_lerp(ctx: Context, a: Value, b: Value, weight: Operand) -> Value:
    """Linear interpolation, from the nearer end."""

    def body(a: Expr, b: Expr, w: Expr) -> Expr:
        delta = binary("sub", b, a)
        near = binary("add", a, binary("mul", w, delta))
        far = binary("sub", b, binary("mul", delta, binary("sub", const(1, w.dtype), w)))
        return select(binary("lt", unary("abs", w), const(0.5, w.dtype)), near, far)

    return ctx.map(body, a, b, weight)


# -------------------------------------------------------------------------- selection and casts


@lower("aten.where.self", "aten.where.ScalarOther", "aten.where.ScalarSelf", "aten.where.Scalar",
       source="ATen/native/TensorCompare.cpp")  # fmt: skip
def lower_where(ctx: Context, test: Value, a: Operand, b: Operand) -> Value:
    """``a`` where ``test``, else ``b``."""
    return choose(ctx, test, a, b, ctx.out_dtype())


def choose(ctx: Context, test: Value, a: Operand, b: Operand, out: DType) -> Value:
    """Select element by element; selection moves values, so it needs no arithmetic type."""
    sides = [ctx.convert(as_value(v, out), out) for v in (a, b)]
    dims, (test, x, y) = ctx.unify([ctx.convert(test, DType.bool), *sides])
    if isinstance(test.elem, Const):
        chosen = x if test.elem.value else y
        return _broadcast(chosen, dims)
    if all(v.is_load_free() for v in (test, x, y)):
        return Value(dims, select(*(_broadcast(v, dims).elem for v in (test, x, y))))
    return ctx.pointwise(dims, lambda s: (select(s.read(test), s.read(x), s.read(y)),))[0]


def _broadcast(value: Value, dims: tuple[Dim, ...]) -> Value:
    return Value(tuple(dims), read(value, dims, point(dims), ranges_of(dims)))


@lower(
    "aten.masked_fill.Scalar",
    "aten.masked_fill.Tensor",
    source="ATen/native/TensorAdvancedIndexing.cpp",
)
def lower_masked_fill(ctx: Context, x: Value, mask: Value, value: Operand) -> Value:
    """``value`` where ``mask``, else ``x``."""
    return choose(ctx, mask, value, x, x.dtype)


@lower("aten._to_copy.default", "aten.to.dtype", "aten.to.device", "aten.to.dtype_layout",
       "aten.to.other", "aten.type_as.default", "prims.convert_element_type.default",
       source="ATen/native/TensorConversions.cpp")  # fmt: skip
def lower_to_copy(ctx: Context, x: Value, *args: Any, **keywords: Any) -> Value:
    """Change of element type; of device and layout there is one only."""
    return ctx.convert(x, ctx.out_dtype())


@lower("aten.copy.default", source="ATen/native/Copy.cpp")
def lower_copy(ctx: Context, x: Value, source: Value, non_blocking: bool = False) -> Value:
    """``source`` broadcast to the shape of ``x``, in its type."""
    return ctx.convert(expand(source, x.dims), x.dtype)


@lower("aten.clone.default", "aten.alias.default", "aten.detach.default",
          "aten.contiguous.default", "aten.positive.default",
          source="ATen/native/TensorFactories.cpp")  # fmt: skip
def lower_identity(ctx: Context, x: Value, **keywords: Any) -> Value:
    """Values never change, so a copy is the value."""
    return x


@lower("aten.dropout.default", "aten.native_dropout.default", source="ATen/native/Dropout.cpp")
def lower_dropout(
    ctx: Context, x: Value, p: float, train: bool | None
) -> Value | tuple[Value, Value]:
    """Identity outside training."""
    if train and p != 0:
        raise NoRule
    if isinstance(ctx.meta, tuple | list):
        return x, ctx.map(lambda a: const(True, DType.bool), x, out=DType.bool)
    return x


@lower("aten.clamp.default", source="ATen/native/TensorCompare.cpp")
def lower_clamp(
    ctx: Context, x: Value, low: Scalar | None = None, high: Scalar | None = None
) -> Value:
    """Clip to literals; NaN stays, a NaN bound gives NaN."""

    def body(a: Expr) -> Expr:
        a = a if low is None else clamp_min(a, low)
        return a if high is None else clamp_max(a, high)

    return ctx.map(body, x, compute=dtypes.compute_type(ctx.out_dtype()))


@lower("aten.clamp.Tensor", source="ATen/native/TensorCompare.cpp")
def lower_clamp_tensor(
    ctx: Context, x: Value, low: Value | None = None, high: Value | None = None
) -> Value:
    """Clip to tensors."""
    bounds = [b for b in (low, high) if b is not None]

    def body(a: Expr, *rest: Expr) -> Expr:
        out, others = a, iter(rest)
        out = out if low is None else binary("max", out, next(others))
        return out if high is None else binary("min", out, next(others))

    return ctx.map(body, x, *bounds, compute=dtypes.compute_type(ctx.out_dtype()))


def _one_sided(op: str) -> Callable[..., Value]:
    def rule(ctx: Context, x: Value, bound: Operand) -> Value:
        compute = dtypes.compute_type(ctx.out_dtype())
        return ctx.map(lambda a, b: binary(op, a, b), x, bound, compute=compute)

    return rule


for _name, _op in (("clamp_min", "max"), ("clamp_max", "min")):
    lower(f"aten.{_name}.default", f"aten.{_name}.Tensor", source="ATen/native/TensorCompare.cpp")(
        _one_sided(_op)
    )


@lower("aten.nan_to_num.default", source=_OPS)
def lower_nan_to_num(
    ctx: Context,
    x: Value,
    nan: float | None = None,
    posinf: float | None = None,
    neginf: float | None = None,
) -> Value:
    """Replace NaN and infinities by numbers."""
    if not x.dtype.is_float:
        return x
    limits = dtypes.finite_limit(x.dtype)
    high = limits if posinf is None else posinf
    low = -limits if neginf is None else neginf

    def body(a: Expr) -> Expr:
        infinite = binary("gt", a, const(0, a.dtype))
        big = select(infinite, literal(high, a.dtype), literal(low, a.dtype))
        whole = select(unary("isinf", a), big, a)
        return select(unary("isnan", a), literal(0.0 if nan is None else nan, a.dtype), whole)

    return ctx.map(body, x)
