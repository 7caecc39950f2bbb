"""Exact algebraic rules on scalar expressions, given the ranges of indices.

Every rule keeps each bit of the result, NaNs (as a class), infinities and the sign of zero
included. The one rule with another rounding is ``pow(x, 3) → (x*x)*x`` on floats, as PyTorch's own
kernels compute it (two roundings instead of one).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from nestor.ir import numeric
from nestor.ir.affine import ZERO, Affine, Interval
from nestor.ir.expr import (
    COMPARE,
    Binary,
    Cast,
    Const,
    Expr,
    Index,
    IndexExpr,
    Load,
    Select,
    Unary,
    const,
    map_children,
)
from nestor.ir.types import DType

Ranges = Mapping[str, Interval]
Shapes = Mapping[str, Sequence[Affine]]

_MANTISSA_BITS = {
    DType.f64: 53, DType.f32: 24, DType.f16: 11, DType.bf16: 8, DType.f8e4m3: 4, DType.f8e5m2: 3,
}  # fmt: skip
_EXPONENT_ORDER = {
    DType.f8e4m3: -1, DType.f8e5m2: 0, DType.f16: 0, DType.bf16: 1, DType.f32: 1, DType.f64: 2,
}  # fmt: skip
_COMMUTATIVE = frozenset("add mul min max and or xor eq ne".split())
_FOLDED_UNARY = frozenset("neg abs sign not isnan isinf floor ceil trunc round sqrt".split())
_NOT_FOLDED_BINARY = frozenset("pow atan2 floordiv truncdiv mod rem shl shr".split())
_NEGATED = {"eq": "ne", "ne": "eq"}
_NEGATED_INT = {"lt": "ge", "ge": "lt", "le": "gt", "gt": "le", **_NEGATED}
_MIRRORED = {"lt": "gt", "gt": "lt", "le": "ge", "ge": "le"}


def simplify_expr(node: Expr, ranges: Ranges, shapes: Shapes) -> Expr:
    """Simplify bottom-up; the same object when nothing changed.

    Args:
        ranges: inclusive bounds of indices and symbols.
        shapes: logical shapes of tensors (an index of a dimension of extent 1 becomes 0).
    """
    node = map_children(node, lambda child: simplify_expr(child, ranges, shapes))
    for _ in range(8):
        new = _simplify_once(node, ranges, shapes)
        if new is node:
            return node
        node = new
    return node


def _simplify_once(node: Expr, ranges: Ranges, shapes: Shapes) -> Expr:
    match node:
        case Index():
            return _index(node, ranges)
        case Load():
            return _load(node, ranges, shapes)
        case Unary():
            return _unary(node)
        case Binary():
            return _binary(node, ranges)
        case Select():
            return _select(node)
        case Cast():
            return _cast(node, ranges)
        case _:
            return node


def simplify_affine(value: Affine, ranges: Ranges) -> Affine:
    """Decide ``//`` and ``%`` by ranges; variables of a single value become constants."""
    new = value.simplify(ranges)
    fixed = {
        a: Affine((), lo)
        for a, _ in new.terms
        if isinstance(a, str) and (lo := _single_value(a, ranges)) is not None
    }
    if fixed:
        new = new.substitute(fixed)
    return value if new == value else new


def _single_value(name: str, ranges: Ranges) -> int | None:
    lo, hi = ranges.get(name, (None, None))
    return lo if lo is not None and lo == hi else None


# ------------------------------------------------------------------------------- indices, loads


def _index(node: Index, ranges: Ranges) -> Expr:
    value = simplify_affine(node.value, ranges)
    if value.is_const:
        return const(numeric.constant(value.const, node.dtype).item(), node.dtype)
    return node if value is node.value else Index(value=value, dtype=node.dtype)


def _load(node: Load, ranges: Ranges, shapes: Shapes) -> Expr:
    shape = shapes.get(node.tensor)
    indices: list[IndexExpr] = []
    for d, index in enumerate(node.indices):
        if shape is not None and shape[d].is_const and shape[d].const == 1:
            indices.append(ZERO)
        elif isinstance(index, Affine):
            indices.append(simplify_affine(index, ranges))
        elif isinstance(index, Index) and index.dtype is DType.i64:
            indices.append(simplify_affine(index.value, ranges))
        elif isinstance(index, Const):
            indices.append(Affine((), int(index.value)))
        else:
            indices.append(index)
    predicate, holds = simplify_constraints(node.predicate, ranges)
    if not holds:
        assert node.other is not None
        return node.other
    new = tuple(indices)
    if new == node.indices and predicate == node.predicate:
        return node
    other = node.other if predicate else None
    return replace(node, indices=new, predicate=predicate, other=other)


def simplify_constraints(
    constraints: Sequence[Affine], ranges: Ranges
) -> tuple[tuple[Affine, ...], bool]:
    """Drop what the ranges imply; the second result is False if a constraint can never hold."""
    kept: list[Affine] = []
    for constraint in constraints:
        constraint = simplify_affine(constraint, ranges)
        lo, hi = constraint.bounds(ranges)
        if lo is not None and lo >= 0:
            continue
        if hi is not None and hi < 0:
            return (), False
        if constraint not in kept:
            kept.append(constraint)
    return tuple(kept), True


# --------------------------------------------------------------------------------------- unary


def _unary(node: Unary) -> Expr:
    x = node.x
    if isinstance(x, Const) and node.op in _FOLDED_UNARY and not node.dtype.is_storage_only:
        return _evaluate(lambda: numeric.unary(node.op, _scalar(x), x.dtype), node.dtype) or node
    if isinstance(x, Unary):
        if node.op == x.op == "neg" or (node.op == x.op == "not"):
            return x.x
        if node.op == "abs" and x.op in ("neg", "abs"):
            return Unary(op="abs", x=x.x)
        if node.op == x.op and node.op in ("floor", "ceil", "trunc", "round"):
            return x
    if node.op == "not" and isinstance(x, Binary) and x.op in COMPARE:
        table = _NEGATED if x.a.dtype.is_float else _NEGATED_INT
        if x.op in table:
            return Binary(op=table[x.op], a=x.a, b=x.b)
    if node.op in ("isnan", "isinf") and not x.dtype.is_float:
        return const(False, DType.bool)
    return node


def _scalar(node: Const) -> Any:
    return numeric.constant(node.value, node.dtype)


def _evaluate(f: Callable[[], Any], dtype: DType) -> Const | None:
    with numeric.quiet():
        value = f()
    return const(value.item(), dtype)


# -------------------------------------------------------------------------------------- binary


def _binary(node: Binary, ranges: Ranges) -> Expr:
    op, a, b = node.op, node.a, node.b
    if isinstance(a, Const) and isinstance(b, Const):
        folded = _fold_binary(op, a, b, node.dtype)
        if folded is not None:
            return folded
    if isinstance(a, Const) and not isinstance(b, Const):
        if op in _COMMUTATIVE:
            return Binary(op=op, a=b, b=a)
        if op in _MIRRORED:
            return Binary(op=_MIRRORED[op], a=b, b=a)
    if op in COMPARE:
        return _compare(node, ranges)
    if a.dtype is DType.bool:
        return _boolean(node)
    if a.dtype.is_float:
        return _float_binary(node)
    return _integer_binary(node)


def _fold_binary(op: str, a: Const, b: Const, dtype: DType) -> Const | None:
    if a.dtype.is_storage_only:
        return None
    if op in _NOT_FOLDED_BINARY and (a.dtype.is_float or b.value == 0 or op in ("shl", "shr")):
        return None
    if op == "div" and not a.dtype.is_float:
        return None
    return _evaluate(lambda: numeric.binary(op, _scalar(a), _scalar(b)), dtype)


def _float_binary(node: Binary) -> Expr:
    op, a, b = node.op, node.a, node.b
    if op == "pow" and isinstance(b, Const):
        return _pow(node, b)
    if op in ("min", "max") and a == b:
        return a
    if op == "add" and isinstance(b, Unary) and b.op == "neg":
        return Binary(op="sub", a=a, b=b.x)
    if op == "sub" and isinstance(b, Unary) and b.op == "neg":
        return Binary(op="add", a=a, b=b.x)
    if not isinstance(b, Const):
        return node
    value = float(b.value)
    negative_zero = value == 0 and math.copysign(1, value) < 0
    positive_zero = value == 0 and not negative_zero
    if (op == "add" and negative_zero) or (op == "sub" and positive_zero):
        return a
    if op in ("mul", "div") and value == 1:
        return a
    if op in ("mul", "div") and value == -1:
        return Unary(op="neg", x=a)
    if op == "div" and _is_power_of_two(value):
        return Binary(op="mul", a=a, b=const(1 / value, b.dtype))
    return node


def _is_power_of_two(value: float) -> bool:
    """Whether dividing by ``value`` equals multiplying by its inverse, both well inside float32."""
    if value == 0 or not math.isfinite(value):
        return False
    mantissa, exponent = math.frexp(value)
    return abs(mantissa) == 0.5 and -100 < exponent < 100


def _pow(node: Binary, exponent: Const) -> Expr:
    x, value = node.a, exponent.value
    if value == 1:
        return x
    if value == 2:
        return Binary(op="mul", a=x, b=x)
    if value == 3:
        return Binary(op="mul", a=Binary(op="mul", a=x, b=x), b=x)
    if value == -1 and x.dtype.is_float:
        return Binary(op="div", a=const(1, x.dtype), b=x)
    return node


def _boolean(node: Binary) -> Expr:
    op, a, b = node.op, node.a, node.b
    if op in ("and", "or") and a == b:
        return a
    if not isinstance(b, Const):
        return node
    truth = bool(b.value)
    if op == "and":
        return a if truth else const(False, DType.bool)
    if op == "or":
        return const(True, DType.bool) if truth else a
    if op == "xor":
        return Unary(op="not", x=a) if truth else a
    return node


def _integer_binary(node: Binary) -> Expr:
    op, a, b = node.op, node.a, node.b
    if op == "pow" and isinstance(b, Const):
        return _pow(node, b)
    merged = _merge_indices(node)
    if merged is not None:
        return merged
    if op in ("min", "max", "and", "or") and a == b:
        return a
    if not isinstance(b, Const):
        return node
    value = int(b.value)
    if value == 0 and op in ("add", "sub", "or", "xor", "shl", "shr"):
        return a
    if value == 0 and op in ("mul", "and"):
        return const(0, node.dtype)
    if value == 1 and op in ("mul", "floordiv", "truncdiv"):
        return a
    if value == 1 and op in ("mod", "rem"):
        return const(0, node.dtype)
    return node


def _merge_indices(node: Binary) -> Expr | None:
    """Arithmetic on two index values (or one and a constant) is an index value again."""
    a, b = _as_affine(node.a), _as_affine(node.b)
    if node.dtype is not DType.i64 or a is None or b is None:
        return None
    value: Affine | None = None
    match node.op:
        case "add":
            value = a + b
        case "sub":
            value = a - b
        case "mul" if b.is_const:
            value = a * b.const
        case "mul" if a.is_const:
            value = b * a.const
        case "floordiv" if b.is_const and b.const > 0:
            value = a // b.const
        case "mod" if b.is_const and b.const > 0:
            value = a % b.const
    return None if value is None else Index(value=value)


def _as_affine(node: Expr) -> Affine | None:
    if isinstance(node, Index) and node.dtype is DType.i64:
        return node.value
    if isinstance(node, Const) and node.dtype is DType.i64 and abs(int(node.value)) < 1 << 40:
        return Affine((), int(node.value))
    return None


def _compare(node: Binary, ranges: Ranges) -> Expr:
    op, a, b = node.op, node.a, node.b
    left, right = _as_affine(a), _as_affine(b)
    if left is not None and right is not None:
        truth = _decide(op, (left - right).simplify(ranges).bounds(ranges))
        if truth is not None:
            return const(truth, DType.bool)
    if a == b and not a.dtype.is_float:
        return const(op in ("eq", "le", "ge"), DType.bool)
    if a.dtype is DType.bool and isinstance(b, Const) and op in ("eq", "ne"):
        return a if bool(b.value) == (op == "eq") else Unary(op="not", x=a)
    return node


def _decide(op: str, difference: Interval) -> bool | None:
    """The truth of ``difference op 0`` if the interval decides it."""
    lo, hi = difference
    low = -math.inf if lo is None else lo
    high = math.inf if hi is None else hi
    always = {
        "lt": high < 0,
        "le": high <= 0,
        "gt": low > 0,
        "ge": low >= 0,
        "eq": low == high == 0,
        "ne": low > 0 or high < 0,
    }
    never = {
        "lt": always["ge"],
        "le": always["gt"],
        "gt": always["le"],
        "ge": always["lt"],
        "eq": always["ne"],
        "ne": always["eq"],
    }
    return True if always[op] else False if never[op] else None


# --------------------------------------------------------------------------------- select, cast


def _select(node: Select) -> Expr:
    c, a, b = node.condition, node.a, node.b
    if isinstance(c, Const):
        return a if c.value else b
    if a == b:
        return a
    if isinstance(c, Unary) and c.op == "not":
        return Select(condition=c.x, a=b, b=a)
    if isinstance(a, Const) and isinstance(b, Const) and a.dtype is DType.bool:
        return c if a.value else Unary(op="not", x=c)
    return node


def _cast(node: Cast, ranges: Ranges) -> Expr:
    x = node.x
    if x.dtype is node.dtype:
        return x
    if isinstance(x, Const):
        folded = _cast_const(x, node.dtype)
        return node if folded is None else folded
    if isinstance(x, Cast) and is_lossless(x.x.dtype, x.dtype):
        return x.x if x.x.dtype is node.dtype else Cast(x=x.x, dtype=node.dtype)
    if isinstance(x, Index) and node.dtype.is_int:
        lo, hi = x.value.bounds(ranges)
        limit = 1 << (node.dtype.bits - 1)
        if lo is not None and hi is not None and max(-lo, hi) < limit and node.dtype.is_signed:
            return Index(value=x.value, dtype=node.dtype)
    return node


def _cast_const(x: Const, dtype: DType) -> Const | None:
    if x.dtype.is_float and not dtype.is_float and not math.isfinite(float(x.value)):
        return None
    return _evaluate(lambda: numeric.cast(_scalar(x), x.dtype, dtype), dtype)


def is_lossless(source: DType, target: DType) -> bool:
    """Whether every value of ``source`` is a value of ``target``."""
    if source is target or source is DType.bool:
        return True
    if target is DType.bool:
        return False
    if source.is_float:
        if not target.is_float:
            return False
        wide = _EXPONENT_ORDER[source] <= _EXPONENT_ORDER[target]
        return wide and _MANTISSA_BITS[source] <= _MANTISSA_BITS[target]
    magnitude = source.bits - (1 if source.is_signed else 0)
    if target.is_float:
        return magnitude <= _MANTISSA_BITS[target]
    if source.is_signed and not target.is_signed:
        return False
    return magnitude <= target.bits - (1 if target.is_signed else 0)
