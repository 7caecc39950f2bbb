"""Scalar expressions: what one statement instance computes.

Every node knows its ``dtype``. Operand types must match exactly (the verifier checks); there are no
implicit conversions: write a ``Cast``. The meaning of each operation stands in
``nestor/ir/__init__.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Union

from nestor.ir.affine import Affine
from nestor.ir.types import DType

FLOAT_UNARY = frozenset(
    "exp exp2 expm1 log log2 log1p sqrt rsqrt sin cos tan asin acos atan sinh cosh tanh asinh acosh"
    " atanh erf erfc sigmoid floor ceil trunc round reciprocal lgamma".split()
)
UNARY_OPS = FLOAT_UNARY | {"neg", "abs", "sign", "not", "isnan", "isinf"}
ARITHMETIC = frozenset("add sub mul div floordiv truncdiv mod rem min max pow atan2".split())
BITWISE = frozenset("and or xor shl shr".split())
COMPARE = frozenset("eq ne lt le gt ge".split())
BINARY_OPS = ARITHMETIC | BITWISE | COMPARE


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Const:
    """A literal. Equality is by bits, so ``0.0 ≠ -0.0`` and ``nan = nan``."""

    value: float | int | bool
    dtype: DType

    def __post_init__(self) -> None:
        if self.dtype is DType.bool:
            object.__setattr__(self, "value", bool(self.value))
        elif self.dtype.is_float:
            object.__setattr__(self, "value", float(self.value))
        else:
            object.__setattr__(self, "value", int(self.value))

    def _key(self) -> tuple[str, DType]:
        return repr(self.value), self.dtype

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Const) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """The value of a quasi-affine expression of loop indices and symbols, as an integer."""

    value: Affine
    dtype: DType = DType.i64


@dataclass(frozen=True, slots=True, kw_only=True)
class Var:
    """A named scalar: ``a0, a1, …``/``b0, b1, …`` in a monoid's combine, ``s0, …`` in a final."""

    name: str
    dtype: DType


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One element of a tensor (logical indices).

    ``predicate`` is a conjunction of ``affine ≥ 0``; where it fails, the value is ``other`` and
    nothing is read. An index is an ``Affine`` or, for a gather, an integer expression: the latter
    must lie inside the tensor at run time (checked, ``IndexOutOfRange``).
    """

    tensor: str
    indices: tuple[IndexExpr, ...]
    dtype: DType
    predicate: tuple[Affine, ...] = ()
    other: Expr | None = None

    def __post_init__(self) -> None:
        if bool(self.predicate) != (self.other is not None):
            raise ValueError("a Load has both a predicate and an other value, or neither")


@dataclass(frozen=True, slots=True, kw_only=True)
class Unary:
    """``op(x)``; ``isnan`` and ``isinf`` give bool, all others the operand's type."""

    op: str
    x: Expr

    @property
    def dtype(self) -> DType:
        return DType.bool if self.op in ("isnan", "isinf") else self.x.dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Binary:
    """``a op b`` on equal types; comparisons give bool."""

    op: str
    a: Expr
    b: Expr

    @property
    def dtype(self) -> DType:
        return DType.bool if self.op in COMPARE else self.a.dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Select:
    """``a if condition else b``; both sides may be evaluated."""

    condition: Expr
    a: Expr
    b: Expr

    @property
    def dtype(self) -> DType:
        return self.a.dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast:
    """``x`` converted to ``dtype``."""

    x: Expr
    dtype: DType


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A function of several arguments, e.g. ``random_uniform(seed, offset, index)``, ``fma``."""

    function: str
    args: tuple[Expr, ...]
    dtype: DType


Expr = Union[Const, Index, Var, Load, Unary, Binary, Select, Cast, Call]
IndexExpr = Union[Affine, Expr]


def map_children(node: Expr, f: Callable[[Expr], Expr]) -> Expr:
    """Apply ``f`` to each child; the same object when nothing changed (compare with ``is``)."""
    match node:
        case Const() | Index() | Var():
            return node
        case Load():
            indices = tuple(i if isinstance(i, Affine) else f(i) for i in node.indices)
            other = None if node.other is None else f(node.other)
            if other is node.other and all(a is b for a, b in zip(indices, node.indices)):
                return node
            return replace(node, indices=indices, other=other)
        case Unary():
            x = f(node.x)
            return node if x is node.x else Unary(op=node.op, x=x)
        case Cast():
            x = f(node.x)
            return node if x is node.x else Cast(x=x, dtype=node.dtype)
        case Binary():
            a, b = f(node.a), f(node.b)
            return node if a is node.a and b is node.b else Binary(op=node.op, a=a, b=b)
        case Select():
            c, a, b = f(node.condition), f(node.a), f(node.b)
            if c is node.condition and a is node.a and b is node.b:
                return node
            return Select(condition=c, a=a, b=b)
        case Call():
            args = tuple(f(x) for x in node.args)
            if all(x is y for x, y in zip(args, node.args)):
                return node
            return Call(function=node.function, args=args, dtype=node.dtype)


def children(node: Expr) -> tuple[Expr, ...]:
    """Direct subexpressions, those inside a gather's indices too."""
    match node:
        case Const() | Index() | Var():
            return ()
        case Load():
            inner = tuple(i for i in node.indices if not isinstance(i, Affine))
            return inner if node.other is None else (*inner, node.other)
        case Unary() | Cast():
            return (node.x,)
        case Binary():
            return (node.a, node.b)
        case Select():
            return (node.condition, node.a, node.b)
        case Call():
            return node.args


def walk(node: Expr) -> Iterator[Expr]:
    """Every subexpression, ``node`` first."""
    stack = [node]
    while stack:
        current = stack.pop()
        yield current
        stack += reversed(children(current))


def distinct_nodes(node: Expr) -> Iterator[Expr]:
    """Every subexpression object once, however often it is shared; ``node`` first."""
    seen = {id(node)}
    stack = [node]
    while stack:
        current = stack.pop()
        yield current
        for child in reversed(children(current)):
            if id(child) not in seen:
                seen.add(id(child))
                stack.append(child)


def loads(node: Expr) -> Iterator[Load]:
    """Every ``Load`` in ``node``, those inside indices of other loads too."""
    return (n for n in walk(node) if isinstance(n, Load))


def map_expr(node: Expr, f: Callable[[Expr], Expr]) -> Expr:
    """Rewrite bottom-up: children first, then ``f`` on the node itself."""
    return f(map_children(node, lambda child: map_expr(child, f)))


def map_affines(node: Expr, f: Callable[[Affine], Affine]) -> Expr:
    """Apply ``f`` to every affine (``Index`` values, indices and predicates of loads)."""

    def visit(n: Expr) -> Expr:
        if isinstance(n, Index):
            value = f(n.value)
            return n if value == n.value else Index(value=value, dtype=n.dtype)
        if isinstance(n, Load):
            indices = tuple(f(i) if isinstance(i, Affine) else i for i in n.indices)
            predicate = tuple(f(p) for p in n.predicate)
            if indices == n.indices and predicate == n.predicate:
                return n
            return replace(n, indices=indices, predicate=predicate)
        return n

    return map_expr(node, visit)


def substitute_vars(node: Expr, values: dict[str, Expr]) -> Expr:
    """Replace ``Var`` nodes by expressions."""
    return map_expr(node, lambda n: values.get(n.name, n) if isinstance(n, Var) else n)


def const(value: float | int | bool, dtype: DType) -> Const:
    """Shorthand for ``Const``."""
    return Const(value=value, dtype=dtype)


def unary(op: str, x: Expr) -> Unary:
    """Shorthand for ``Unary``."""
    return Unary(op=op, x=x)


def binary(op: str, a: Expr, b: Expr) -> Binary:
    """Shorthand for ``Binary``."""
    return Binary(op=op, a=a, b=b)


def lowest(dtype: DType) -> float | int | bool:
    """Identity of ``max``: the least value of ``dtype``."""
    if dtype is DType.bool:
        return False
    if dtype.is_float:
        return -math.inf
    return -(1 << (dtype.bits - 1)) if dtype.is_signed else 0


def highest(dtype: DType) -> float | int | bool:
    """Identity of ``min``: the greatest value of ``dtype``."""
    if dtype is DType.bool:
        return True
    if dtype.is_float:
        return math.inf
    return (1 << (dtype.bits - (1 if dtype.is_signed else 0))) - 1
