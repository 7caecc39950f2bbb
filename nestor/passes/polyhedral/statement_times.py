"""When the instances of each statement run: the path of a schedule tree from its root to the leaf.

The inner loops that are unrolled or vectorised form a statement's *register tile*. It runs as a
whole: the loops around are scanned, and what is inside follows by arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence as List
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Union

from nestor.errors import UserError
from nestor.ir.affine import Affine, affine, affine_sum, variable
from nestor.ir.loopnest import LoopKind
from nestor.ir.program import Program, Statement
from nestor.ir.schedule_tree import Band, Leaf, Sequence, Tree
from nestor.passes.polyhedral.tree_steps import Arranged


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeLoop:
    """A loop around a statement and the statement's value there."""

    name: str
    row: Affine


@dataclass(frozen=True, slots=True, kw_only=True)
class TileLoop:
    """A loop of a register tile: ``row = size * outer + name``, 0 ≤ name < size."""

    name: str
    row: Affine
    outer: str
    size: int
    kind: LoopKind
    is_lane: bool


Entry = Union[int, TimeLoop]
"""A place in a sequence, or a loop."""


@dataclass(slots=True, kw_only=True)
class StatementTime:
    """A statement with its ``entries``, outermost first, and the loops of its register tile."""

    statement: Statement
    entries: list[Entry] = field(default_factory=list)
    tile: list[TileLoop] = field(default_factory=list)

    @property
    def loops(self) -> list[TimeLoop]:
        """The loops among the entries."""
        return [e for e in self.entries if isinstance(e, TimeLoop)]

    @property
    def innermost(self) -> int:
        """The position of the innermost loop among the entries; −1 if there is none."""
        return max((k for k, e in enumerate(self.entries) if isinstance(e, TimeLoop)), default=-1)

    def tells_instances_apart(self) -> bool:
        """True if the loops' linear rows determine the indices; False says nothing."""
        names = list(self.statement.domain.names)
        equations = [_equation(names, x.row, variable(x.name)) for x in self.loops]
        return _eliminate(names, [e for e in equations if e[0]]) is not None

    def indices_from_loops(self) -> dict[str, Affine]:
        """The statement's indices in terms of its loops and those of its register tile.

        Raises: ``UserError`` if the loops do not determine integer indices linearly.
        """
        names = list(self.statement.domain.names)
        inside = {t.outer for t in self.tile}
        equations = [_equation(names, t.row, self.value_at(t.name)) for t in self.tile]
        for loop in self.loops:
            if loop.name not in inside:
                equations.append(_equation(names, loop.row, variable(loop.name)))
        conditions = self.statement.domain.constraints
        equalities = [c for c in conditions if -c in conditions]
        equations += [_equation(names, c, affine(0)) for c in equalities]
        solution = _solve(names, [e for e in equations if e[0]])
        if solution is None:
            raise UserError(
                f"statement '{self.statement.name}': its loops do not determine its indices by "
                "whole multiples, so it cannot run in register tiles"
            )
        return solution

    def value_at(self, loop: str) -> Affine:
        """The statement's value at ``loop``, over its loops and those of its register tile."""
        if any(x.name == loop for x in self.loops):
            return variable(loop)
        tile = next((t for t in self.tile if t.name == loop), None)
        if tile is None:
            raise UserError(
                f"statement '{self.statement.name}' does not run in loop '{loop}', of which a part "
                "is a register tile"
            )
        return self.value_at(tile.outer) * tile.size + variable(loop)


def statement_times(program: Program, arranged: Arranged) -> list[StatementTime]:
    """The time of every statement, in the order of the tree's leaves."""
    statements = {s.name: s for s in program.statements if isinstance(s, Statement)}
    found: list[StatementTime] = []

    def visit(tree: Tree, path: tuple[int | tuple[str, dict[str, Affine]], ...]) -> None:
        match tree:
            case Leaf():
                found.append(_time(statements[tree.statement], path, arranged))
            case Sequence():
                for k, child in enumerate(tree.children):
                    visit(child, (*path, k))
            case Band():
                visit(tree.child, (*path, *((item.name, dict(item.rows)) for item in tree.loops)))

    visit(arranged.tree, ())
    return found


def _time(
    statement: Statement,
    path: tuple[int | tuple[str, dict[str, Affine]], ...],
    arranged: Arranged,
) -> StatementTime:
    time = StatementTime(statement=statement)
    for step in path:
        if isinstance(step, int):
            time.entries.append(step)
            continue
        name, rows = step
        row = rows[statement.name]
        kind = arranged.kinds.get(name, "serial")
        if kind in ("vector", "unroll"):
            outer, size = arranged.tiles[name]
            lane = name in arranged.lanes
            time.tile.append(
                TileLoop(name=name, row=row, outer=outer, size=size, kind=kind, is_lane=lane)
            )
        elif time.tile:
            raise UserError(
                f"loop '{name}' runs inside '{time.tile[0].name}', which is {time.tile[0].kind}: "
                "only the innermost loops of a statement can be"
            )
        else:
            time.entries.append(TimeLoop(name=name, row=row))
    vectors = [t.name for t in time.tile if t.kind == "vector"]
    if len(vectors) > 1 or (vectors and time.tile[-1].kind != "vector"):
        raise UserError(f"one vector loop, the innermost, is possible; asked for: {vectors}")
    return time


def _equation(names: List[str], row: Affine, value: Affine) -> tuple[list[int], Affine]:
    """``sum(coefficients * names) = rest``; no coefficients if the row is not linear in them."""
    if any(
        not isinstance(a, str) and not a.num.variables().isdisjoint(names) for a, _ in row.terms
    ):
        return [], value
    own = affine_sum([(variable(n), row.coefficient(n)) for n in names])
    return [row.coefficient(n) for n in names], value - (row - own)


def _solve(names: List[str], equations: List[tuple[list[int], Affine]]) -> dict[str, Affine] | None:
    """The indices by the right sides; None without a unique solution in whole multiples."""
    found = _eliminate(names, equations)
    if found is None or any(w.denominator != 1 for weights in found for w in weights):
        return None
    return {
        name: affine_sum([(e[1], int(w)) for e, w in zip(equations, weights)])
        for name, weights in zip(names, found)
    }


def _eliminate(
    names: List[str], equations: List[tuple[list[int], Affine]]
) -> list[list[Fraction]] | None:
    """Gauss elimination: the weights of the equations that give each name; None if not unique."""
    rows = [[Fraction(c) for c in coefficients] for coefficients, _ in equations]
    combos = [[Fraction(int(i == k)) for i in range(len(rows))] for k in range(len(rows))]
    pivots: list[int] = []
    for column in range(len(names)):
        free = (k for k in range(len(rows)) if k not in pivots and rows[k][column])
        pivot = next(free, None)
        if pivot is None:
            return None
        pivots.append(pivot)
        scale = rows[pivot][column]
        rows[pivot] = [x / scale for x in rows[pivot]]
        combos[pivot] = [x / scale for x in combos[pivot]]
        for k in range(len(rows)):
            factor = rows[k][column]
            if k != pivot and factor:
                rows[k] = [a - factor * b for a, b in zip(rows[k], rows[pivot])]
                combos[k] = [a - factor * b for a, b in zip(combos[k], combos[pivot])]
    return [combos[pivot] for pivot in pivots]
