"""How long an iteration of a recurrence waits for the one before, from its expression alone.

``a[j] = p[j] * c + a[j - 1] * d`` waits for one fused multiply-add, whatever it takes to compute
``p``; only operations between the carried load and the result count.
"""

from __future__ import annotations

from nestor.ir.affine import Affine, variable
from nestor.ir.expr import Binary, Call, Cast, Expr, Load, Select, Unary
from nestor.passes.affine_access import StatementView

FLOAT_CYCLES = 4.0
"""An addition, a multiplication, or both fused."""

INTEGER_CYCLES = 1.0
DIVIDE_CYCLES = 13.0

FUNCTION_CYCLES = 20.0
"""A square root, or what is computed by a polynomial."""

UNKNOWN_CYCLES = 12.0
"""Where more than the last iteration, or another statement, is waited for."""


def carried_cycles(view: StatementView, loop: str) -> float | None:
    """Cycles from what the last iteration of ``loop`` wrote to what this one writes.

    None where no load of the statement is of that element: nothing is known then.
    """
    targets = {w.tensor: _before(w.indices, view, loop) for w in view.statement.writes}
    found = [_path(e, targets) for e in view.statement.elements]
    known = [cycles for cycles in found if cycles is not None]
    return max(known) if known else None


def _before(
    indices: tuple[object, ...], view: StatementView, loop: str
) -> tuple[Affine, ...] | None:
    """``indices`` in the last iteration of ``loop``; None if that is not known."""
    change: dict[str, Affine] = {}
    for index, by_loop in view.moves.items():
        step = by_loop.get(loop, 0)
        if step != int(step):
            return None
        if step:
            change[index] = variable(index) - int(step)
    if not all(isinstance(i, Affine) for i in indices):
        return None
    return tuple(i.substitute(change) for i in indices if isinstance(i, Affine))


def _path(node: Expr, targets: dict[str, tuple[Affine, ...] | None]) -> float | None:
    """The longest way from a carried load up to ``node``; None if there is none below."""
    match node:
        case Load():
            return 0.0 if targets.get(node.tensor) == node.indices else None
        case Unary():
            below = [node.x]
            is_cheap = node.op in ("neg", "abs", "not")
            own = INTEGER_CYCLES if is_cheap else FUNCTION_CYCLES
        case Binary():
            below = [node.a, node.b]
            own = _binary_cycles(node)
        case Cast():
            below, own = [node.x], FLOAT_CYCLES
        case Select():
            below, own = [node.condition, node.a, node.b], INTEGER_CYCLES
        case Call():
            below, own = list(node.args), FUNCTION_CYCLES
        case _:
            return None
    ways = [
        cycles - (FLOAT_CYCLES if _is_fused(node, x) else 0.0)
        for x in below
        if (cycles := _path(x, targets)) is not None
    ]
    return max(ways) + own if ways else None


def _binary_cycles(node: Binary) -> float:
    if node.op in ("div", "floordiv", "truncdiv", "mod", "rem"):
        return DIVIDE_CYCLES
    if node.op in ("pow", "atan2"):
        return FUNCTION_CYCLES
    return FLOAT_CYCLES if node.dtype.is_float else INTEGER_CYCLES


def _is_fused(node: Expr, operand: Expr) -> bool:
    """A product that its only use adds up."""
    return (
        isinstance(node, Binary)
        and node.op in ("add", "sub")
        and isinstance(operand, Binary)
        and operand.op == "mul"
        and node.dtype.is_float
    )
