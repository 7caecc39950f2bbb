"""Sums of products that slide windows of three taps: what they are made of, tile by tile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from nestor.ir.affine import Affine, affine, variable
from nestor.ir.expr import Binary, Const, Expr, Load, map_affines, map_expr
from nestor.ir.program import IndexRange, Statement, Tensor
from nestor.passes.analysis import (
    ContractionRoles,
    contraction_roles,
    expression_variables,
    is_functional,
    zero_of,
)
from nestor.passes.winograd_tiles import OUTPUTS, TAPS, Position

_MAX_WINDOWS = 2


@dataclass(frozen=True, slots=True)
class Windows:
    """A sum of products over one or two windows of three taps.

    Attributes:
        statement: the contraction; ``operand`` slides under ``weight``.
        pairs: (position, tap) of each window: a free and a summed index.
        rows: the operand's other free indices; columns: the weight's; summed: without the taps.
        merged: tiles are numbered through, which makes long rows of products; else temps have a
            dimension for each row index, along which their statements can share loops.
    """

    statement: Statement
    operand: Load
    weight: Load
    pairs: tuple[tuple[str, str], ...]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    summed: tuple[str, ...]
    merged: bool = True

    def results(self, position: str) -> int:
        """How many results a window has."""
        return self.statement.domain.range_of(position).upper.const

    def tiles(self, position: str) -> int:
        """How many tiles cover a window's results; the last one may hang over."""
        return -(-self.results(position) // OUTPUTS)

    def hangs_over(self, position: str) -> bool:
        """Whether the last tile has a result that nobody asked for."""
        return self.results(position) % OUTPUTS != 0

    def row_ranges(self) -> list[IndexRange]:
        """The operand's free indices, with tiles (under their positions' names) at the end."""
        out = [self.statement.domain.range_of(n) for n in self.rows]
        for position, _ in self.pairs:
            upper = affine(self.tiles(position))
            out.append(IndexRange(name=position, lower=affine(0), upper=upper))
        return out

    def row_indices(self) -> tuple[Affine, ...]:
        """A tile's place in temps: its number, or an index for each of ``row_ranges``."""
        names = [variable(r.name) for r in self.row_ranges()]
        if not self.merged:
            return tuple(names)
        index, stride = affine(0), 1
        for name, r in zip(reversed(names), reversed(self.row_ranges())):
            index = index + name * stride
            stride *= r.upper.const if r.upper.is_const else 0
        return (index,)

    def row_dims(self) -> list[IndexRange]:
        """The dimensions that ``row_indices`` are places in."""
        if not self.merged:
            return self.row_ranges()
        return [IndexRange(name=self.fresh_index("t"), lower=affine(0), upper=self.row_count())]

    def row_count(self) -> Affine:
        """How many tiles there are."""
        first, *rest = self.row_ranges()
        count = first.upper
        for r in rest:
            count = count * r.upper.const
        return count

    def operand_at(self, at: Position) -> Load:
        """The operand at a place of a tile; zero where only results that nobody wants read."""
        mapping: dict[str, Affine] = {}
        beyond: list[Affine] = []
        for (position, tap), j in zip(self.pairs, at):
            place = variable(position) * OUTPUTS + j
            mapping |= {position: place, tap: affine(0)}
            if self.hangs_over(position) and j == OUTPUTS + TAPS - 2:
                beyond.append(self.results(position) + TAPS - 2 - place)
        return guarded(mapped_load(self.operand, mapping), beyond)

    def at_result(self, node: Expr, at: Position) -> Expr:
        """An expression of a result's indices at a place of the tile; loads stay inside."""
        mapping = {p: variable(p) * OUTPUTS + j for (p, _), j in zip(self.pairs, at)}
        edges = {
            p: self.results(p) - 1 - mapping[p]
            for (p, _), j in zip(self.pairs, at)
            if j and self.hangs_over(p)
        }

        def visit(n: Expr) -> Expr:
            if not isinstance(n, Load) or not edges:
                return n
            used = expression_variables(n)
            return guarded(n, [edge for p, edge in edges.items() if p in used])

        return map_expr(map_affines(node, lambda a: a.substitute(mapping)), visit)

    def fresh_index(self, wish: str) -> str:
        """A name that no index of the statement has."""
        while wish in self.statement.domain.names:
            wish += "_"
        return wish


def mapped_load(load: Load, mapping: Mapping[str, Affine]) -> Load:
    """A load at substituted indices."""
    new = map_affines(load, lambda a: a.substitute(mapping))
    assert isinstance(new, Load)
    return new


def guarded(load: Load, conditions: list[Affine]) -> Load:
    """A load that is zero (or what it is elsewhere) where a condition fails."""
    if not conditions:
        return load
    other = zero_of(load.dtype) if load.other is None else load.other
    return replace(load, predicate=(*load.predicate, *conditions), other=other)


def find_windows(
    statement: Statement, tensors: dict[str, Tensor], weights: set[str]
) -> Windows | None:
    """The windows of a contraction that is nothing else, or None."""
    roles = contraction_roles(statement, tensors)
    if roles is None or not is_functional(statement) or statement.domain.constraints:
        return None
    assert statement.reduction is not None
    if roles.a.tensor in weights and roles.b.tensor not in weights:
        roles = replace(
            roles, a=roles.b, b=roles.a, m=roles.n, n=roles.m, k_a=roles.k_b, k_b=roles.k_a
        )
    if roles.b.tensor not in weights or roles.a.tensor in weights:
        return None
    if roles.batch or roles.free or roles.k_a or roles.k_b or not _is_plain(statement, roles):
        return None
    pairs = [p for p in dict.fromkeys(roles.windows) if set(p) & set(roles.m)]
    if not 0 < len(pairs) <= _MAX_WINDOWS:
        return None
    if not all(_is_window(statement, roles.a, *pair) for pair in pairs):
        return None
    used = [n for pair in pairs for n in pair]
    found = Windows(
        statement=statement,
        operand=roles.a,
        weight=roles.b,
        pairs=tuple(pairs),
        rows=tuple(n for n in roles.m if n not in used),
        columns=roles.n,
        summed=tuple(n for n in roles.k if n not in used),
    )
    return found if len(set(used)) == len(used) and _has_plain_ranges(found) else None


def _is_plain(statement: Statement, roles: ContractionRoles) -> bool:
    """The element is the product of two plain loads of floats with affine indices, no more."""
    element = statement.elements[0]
    if not isinstance(element, Binary) or {element.a, element.b} != {roles.a, roles.b}:
        return False
    if not element.dtype.is_float:
        return False  # half of an odd integer is none
    other = roles.a.other
    if len(statement.writes) != 1 or roles.b.predicate or not isinstance(other, Const | None):
        return False
    return all(isinstance(i, Affine) for x in (roles.a, roles.b) for i in x.indices)


def _is_window(statement: Statement, operand: Load, position: str, tap: str) -> bool:
    """Three taps, and the operand moves with the sum of position and tap alone."""
    taps, results = (statement.domain.range_of(n) for n in (tap, position))
    if (taps.lower, taps.upper) != (affine(0), affine(TAPS)):
        return False
    if results.lower != affine(0) or not results.upper.is_const:
        return False
    moved = mapped_load(operand, {position: variable(position) - variable(tap)})
    return tap not in expression_variables(moved)


def _has_plain_ranges(w: Windows) -> bool:
    """Boxes from zero; only the outermost row may have a size that varies."""
    names = (*w.rows, *w.columns, *w.summed)
    ranges = [w.statement.domain.range_of(n) for n in names]
    if not w.summed or not w.columns or any(r.lower != affine(0) for r in ranges):
        return False
    if any(r.upper.variables() & set(w.statement.domain.names) for r in ranges):
        return False
    return all(r.upper.is_const for r in ranges[1:]) and (ranges[0].upper.is_const or bool(w.rows))
