"""Count the operations of one instance of a statement, by kind."""

from __future__ import annotations

from dataclasses import dataclass

from nestor.ir.expr import (
    COMPARE,
    Binary,
    Call,
    Cast,
    Expr,
    Index,
    Select,
    Unary,
    distinct_nodes,
)
from nestor.ir.program import Statement

_CHEAP_UNARY = frozenset("neg abs sign floor ceil trunc round".split())
_DIVIDING_UNARY = frozenset("sqrt rsqrt reciprocal".split())
_TESTS = frozenset("isnan isinf not".split())
_DIVIDING_BINARY = frozenset("div floordiv truncdiv mod rem".split())
_TRANSCENDENTAL_BINARY = frozenset("pow atan2".split())


@dataclass(frozen=True, slots=True, kw_only=True)
class OpCounts:
    """Operations of each kind [operations].

    Attributes:
        fma: multiply-adds, as the code generator contracts them.
        add: floating-point additions, subtractions, minima, maxima, roundings.
        mul: floating-point products.
        div: divisions, square roots and remainders.
        transcendental: exponentials and the like, powers, calls of functions.
        integer: integer and bitwise arithmetic, and indices used as values.
        select: comparisons, tests and selections.
        convert: casts.
    """

    fma: float = 0.0
    add: float = 0.0
    mul: float = 0.0
    div: float = 0.0
    transcendental: float = 0.0
    integer: float = 0.0
    select: float = 0.0
    convert: float = 0.0

    def scaled(self, factor: float) -> OpCounts:
        """Every count times ``factor``."""
        return OpCounts(**{k: getattr(self, k) * factor for k in KINDS})

    def __add__(self, other: OpCounts) -> OpCounts:
        return OpCounts(**{k: getattr(self, k) + getattr(other, k) for k in KINDS})

    @property
    def flops(self) -> float:
        """Elementary floating-point operations; a multiply-add is two, a division one."""
        return 2 * self.fma + self.add + self.mul + self.div + self.transcendental

    @property
    def slots(self) -> float:
        """Vector instructions for one vector of instances, in slots of a multiply-add.

        A division holds its unit for about eight slots; an elementary function is a polynomial and
        a range reduction of about twenty instructions (``passes.analysis.TRANSCENDENTAL_WORK``).
        """
        simple = self.fma + self.add + self.mul + self.integer + self.select + self.convert
        return simple + 8 * self.div + 20 * self.transcendental


KINDS = ("fma", "add", "mul", "div", "transcendental", "integer", "select", "convert")


def _kind(node: Expr) -> str | None:
    """The kind of one node; None for what costs nothing."""
    match node:
        case Unary():
            if node.op in _TESTS:
                return "select"
            if node.op in _CHEAP_UNARY:
                return "add" if node.dtype.is_float else "integer"
            return "div" if node.op in _DIVIDING_UNARY else "transcendental"
        case Binary():
            if node.op in COMPARE:
                return "select"
            if node.op in _TRANSCENDENTAL_BINARY:
                return "transcendental"
            if node.op in _DIVIDING_BINARY:
                return "div"
            if not node.dtype.is_float:
                return "integer"
            return "mul" if node.op == "mul" else "add"
        case Select():
            return "select"
        case Cast():
            return "convert"
        case Call():
            return "fma" if node.function == "fma" else "transcendental"
        case Index():
            return "integer"
        case _:
            return None


def _is_product(node: Expr) -> bool:
    return isinstance(node, Binary) and node.op == "mul" and node.dtype.is_float


def count_ops(roots: tuple[Expr, ...], contracted: int = 0) -> OpCounts:
    """Operations of evaluating ``roots`` together, shared subexpressions once.

    Args: contracted: products at the roots that an addition outside takes in.
    """
    counts = dict.fromkeys(KINDS, 0.0)
    seen: set[int] = set()
    absorbed: set[int] = set()
    for root in roots:
        for node in distinct_nodes(root):
            if id(node) in seen:
                continue
            seen.add(id(node))
            kind = _kind(node)
            if kind is None:
                continue
            counts[kind] += 1
            if isinstance(node, Binary) and node.op in ("add", "sub") and kind == "add":
                product = next(
                    (x for x in (node.a, node.b) if _is_product(x) and id(x) not in absorbed), None
                )
                if product is not None:
                    absorbed.add(id(product))
    pairs = len(absorbed)
    counts["fma"] += pairs
    counts["add"] -= pairs
    counts["mul"] -= pairs + contracted
    return OpCounts(**counts)


def instance_ops(statement: Statement) -> OpCounts:
    """Operations of one instance: its elements, and for a reduction their combination."""
    reduction = statement.reduction
    if reduction is None:
        return count_ops(statement.elements)
    combine = count_ops(reduction.monoid.combine)
    contracted = 0
    if reduction.monoid.name == "sum" and _is_product(statement.elements[0]):
        contracted = 1
        combine = OpCounts(fma=1.0)
    return count_ops(statement.elements, contracted) + combine


def result_ops(statement: Statement) -> OpCounts:
    """Operations of one result of a reduction: its final map."""
    return OpCounts() if statement.reduction is None else count_ops(statement.reduction.final)
