"""Split flattened indices, so that reshapes leave no ``//`` and ``%`` in accesses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from nestor.ir.affine import Affine, FloorDiv, Interval, Mod, affine, variable
from nestor.ir.expr import Index, Load, walk
from nestor.ir.names import Names
from nestor.ir.program import Domain, Extern, IndexRange, Program, Reduction, Statement
from nestor.passes.context import PassContext
from nestor.passes.index_maps import atoms_within
from nestor.passes.rewriting import (
    map_statement_affines,
    replace_statements,
)
from nestor.passes.simplify import simplify_statement
from nestor.passes.simplify_expr import Shapes

_MAX_SPLITS = 8


def delinearize_indices(program: Program, ctx: PassContext) -> Program:
    """Split an index that appears divided by a constant into an outer and an inner one.

    Rewrite: ``for e < H*D: Y[e] = X[e//D, e%D]`` → ``for h < H, d < D: Y[h*D + d] = X[h, d]``.
    Legal when: the extent is a multiple of ``D`` and starts at 0, so the map is one to one; the
        pair runs in the same lexicographic order. Done when fewer ``//`` and ``%`` are left.
    """
    symbols = program.symbol_ranges()
    shapes = {t.name: t.shape for t in program.tensors}
    statements = []
    for statement in program.statements:
        if not isinstance(statement, Extern):
            new = delinearize_statement(statement, symbols, shapes)
            if new is not statement:
                domain = ", ".join(new.domain.names)
                ctx.changed("delinearize_indices", statement.name, f"its indices are now {domain}")
            statement = new
        statements.append(statement)
    return replace_statements(program, statements)


def delinearize_statement(
    statement: Statement, symbols: Mapping[str, Interval], shapes: Shapes
) -> Statement:
    """Split indices of one statement while that removes divisions."""
    count = division_count(statement)
    for _ in range(_MAX_SPLITS):
        if count == 0:
            break
        best: Statement | None = None
        for name, inner in _candidates(statement):
            new = simplify_statement(_split(statement, name, inner), symbols, shapes)
            new_count = division_count(new)
            if new_count < count:
                best, count = new, new_count
        if best is None:
            break
        statement = best
    return statement


def statement_affines(statement: Statement) -> Iterator[Affine]:
    """Every affine of a statement's accesses and index values (not of its domain)."""
    for write in statement.writes:
        yield from (i for i in write.indices if isinstance(i, Affine))
    for expression in statement.expressions():
        for node in walk(expression):
            if isinstance(node, Index):
                yield node.value
            elif isinstance(node, Load):
                yield from (i for i in node.indices if isinstance(i, Affine))
                yield from node.predicate


def division_count(statement: Statement) -> int:
    """Number of ``//`` and ``%`` in a statement's accesses and index values."""
    return count_divisions(statement_affines(statement))


def count_divisions(values: Iterable[Affine]) -> int:
    """Number of ``//`` and ``%`` in affines, nested ones too."""
    total = 0
    for value in values:
        if any(not isinstance(atom, str) for atom, _ in value.terms):
            total += sum(1 for atom in atoms_within(value) if not isinstance(atom, str))
    return total


def _candidates(statement: Statement) -> list[tuple[str, int]]:
    """Pairs (index, inner extent) worth trying, larger inner extents first."""
    splittable = {r.name: r.upper for r in statement.domain.ranges if _is_free(statement, r)}
    found: set[tuple[str, int]] = set()
    for value in statement_affines(statement):
        for atom in atoms_within(value):
            if isinstance(atom, (FloorDiv, Mod)):
                for name, c in atom.num.terms:
                    if isinstance(name, str) and name in splittable:
                        inner = atom.den // math.gcd(abs(c), atom.den)
                        if inner > 1 and divide_exactly(splittable[name], inner) is not None:
                            found.add((name, inner))
    return sorted(found, key=lambda t: (-t[1], t[0]))


def _is_free(statement: Statement, r: IndexRange) -> bool:
    """The index starts at 0, and neither the order nor another bound depends on it."""
    if r.name in statement.order or r.lower != affine(0):
        return False
    return not any(
        r.name in bound.variables()
        for other in statement.domain.ranges
        for bound in (other.lower, other.upper)
    )


def divide_exactly(value: Affine, divisor: int) -> Affine | None:
    """``value / divisor`` if every coefficient is a multiple, and the result is not trivial."""
    if value.const % divisor or any(c % divisor for _, c in value.terms):
        return None
    quotient = Affine(tuple((a, c // divisor) for a, c in value.terms), value.const // divisor)
    return None if quotient == affine(1) else quotient


def _split(statement: Statement, name: str, inner: int) -> Statement:
    """Replace index ``name`` by ``outer*inner + rest``."""
    names = Names(statement.domain.names)
    outer_name, inner_name = names.fresh(f"{name}_o"), names.fresh(f"{name}_i")
    ranges: list[IndexRange] = []
    for r in statement.domain.ranges:
        if r.name != name:
            ranges.append(r)
            continue
        extent = divide_exactly(r.upper, inner)
        assert extent is not None
        ranges.append(IndexRange(name=outer_name, lower=affine(0), upper=extent))
        ranges.append(IndexRange(name=inner_name, lower=affine(0), upper=affine(inner)))
    mapping = {name: variable(outer_name) * inner + variable(inner_name)}
    domain = Domain(
        ranges=tuple(ranges),
        constraints=tuple(c.substitute(mapping) for c in statement.domain.constraints),
    )
    pair = (outer_name, inner_name)
    reduction = statement.reduction
    if reduction is not None:
        reduction = _split_reduction(reduction, name, pair)
    new = replace(statement, domain=domain, reduction=reduction)
    return map_statement_affines(new, lambda a: a.substitute(mapping))


def _split_reduction(reduction: Reduction, name: str, pair: tuple[str, str]) -> Reduction:
    def expand(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(x for n in names for x in (pair if n == name else (n,)))

    components = reduction.state_indices
    return replace(
        reduction,
        indices=expand(reduction.indices),
        state_indices=None
        if components is None
        else tuple(None if c is None else expand(c) for c in components),
    )
