"""Typed values of kernel expressions, and how types combine.

A value is *strong* (it came from an array or a typed scalar) or *weak* (a Python number: a literal,
a loop index, a size, a parameter annotated ``int`` or ``float``). A weak value takes the type of
the strong operand it meets; two strong ones are promoted as NumPy does. Arithmetic runs in the
type that results; storage types compute each operation in f32 and round.
Source: NumPy Enhancement Proposal 50.
"""

from __future__ import annotations

import ast
import math
from dataclasses import dataclass

import numpy as np

from nestor.frontends.python.annotations import combine_affine
from nestor.ir.affine import Affine, affine
from nestor.ir.expr import COMPARE, Binary, Cast, Const, Expr, Index, Select, Unary, const
from nestor.ir.narrow_floats import MEMORY
from nestor.ir.numeric import numpy_dtype
from nestor.ir.types import DType

_OPERATORS: dict[type[ast.operator], str] = {
    ast.Add: "add",
    ast.Sub: "sub",
    ast.Mult: "mul",
    ast.Div: "div",
    ast.FloorDiv: "floordiv",
    ast.Mod: "mod",
    ast.Pow: "pow",
    ast.BitAnd: "and",
    ast.BitOr: "or",
    ast.BitXor: "xor",
    ast.LShift: "shl",
    ast.RShift: "shr",
}
_FLOAT_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow)


class TypeProblem(Exception):
    """Types that an operation does not take; the message says which."""


@dataclass(frozen=True, slots=True)
class Value:
    """A typed expression; ``weak``: a Python number."""

    expr: Expr
    weak: bool = False

    @property
    def dtype(self) -> DType:
        """The type it is computed in (weak: i64 or f64)."""
        return self.expr.dtype

    @property
    def affine(self) -> Affine | None:
        """The integer that it is, if it is an affine one."""
        return self.expr.value if self.weak and isinstance(self.expr, Index) else None


def integer(value: Affine | int) -> Value:
    """A weak affine integer."""
    return Value(Index(value=affine(value)), weak=True)


def number(value: float | int | bool) -> Value:
    """A Python literal."""
    if isinstance(value, bool):
        return Value(const(value, DType.bool), weak=True)
    return integer(value) if isinstance(value, int) else Value(const(value, DType.f64), weak=True)


def promote(a: DType, b: DType) -> DType:
    """The type of two strong operands together, as NumPy promotes."""
    if a is b:
        return a
    for own, other in ((a, b), (b, a)):
        if own in MEMORY:
            return own if other is DType.bool else promote(DType.f32, other)
    joined = np.promote_types(numpy_dtype(a), numpy_dtype(b))
    for dtype in DType:
        if dtype not in MEMORY and numpy_dtype(dtype) == joined:
            return dtype
    raise TypeProblem(f"{a} and {b} have no common type here; convert one of them")


def common_type(a: Value, b: Value) -> tuple[DType, bool]:
    """The type in which two values meet, and whether the result is weak."""
    if a.weak == b.weak:
        if not a.weak:
            return promote(a.dtype, b.dtype), False
        return _weak_type(a.dtype, b.dtype), True
    strong, weak = (b, a) if a.weak else (a, b)
    if weak.dtype is DType.bool or strong.dtype.is_float:
        return strong.dtype if strong.dtype is not DType.bool else weak.dtype, False
    if weak.dtype.is_float:
        return DType.f64, False
    return (DType.i64 if strong.dtype is DType.bool else strong.dtype), False


def _weak_type(a: DType, b: DType) -> DType:
    for dtype in (DType.f64, DType.i64):
        if dtype in (a, b):
            return dtype
    return DType.bool


def convert(value: Value, dtype: DType) -> Expr:
    """``value`` as ``dtype``; a literal becomes one of that type."""
    expr = value.expr
    if isinstance(expr, Index) and expr.value.is_const:
        if dtype.is_int and not _fits(expr.value.const, dtype):
            raise TypeProblem(f"{expr.value.const} does not fit in {dtype}")
        return const(expr.value.const, dtype) if dtype is not DType.i64 else expr
    if expr.dtype is dtype:
        return expr
    if isinstance(expr, Const) and value.weak and dtype in (DType.f32, DType.f64):
        return const(float(np.float32(expr.value)) if dtype is DType.f32 else expr.value, dtype)
    return Cast(x=expr, dtype=dtype)


def _fits(value: int, dtype: DType) -> bool:
    low = -(1 << (dtype.bits - 1)) if dtype.is_signed else 0
    return low <= value < low + (1 << dtype.bits)


def _computed(dtype: DType) -> DType:
    """The type that arithmetic on ``dtype`` runs in."""
    return DType.f32 if dtype.is_storage_only else dtype


def _round_to(expr: Expr, dtype: DType) -> Expr:
    return expr if expr.dtype is dtype else Cast(x=expr, dtype=dtype)


def apply_operator(op: ast.operator, a: Value, b: Value) -> Value:
    """``a op b``. Raises: ``TypeProblem``."""
    name = _OPERATORS.get(type(op))
    if name is None:
        raise TypeProblem("this operator has no meaning on numbers")
    if a.affine is not None and b.affine is not None:
        folded = _fold_integers(op, a.affine, b.affine)
        if folded is not None:
            return folded
    if _is_literal(a) and _is_literal(b):
        literal = _fold_literals(op, a, b)
        if literal is not None:
            return literal
    dtype, weak = common_type(a, b)
    if isinstance(op, ast.Div) and not dtype.is_float:
        dtype = DType.f64
    if isinstance(op, ast.Pow) and b.affine is not None and b.affine.is_const:
        if b.affine.const == 2:  # as NumPy squares
            return apply_binary("mul", a, a)
        if b.affine.const == 1:
            return a
    if dtype.is_float and not isinstance(op, _FLOAT_OPERATORS):
        raise TypeProblem(f"this operator takes integers, not {dtype}")
    if dtype is DType.bool and name not in ("and", "or", "xor"):
        raise TypeProblem("arithmetic on truth values; write 1.0 if condition else 0.0")
    return _binary_in(name, a, b, dtype, weak)


def _fold_integers(op: ast.operator, a: Affine, b: Affine) -> Value | None:
    try:
        return integer(combine_affine(op, a, b))
    except ValueError:
        pass
    if a.is_const and b.is_const and isinstance(op, ast.Pow) and 0 <= b.const < 64:
        return integer(a.const**b.const)
    return None


def _is_literal(value: Value) -> bool:
    return _literal(value) is not None


def _literal(value: Value) -> float | int | None:
    whole = value.affine
    if whole is not None and whole.is_const:
        return whole.const
    if value.weak and isinstance(value.expr, Const) and value.expr.dtype is DType.f64:
        return value.expr.value
    return None


def _fold_literals(op: ast.operator, a: Value, b: Value) -> Value | None:
    """Python's own arithmetic on two literals; None where it raises."""
    x, y = _literal(a), _literal(b)
    assert x is not None and y is not None
    try:
        match op:
            case ast.Add():
                result = x + y
            case ast.Sub():
                result = x - y
            case ast.Mult():
                result = x * y
            case ast.Div():
                result = x / y
            case ast.Pow():
                result = x**y
            case _:
                return None
    except (ArithmeticError, ValueError):
        return None
    return number(result) if isinstance(result, (int, float)) else None


def _binary_in(name: str, a: Value, b: Value, dtype: DType, weak: bool) -> Value:
    inner = _computed(dtype)
    made: Expr = Binary(op=name, a=convert(a, inner), b=convert(b, inner))
    return Value(made if name in COMPARE else _round_to(made, dtype), weak)


def apply_binary(name: str, a: Value, b: Value) -> Value:
    """A named operation of ``nestor.ir.expr`` on promoted operands; comparisons give bool."""
    dtype, weak = common_type(a, b)
    if name in ("pow", "atan2", "div") and not dtype.is_float:
        dtype = DType.f64
    return _binary_in(name, a, b, dtype, weak)


def apply_unary(name: str, x: Value, *, as_float: bool = False) -> Value:
    """A named unary operation; ``as_float``: an integer operand becomes f64 first."""
    dtype = x.dtype
    if name == "neg" and x.affine is not None:
        return integer(-x.affine)
    if name in ("neg", "abs") and _is_literal(x):
        literal = _literal(x)
        assert literal is not None
        return number(-literal if name == "neg" else abs(literal))
    if as_float and not dtype.is_float:
        dtype = DType.f64
    if name == "sqrt" and _is_literal(x):
        literal = _literal(x)
        if literal is not None and literal >= 0:
            return number(math.sqrt(literal))
    if dtype is DType.bool and name != "not":
        raise TypeProblem(f"{name} of a truth value")
    made = Unary(op=name, x=convert(x, _computed(dtype)))
    if name in ("isnan", "isinf"):
        return Value(made)
    return Value(_round_to(made, dtype), x.weak)


def choose(condition: Expr, a: Value, b: Value) -> Value:
    """``a if condition else b``."""
    dtype, weak = common_type(a, b)
    return Value(Select(condition=condition, a=convert(a, dtype), b=convert(b, dtype)), weak)


def truth(value: Value) -> Expr:
    """``value`` as a condition: itself, or ``≠ 0``."""
    return value.expr if value.dtype is DType.bool else Cast(x=value.expr, dtype=DType.bool)


def dtype_named(name: str) -> DType:
    """The type that NumPy calls ``name``, e.g. ``float32``."""
    kinds = {"float": "f", "int": "i", "uint": "u"}
    letters = name.rstrip("0123456789")
    return DType(kinds[letters] + name[len(letters) :])
