"""A rough count of instructions, to decide whether threads are worth waking."""

from __future__ import annotations

from nestor.ir.affine import Affine
from nestor.ir.expr import Call, Expr, Unary, walk
from nestor.ir.loopnest import Alloc, Block, Compute, Guard, Loop, Node

SERIAL_BELOW = 12_000
"""A parallel loop of fewer estimated instructions runs on the calling thread: waking the others
takes 2–5 µs."""

EXPENSIVE = 20
"""Cost of an expression with an elementary function, at least."""

_CHEAP_UNARY = frozenset(
    "neg abs sqrt rsqrt reciprocal floor ceil trunc round sign not isnan isinf".split()
)


def expression_cost(e: Expr) -> int:
    """Rough number of instructions; elementary functions count 20, random numbers 60."""
    total = 0
    for n in walk(e):
        if isinstance(n, Unary):
            total += 2 if n.op in _CHEAP_UNARY else 20
        elif isinstance(n, Call):
            total += 1 if n.function == "fma" else 60
        else:
            total += 1
    return total


def instruction_estimate(node: Node, lanes: int) -> int | None:
    """Instructions that one execution of ``node`` takes, None if an extent is unknown.

    Args: lanes: how many iterations of a vector loop one instruction does.
    """
    match node:
        case Loop():
            inner = instruction_estimate(node.body, lanes)
            trips = _trips(node.lower, node.upper)
            if inner is None or trips is None:
                return None
            return inner * (-(-trips // lanes) if node.kind == "vector" else trips)
        case Block():
            parts = [instruction_estimate(b, lanes) for b in node.body]
            return None if None in parts else sum(p for p in parts if p is not None)
        case Alloc():
            return instruction_estimate(node.body, lanes)
        case Guard():
            return instruction_estimate(node.body, lanes)
        case Compute():
            return sum(expression_cost(v) + 1 for v in node.values)


def _trips(lower: tuple[Affine, ...], upper: tuple[Affine, ...]) -> int | None:
    """Iterations of a loop; the least bound that is constant, as an upper estimate."""
    lows = [a.const for a in lower if a.is_const]
    highs = [a.const for a in upper if a.is_const]
    if not lows or not highs:
        return None
    return max(0, min(highs) - max(lows))
