"""Simplify index arithmetic that models write as tensors (``arange``, causal masks)."""

from __future__ import annotations

from collections.abc import Mapping

from nestor.ir.affine import Affine, Interval, affine
from nestor.ir.expr import Binary, Const, Expr, Index, Select, Unary, const, map_expr
from nestor.ir.types import DType

_AFFINE = {"add", "sub", "mul", "floordiv", "mod"}
_COMPARE = {"eq", "ne", "lt", "le", "gt", "ge"}


def fold_indices(node: Expr, ranges: Mapping[str, Interval]) -> Expr:
    """``node`` with affine arithmetic on i64 gathered into ``Index`` and decided tests removed.

    Args: ranges: bounds of the index variables.
    """

    def visit(n: Expr) -> Expr:
        match n:
            case Binary():
                return _binary(n, ranges)
            case Unary(op="neg", x=Index() as x) if x.dtype is DType.i64:
                return Index(value=-x.value)
            case Unary(op="not", x=Const() as c) if c.dtype is DType.bool:
                return const(not c.value, DType.bool)
            case Select(condition=Const() as c):
                return n.a if c.value else n.b
        return n

    return map_expr(node, visit)


def _binary(n: Binary, ranges: Mapping[str, Interval]) -> Expr:
    if n.op in ("and", "or") and n.dtype is DType.bool:
        return _logic(n)
    a, b = _affine_of(n.a), _affine_of(n.b)
    if a is None or b is None:
        return n
    if n.op in _COMPARE:
        decided = _compare(n.op, a - b, ranges)
        return n if decided is None else const(decided, DType.bool)
    if n.op not in _AFFINE:
        return n
    result = _arithmetic(n.op, a, b)
    return n if result is None else Index(value=result.simplify(ranges))


def _affine_of(node: Expr) -> Affine | None:
    if node.dtype is not DType.i64:
        return None
    if isinstance(node, Index):
        return node.value
    return affine(int(node.value)) if isinstance(node, Const) else None


def _arithmetic(op: str, a: Affine, b: Affine) -> Affine | None:
    if op == "add":
        return a + b
    if op == "sub":
        return a - b
    if op == "mul":
        return a * b.const if b.is_const else b * a.const if a.is_const else None
    if not b.is_const or b.const <= 0:
        return None
    return a // b.const if op == "floordiv" else a % b.const


def _compare(op: str, difference: Affine, ranges: Mapping[str, Interval]) -> bool | None:
    """Whether ``difference op 0`` is the same everywhere, and then which."""
    low, high = difference.bounds(ranges)
    positive = low is not None and low > 0
    negative = high is not None and high < 0
    at_least = low is not None and low >= 0
    at_most = high is not None and high <= 0
    always, never = {
        "ge": (at_least, negative),
        "gt": (positive, at_most),
        "le": (at_most, positive),
        "lt": (negative, at_least),
        "eq": (at_least and at_most, positive or negative),
        "ne": (positive or negative, at_least and at_most),
    }[op]
    return True if always else False if never else None


def _logic(n: Binary) -> Expr:
    for one, other in ((n.a, n.b), (n.b, n.a)):
        if isinstance(one, Const):
            absorbs = one.value == (n.op == "or")
            return one if absorbs else other
    return n
