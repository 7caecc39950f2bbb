"""Tensors made of nothing: constants, ranges, identity."""

from __future__ import annotations

from typing import Any

from nestor.errors import Unsupported
from nestor.frontends.torch.context import Context, Scalar, cast, index_value, literal
from nestor.frontends.torch.registry import NoRule, lower
from nestor.frontends.torch.rules_pointwise import choose
from nestor.frontends.torch.sizes import affine_from_torch
from nestor.frontends.torch.value import Value, full, linear_placeholder, scalar
from nestor.frontends.torch.views import expand
from nestor.ir.expr import Index, Select, binary, const
from nestor.ir.types import DType

_SOURCE = "ATen/native/TensorFactories.cpp"


def _filled(ctx: Context, value: Any) -> Value:
    if not isinstance(value, bool | int | float):
        value = affine_from_torch(value)
        return Value(ctx.out_dims(), index_value(value, ctx.out_dtype()))
    dtype = ctx.out_dtype()
    return full(ctx.out_dims(), literal(value, dtype).value, dtype)


@lower("aten.full.default", "aten.new_full.default", "aten.full_like.default", "aten.fill.Scalar",
       source=_SOURCE)  # fmt: skip
def lower_full(ctx: Context, size: Any, *args: Any, **keywords: Any) -> Value:
    """One value everywhere; ``new_full`` takes the size second."""
    return _filled(ctx, args[-1] if args else keywords["fill_value"])


@lower("aten.fill.Tensor", source=_SOURCE)
def lower_fill_tensor(ctx: Context, x: Value, value: Value) -> Value:
    """A zero-dimensional tensor everywhere."""
    return expand(ctx.convert(value, ctx.out_dtype()), x.dims)


@lower("aten.zeros.default", "aten.zeros_like.default", "aten.new_zeros.default", source=_SOURCE)
def lower_zeros(ctx: Context, *args: Any, **keywords: Any) -> Value:
    """Zeros."""
    return _filled(ctx, 0)


@lower("aten.ones.default", "aten.ones_like.default", "aten.new_ones.default", source=_SOURCE)
def lower_ones(ctx: Context, *args: Any, **keywords: Any) -> Value:
    """Ones."""
    return _filled(ctx, 1)


@lower("aten.empty.memory_format", "aten.empty_like.default", "aten.new_empty.default",
       "aten.empty_strided.default", "aten.new_empty_strided.default",
       "aten.empty_permuted.default",
       source=_SOURCE)  # fmt: skip
def lower_empty(ctx: Context, *args: Any, **keywords: Any) -> Value:
    """Undefined contents: zeros are as good as any."""
    return _filled(ctx, 0)


@lower("aten.scalar_tensor.default", source=_SOURCE)
def lower_scalar_tensor(ctx: Context, value: Any, **keywords: Any) -> Value:
    """A zero-dimensional tensor."""
    return _filled(ctx, value)


@lower("aten.arange.default", "aten.arange.start", "aten.arange.start_step", "prims.iota.default",
       source="ATen/native/RangeFactories.cpp")  # fmt: skip
def lower_arange(ctx: Context, *args: Any, **keywords: Any) -> Value:
    """``start + step * i``."""
    if "start" in keywords:  # prims.iota
        start, step = keywords["start"], keywords["step"]
    else:
        start = args[0] if len(args) > 1 else 0
        step = args[2] if len(args) > 2 else 1
    dims, dtype = ctx.out_dims(), ctx.out_dtype()
    index = linear_placeholder(dims, 0)
    if index is None:
        raise Unsupported("arange over a product of symbolic sizes; make one of them static")
    if isinstance(start, float) or isinstance(step, float):
        # ATen accumulates in double for every float type.
        steps = binary("mul", index_value(index, DType.f64), const(step, DType.f64))
        return Value(dims, cast(binary("add", const(start, DType.f64), steps), dtype))
    first, by = affine_from_torch(start), affine_from_torch(step)
    if not by.is_const:
        raise NoRule
    return Value(dims, index_value(first + index * by.const, dtype))


@lower("aten.linspace.default", source="ATen/native/cpu/RangeFactoriesKernel.cpp")
def lower_linspace(ctx: Context, start: Scalar, end: Scalar, steps: int, **keywords: Any) -> Value:
    """Evenly spaced points, counted from the nearer end."""
    dims, dtype = ctx.out_dims(), ctx.out_dtype()
    if not dtype.is_float or dtype.is_storage_only:
        raise NoRule
    if steps == 1:
        return full(dims, float(start), dtype)
    index = linear_placeholder(dims, 0)
    assert index is not None
    step = const((float(end) - float(start)) / (steps - 1), dtype)
    low = binary("add", const(start, dtype), binary("mul", step, index_value(index, dtype)))
    rest = index_value((steps - 1) - index, dtype)
    high = binary("sub", const(end, dtype), binary("mul", step, rest))
    test = binary("lt", Index(value=index), const(steps // 2, DType.i64))
    return Value(dims, Select(condition=test, a=low, b=high))


@lower("aten.eye.default", "aten.eye.m", source=_SOURCE)
def lower_eye(ctx: Context, *args: Any, **keywords: Any) -> Value:
    """Ones on the diagonal."""
    dims, dtype = ctx.out_dims(), ctx.out_dtype()
    return triangle_select(dims, scalar(1, dtype), scalar(0, dtype), "eq", 0)


@lower("aten.tril.default", source="ATen/native/TriangularOps.cpp")
def lower_tril(ctx: Context, x: Value, diagonal: int = 0) -> Value:
    """Keep column ≤ row + diagonal."""
    return _triangle(ctx, x, "le", diagonal)


@lower("aten.triu.default", source="ATen/native/TriangularOps.cpp")
def lower_triu(ctx: Context, x: Value, diagonal: int = 0) -> Value:
    """Keep column ≥ row + diagonal."""
    return _triangle(ctx, x, "ge", diagonal)


def _triangle(ctx: Context, x: Value, op: str, diagonal: int) -> Value:
    x = ctx.flat(ctx.flat(x, x.rank - 1), x.rank - 2)
    zero = scalar(0, x.dtype)
    if x.is_load_free():
        return triangle_select(x.dims, x, zero, op, diagonal)
    test = triangle_select(x.dims[-2:], scalar(1, DType.bool), scalar(0, DType.bool), op, diagonal)
    return choose(ctx, test, x, zero, x.dtype)


def triangle_select(dims: Any, a: Value, b: Value, op: str, diagonal: int) -> Value:
    """``a`` where column ``op`` row + diagonal (last two dimensions), else ``b``; load-free."""
    row, column = linear_placeholder(dims, len(dims) - 2), linear_placeholder(dims, len(dims) - 1)
    assert row is not None and column is not None
    test = binary(op, Index(value=column - row), const(diagonal, DType.i64))
    return Value(tuple(dims), Select(condition=test, a=a.elem, b=b.elem))
