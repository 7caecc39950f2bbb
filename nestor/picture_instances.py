"""The iterations of a small instance of a kernel, one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from nestor.ir.program import Program, Statement

WINDOW = 14
"""Iterations of one loop, at most: bounds that are constants may be large."""

MAX_INSTANCES = 60_000
"""Of all statements together; beyond, only those that are drawn are enumerated."""

Instance = tuple[str, tuple[int, ...]]
"""A statement's name and the values of its indices, outermost loop first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instances:
    """Attributes:
    sizes: of the symbols.
    points: of each statement, the values of its indices, outermost loop first.
    note: what was left out; may be empty.
    """

    sizes: Mapping[str, int]
    points: Mapping[str, Sequence[tuple[int, ...]]]
    note: str = ""


def index_order(s: Statement) -> tuple[str, ...]:
    """The statement's indices, outermost loop first; those that no order names come last."""
    ordered = [n for n in s.order if isinstance(n, str)]
    return (*ordered, *(n for n in s.domain.names if n not in ordered))


def enumerate_instances(
    program: Program, sizes: Mapping[str, int], needed: Sequence[Statement]
) -> Instances:
    """The instances for ``sizes``: of ``needed``, and of the others while they are not too many."""
    left = MAX_INSTANCES
    points: dict[str, list[tuple[int, ...]]] = {}
    notes: dict[str, None] = {}
    others = [s for s in program.statements if isinstance(s, Statement) and s not in needed]
    for s in (*needed, *others):
        found: list[tuple[int, ...]] = []
        for at, is_clipped in _instances(s, sizes):
            if is_clipped:
                notes[f"only the first {WINDOW} iterations of each loop are drawn"] = None
            found.append(at)
            if len(found) > left:
                break
        if len(found) > left:
            notes[f"dependences through {s.name} are left out"] = None
            found = []
        left -= len(found)
        points[s.name] = found
    return Instances(sizes=dict(sizes), points=points, note="; ".join(notes))


def _instances(s: Statement, sizes: Mapping[str, int]) -> Iterator[tuple[tuple[int, ...], bool]]:
    """Each instance, and whether some loop around it was cut short."""
    ordered = index_order(s)
    ranges = s.domain.ranges

    def visit(depth: int, env: dict[str, int], cut: bool) -> Iterator[tuple[tuple[int, ...], bool]]:
        if depth == len(ranges):
            if all(c.evaluate(env) >= 0 for c in s.domain.constraints):
                yield tuple(env[n] for n in ordered), cut
            return
        r = ranges[depth]
        lower, upper = int(r.lower.evaluate(env)), int(r.upper.evaluate(env))
        for value in range(lower, min(upper, lower + WINDOW)):
            yield from visit(depth + 1, {**env, r.name: value}, cut or upper - lower > WINDOW)

    yield from visit(0, dict(sizes), False)
