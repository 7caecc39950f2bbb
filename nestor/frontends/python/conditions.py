"""Affine conditions in disjunctive normal form.

A ``Conjunction`` is a tuple of affines, each ``≥ 0``; a ``Dnf`` is true where one of its
conjunctions holds: ``()`` is false, ``((),)`` true.
"""

from __future__ import annotations

import ast

from nestor.ir.affine import Affine
from nestor.ir.expr import Binary, Const, Expr, Index, const
from nestor.ir.types import DType

Conjunction = tuple[Affine, ...]
Dnf = tuple[Conjunction, ...]

TRUE: Dnf = ((),)
FALSE: Dnf = ()

MAX_CASES = 16
"""Conjunctions that a condition may have; one that needs more counts as data-dependent."""


class TooManyCases(Exception):
    """A condition has more than ``MAX_CASES`` cases."""


def compare_affine(op: ast.cmpop, a: Affine, b: Affine) -> Dnf | None:
    """``a op b``; None for an operator that is no comparison of numbers."""
    match op:
        case ast.Lt():
            return make_dnf((b - a - 1,))
        case ast.LtE():
            return make_dnf((b - a,))
        case ast.Gt():
            return make_dnf((a - b - 1,))
        case ast.GtE():
            return make_dnf((a - b,))
        case ast.Eq():
            return make_dnf((a - b, b - a))
        case ast.NotEq():
            return make_dnf((a - b - 1,), (b - a - 1,))
        case _:
            return None


def make_dnf(*cases: Conjunction) -> Dnf:
    """The cases that can hold, each without what the rest of it implies."""
    out: list[Conjunction] = []
    for case in cases:
        reduced = reduce_conjunction(case)
        if reduced == ():
            return TRUE
        if reduced is not None and reduced not in out:
            out.append(reduced)
    if len(out) > MAX_CASES:
        raise TooManyCases
    return tuple(out)


def reduce_conjunction(case: Conjunction) -> Conjunction | None:
    """Without constants and repeated directions; None if it plainly cannot hold."""
    least: dict[Affine, int] = {}
    for value in case:
        low, high = value.bounds({})
        if high is not None and high < 0:
            return None
        if low is not None and low >= 0:
            continue
        direction = value - value.const
        least[direction] = min(value.const, least.get(direction, value.const))
    for direction, room in least.items():
        opposite = least.get(-direction)
        if opposite is not None and room + opposite < 0:
            return None
    return tuple(direction + room for direction, room in least.items())


def both(a: Dnf, b: Dnf) -> Dnf:
    """``a and b``."""
    return make_dnf(*((*x, *y) for x in a for y in b))


def either(a: Dnf, b: Dnf) -> Dnf:
    """``a or b``."""
    return make_dnf(*a, *b)


def negate(a: Dnf) -> Dnf:
    """``not a``, in cases that exclude each other."""
    out = TRUE
    for case in a:
        failing = tuple((*case[:k], -c - 1) for k, c in enumerate(case))
        out = both(out, make_dnf(*failing))
    return out


def separate(a: Dnf) -> Dnf:
    """The same condition in cases that exclude each other."""
    out: list[Conjunction] = []
    rest = TRUE
    for case in a:
        out += both(rest, (case,))
        rest = both(rest, negate((case,)))
    return make_dnf(*out)


def condition_expr(a: Dnf) -> Expr:
    """The condition as a bool expression."""
    out: Expr | None = None
    for case in a:
        whole: Expr = const(True, DType.bool)
        for k, c in enumerate(case):
            test = Binary(op="ge", a=Index(value=c), b=Index(value=c * 0))
            whole = test if k == 0 else Binary(op="and", a=whole, b=test)
        out = whole if out is None else Binary(op="or", a=out, b=whole)
    return Const(value=False, dtype=DType.bool) if out is None else out
