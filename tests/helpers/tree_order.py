"""When a schedule tree runs each instance, by enumeration; shares no code with the analysis."""

from __future__ import annotations

from typing import Any

from nestor.ir.program import Program, Statement
from nestor.ir.schedule_tree import Band, Leaf, Sequence, Tree
from tests.legality.oracle import domain_points

Instance = tuple[str, tuple[int, ...]]
Time = tuple[tuple[str, int], ...]


def instance_times(program: Program, tree: Tree, size: int) -> dict[Instance, Time]:
    """Every instance with its time: (loop's name or ``#``, value or position) from the root down.

    Every symbol is ``size``.
    """
    symbols = {s.name: size for s in program.symbols}
    found: dict[Instance, Time] = {}
    for s in program.statements:
        assert isinstance(s, Statement)
        steps = _steps(tree, s.name)
        assert steps is not None
        for env in domain_points(s.domain, symbols):
            scope = {**symbols, **env}
            time = tuple(
                (name, value if isinstance(value, int) else value.evaluate(scope))
                for name, value in steps
            )
            found[s.name, tuple(env[n] for n in s.domain.names)] = time
    return found


def _steps(tree: Tree, statement: str) -> list[tuple[str, Any]] | None:
    match tree:
        case Leaf():
            return [] if tree.statement == statement else None
        case Sequence():
            for k, child in enumerate(tree.children):
                below = _steps(child, statement)
                if below is not None:
                    return [("#", k), *below]
            return None
        case Band():
            below = _steps(tree.child, statement)
            if below is None:
                return None
            return [(loop.name, loop.row(statement)) for loop in tree.loops] + below


def values(time: Time) -> tuple[int, ...]:
    """The time as numbers, which compare in the order in which they run."""
    return tuple(value for _, value in time)
