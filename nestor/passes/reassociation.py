"""Rewrite floating-point expressions so that little waits for the previous iteration.

``a[j] = (p + a[j-1] + q) / 9`` waits, at every ``j``, for two additions and a division. As
``a[j] = a[j-1] * (1/9) + (p + q) * (1/9)`` it waits for one fused multiply-add. Both rewrites
change rounding, so they are made under ``reassociate=True`` only; divisors are constants.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from nestor.ir.affine import Affine, variable
from nestor.ir.expr import Binary, Const, Expr, Load, Unary, binary, loads, map_expr
from nestor.ir.program import Program, Statement

_FLOATS = ("f32", "f64")


def shorten_recurrences(program: Program) -> Program:
    """The same program with constant divisors inverted and carried operands added last.

    Rewrite: ``a[j] = (p + a[j-1] + q) / 9`` → ``a[j] = (p + q) * (1/9) + a[j-1] * (1/9)``
    Legal when: reassociation is allowed (the caller's promise). A division whose inverse could be
        zero, infinite or subnormal stays, and so does a factor above 1 around a sum: the product
        of each term could overflow where that of the sum does not.
    """
    statements = tuple(
        replace(s, elements=tuple(_shorten(s, e) for e in s.elements))
        if isinstance(s, Statement) and s.reduction is None
        else s
        for s in program.statements
    )
    return program if statements == program.statements else replace(program, statements=statements)


def _shorten(statement: Statement, element: Expr) -> Expr:
    """One element of a pointwise statement."""
    element = map_expr(element, _multiply_by_inverse)
    carried = _carried_loads(statement)
    if not carried or element.dtype.name not in _FLOATS:
        return element
    found = _scaled_sum(element)
    late = [t for t in found.terms if any(x in carried for x in loads(t.value))]
    if len(late) != 1 or len(found.terms) < 3 or not isinstance(late[0].value, Load):
        return element
    rest = _balanced([t for t in found.terms if t is not late[0]])
    last: Expr = late[0].value
    if found.factor is not None:
        if not abs(found.factor.value) <= 1:
            return element
        rest, last = binary("mul", rest, found.factor), binary("mul", last, found.factor)
    return binary("sub" if late[0].negative else "add", rest, last)


def _multiply_by_inverse(node: Expr) -> Expr:
    """``x / c`` → ``x * (1/c)``."""
    if not isinstance(node, Binary) or node.op != "div" or not isinstance(node.b, Const):
        return node
    if node.dtype.name not in _FLOATS or not isinstance(node.b.value, float):
        return node
    if not 1e-30 < abs(node.b.value) < 1e30:
        return node
    return binary("mul", node.a, Const(value=1.0 / node.b.value, dtype=node.dtype))


def _carried_loads(statement: Statement) -> list[Load]:
    """Loads of what the previous iteration of the innermost loop wrote."""
    if len(statement.order) < 3:
        return []
    index = str(statement.order[-2])
    previous = {index: variable(index) - 1}
    targets = {}
    for write in statement.writes:
        if all(isinstance(i, Affine) for i in write.indices):
            indices = tuple(i.substitute(previous) for i in write.indices if isinstance(i, Affine))
            targets[write.tensor] = indices
    return [
        load
        for element in statement.elements
        for load in loads(element)
        if targets.get(load.tensor) == load.indices and not load.predicate
    ]


@dataclass(frozen=True, slots=True)
class _Term:
    value: Expr
    negative: bool


@dataclass(frozen=True, slots=True)
class _Sum:
    """``factor * (sum of terms)``."""

    factor: Const | None
    terms: list[_Term]


def _scaled_sum(element: Expr) -> _Sum:
    factor: Const | None = None
    match element:
        case Binary(op="mul", a=inner, b=Const() as scale):
            element, factor = inner, scale
        case Binary(op="mul", a=Const() as scale, b=inner):
            element, factor = inner, scale
        case _:
            pass
    terms: list[_Term] = []
    _collect(element, False, terms)
    return _Sum(factor, terms)


def _collect(node: Expr, negative: bool, terms: list[_Term]) -> None:
    if isinstance(node, Binary) and node.op in ("add", "sub"):
        _collect(node.a, negative, terms)
        _collect(node.b, negative != (node.op == "sub"), terms)
    elif isinstance(node, Unary) and node.op == "neg":
        _collect(node.x, not negative, terms)
    else:
        terms.append(_Term(node, negative))


def _balanced(terms: list[_Term]) -> Expr:
    """A tree of additions as flat as it gets; positive terms come first."""
    ordered = [t for t in terms if not t.negative] + [t for t in terms if t.negative]
    if all(t.negative for t in ordered):
        return Unary(op="neg", x=_balanced([_Term(t.value, False) for t in ordered]))
    nodes = [(t.value, t.negative) for t in ordered]
    while len(nodes) > 1:
        merged = []
        for (a, minus_a), (b, minus_b) in zip(nodes[::2], nodes[1::2]):
            # A pair starts with a positive term, or both are negative.
            merged.append((binary("add" if minus_a == minus_b else "sub", a, b), minus_a))
        nodes = merged + (nodes[-1:] if len(nodes) % 2 else [])
    return nodes[0][0]
