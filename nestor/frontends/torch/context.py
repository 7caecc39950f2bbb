"""What a lowering rule works with: the builder, and facts about the call being lowered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from nestor.frontends.torch import dtypes
from nestor.frontends.torch.builder import Body, Builder, Space
from nestor.frontends.torch.fold import fold_indices
from nestor.frontends.torch.sizes import affine_from_torch, size_from_torch
from nestor.frontends.torch.value import Dim, Value, point, ranges_of
from nestor.ir.affine import Affine, Interval, affine
from nestor.ir.expr import Cast, Const, Expr, Index, Load, Select, binary, const, walk
from nestor.ir.program import Symbol
from nestor.ir.types import DType

Scalar = bool | int | float
Operand = Value | Scalar | Affine
"""What an element-wise operator takes: a tensor, a number, or a symbolic size."""
_MAX_DEFERRED_NODES = 48


class Context(Builder):
    """A ``Builder`` while one operator is lowered.

    Attributes:
        meta: the fake result (tensor, or tuple of them) that export computed.
        used: which results of a multi-result operator anybody reads.
    """

    meta: Any = None
    used: frozenset[int] = frozenset()

    def __init__(self, symbols: dict[str, Symbol]):
        super().__init__(symbols)
        self.constants: dict[tuple[tuple[float, ...], DType], tuple[str, torch.Tensor]] = {}

    def out_dtype(self, position: int | None = None) -> DType:
        """Element type of the result (or of one of several)."""
        meta = self.meta if position is None else self.meta[position]
        return dtypes.from_torch(meta.dtype)

    def out_shape(self, position: int | None = None) -> list[Affine]:
        """Shape of the result; Unsupported if a size is a product of symbols."""
        meta = self.meta if position is None else self.meta[position]
        return [affine_from_torch(s) for s in meta.shape]

    def out_dims(self, position: int | None = None) -> tuple[Dim, ...]:
        """Dimensions of the result, symbolic products as components."""
        meta = self.meta if position is None else self.meta[position]
        return tuple(dim_from_torch(s) for s in meta.shape)

    def map(
        self,
        function: Callable[..., Expr],
        *operands: Operand,
        compute: DType | None = None,
        out: DType | None = None,
    ) -> Value:
        """Apply a scalar function element by element, broadcasting.

        Operands are cast to ``compute`` (default: the type that arithmetic on the promoted type is
        done in), the result to ``out`` (default: the operator's). Without any load the result
        stays an expression (masks from ``arange``); otherwise it is a statement.
        """
        if compute is None:
            compute = dtypes.compute_type(self.promoted(*operands))
        out = self.out_dtype() if out is None else out
        values = [v for v in operands if isinstance(v, Value)]
        dims, fitted = self.unify(values)

        def body(read: Callable[[Value], Expr]) -> Expr:
            rest = iter(fitted)
            arguments = [
                cast(read(next(rest)), compute) if isinstance(v, Value) else number(v, compute)
                for v in operands
            ]
            return cast(function(*arguments), out)

        if all(v.is_load_free() for v in fitted):
            space = Space(dims, point(dims), len(dims), self.symbol_ranges())
            elem = fold_indices(body(space.read), self.placeholder_ranges(dims))
            if sum(1 for _ in walk(elem)) <= _MAX_DEFERRED_NODES:
                return Value(dims, elem)
        return self.pointwise(dims, lambda s: (fold_indices(body(s.read), s.ranges),))[0]

    def view_or_pointwise(self, dims: tuple[Dim, ...], body: Body) -> Value:
        """A view if the one element that ``body`` gives is a plain load, else a statement."""
        space = Space(dims, point(dims), len(dims), self.placeholder_ranges(dims))
        (elem,) = body(space)
        if is_plain_load(elem):
            return Value(dims, elem)
        return self.pointwise(dims, body)[0]

    def placeholder_ranges(self, dims: Sequence[Dim]) -> dict[str, Interval]:
        """Bounds of symbols and of the placeholders of ``dims``."""
        return self.symbol_ranges() | ranges_of(dims)

    def constant_vector(self, values: Sequence[float], dtype: DType) -> str:
        """A constant tensor of known values; returns its name."""
        tensor = torch.tensor(list(values), dtype=dtypes.to_torch(dtype))
        key = (tuple(values), dtype)
        if key not in self.constants:
            name = self.tensor(f"c_{self.hint}", (affine(len(tensor)),), dtype, "constant")
            self.constants[key] = (name, tensor)
        return self.constants[key][0]

    def promoted(self, *operands: Operand) -> DType:
        """PyTorch's result type of the operands."""
        return dtypes.promote(
            *(
                (v.dtype, v.rank) if isinstance(v, Value) else 1 if isinstance(v, Affine) else v
                for v in operands
            )
        )

    def convert(self, value: Value, dtype: DType) -> Value:
        """``value`` in another element type."""
        if value.dtype is dtype:
            return value
        return self.map(lambda x: x, value, compute=value.dtype, out=dtype)


def cast(x: Expr, dtype: DType) -> Expr:
    """``x`` converted; literals are converted now where that is exact by definition."""
    if x.dtype is dtype:
        return x
    if isinstance(x, Const) and isinstance(x.value, (bool, int)):
        if dtype.is_float and abs(x.value) < 1 << 11:
            return const(float(x.value), dtype)
        if x.dtype is DType.bool and not dtype.is_float:
            return const(int(x.value), dtype)
    if isinstance(x, Index) and dtype in (DType.i64, DType.i32):
        return Index(value=x.value, dtype=dtype)
    return Cast(x=x, dtype=dtype)


def literal(value: Scalar, dtype: DType) -> Const:
    """A Python scalar as PyTorch passes it to a kernel: converted to the computing type."""
    if dtype is DType.bool:
        return const(bool(value), dtype)
    return const(float(value) if dtype.is_float else int(value), dtype)


def number(value: Scalar | Affine, dtype: DType) -> Expr:
    """A Python scalar or a symbolic size in the computing type."""
    return index_value(value, dtype) if isinstance(value, Affine) else literal(value, dtype)


def as_value(x: Operand, dtype: DType) -> Value:
    """A tensor, or a number as a zero-dimensional one of ``dtype``."""
    return x if isinstance(x, Value) else Value((), number(x, dtype))


def dim_from_torch(size: Any) -> Dim:
    """A dimension of a fake tensor."""
    whole = size_from_torch(size)
    extent = whole.as_affine()
    if extent is not None:
        return (extent,)
    head = () if whole.coefficient == 1 else (affine(whole.coefficient),)
    return (*whole.factors, *head)


def dims_of(shape: Sequence[Affine | int]) -> tuple[Dim, ...]:
    """Single-component dimensions."""
    return tuple((affine(s),) for s in shape)


def index_value(a: Affine, dtype: DType) -> Expr:
    """An affine as a scalar of ``dtype``."""
    if a.is_const and (not dtype.is_float or abs(a.const) < 1 << 24):
        return const(a.const, dtype)
    return cast(Index(value=a), dtype)


def select(test: Expr, a: Expr, b: Expr) -> Select:
    """Shorthand for ``Select``."""
    return Select(condition=test, a=a, b=b)


def is_plain_load(elem: Expr) -> bool:
    """Whether ``elem`` is an unconditional load with affine indices."""
    return (
        isinstance(elem, Load)
        and not elem.predicate
        and all(isinstance(i, Affine) for i in elem.indices)
    )


def clamp_min(x: Expr, low: Scalar) -> Expr:
    """``max(x, low)``; NaN stays."""
    return binary("max", x, literal(low, x.dtype))


def clamp_max(x: Expr, high: Scalar) -> Expr:
    """``min(x, high)``; NaN stays."""
    return binary("min", x, literal(high, x.dtype))
