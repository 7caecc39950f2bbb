"""Schedules of kernels whose names change: from a program to its canonical form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from nestor.ir.program import Program, Statement
from nestor.ir.schedule import (
    Accumulate,
    Arrange,
    ComputeAt,
    Distribute,
    Pack,
    Promote,
    Reorder,
    Schedule,
    Shift,
    Step,
)
from nestor.ir.schedule_tree import Band, BandLoop, Leaf, Sequence, Tree


def canonical_schedule(schedule: Schedule, kernel: Program, names: Mapping[str, str]) -> Schedule:
    """``schedule`` of ``kernel`` as one of its canonical form.

    Loops keep their names, which a schedule tree gives them; so the schedule has one, or does
    nothing to loops.

    Args: names: what ``ir.hashing.canonicalize`` says of ``kernel``.
    """
    variables: dict[str, dict[str, str]] = {}
    for statement in kernel.statements:
        if isinstance(statement, Statement):
            own = {n: f"i{k}" for k, n in enumerate(statement.domain.names)}
            variables[statement.name] = {**{s.name: names[s.name] for s in kernel.symbols}, **own}
    return tuple(_step(step, names, variables) for step in schedule)


def _step(step: Step, names: Mapping[str, str], variables: Mapping[str, Mapping[str, str]]) -> Step:
    match step:
        case Arrange():
            return Arrange(tree=_tree(step.tree, names, variables))
        case Promote() | ComputeAt() | Pack():
            return replace(step, tensor=names[step.tensor])
        case Shift() | Distribute() | Accumulate() | Reorder():
            return replace(step, statement=names[step.statement])
    return step


def _tree(tree: Tree, names: Mapping[str, str], variables: Mapping[str, Mapping[str, str]]) -> Tree:
    match tree:
        case Leaf():
            return Leaf(statement=names[tree.statement])
        case Sequence():
            return Sequence(children=tuple(_tree(c, names, variables) for c in tree.children))
        case Band():
            loops = tuple(
                BandLoop(
                    name=loop.name,
                    rows=tuple((names[s], row.substitute(variables[s])) for s, row in loop.rows),
                )
                for loop in tree.loops
            )
            return replace(tree, loops=loops, child=_tree(tree.child, names, variables))
