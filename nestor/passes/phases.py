"""Split sums over a dilated input (transposed convolutions) into one plain sum per output phase."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from nestor.ir.affine import Affine, Interval, Mod, affine, variable
from nestor.ir.expr import loads
from nestor.ir.program import AnyStatement, Domain, IndexRange, Program, Statement
from nestor.passes.analysis import contraction_roles, is_functional
from nestor.passes.context import PassContext
from nestor.passes.rewriting import (
    in_order,
    map_statement_affines,
    names_of,
    renumber,
    replace_statements,
)
from nestor.passes.simplify import simplify_statement
from nestor.passes.simplify_expr import Shapes

_NAME = "split_phases"
_MAX_PHASES = 64


@dataclass(frozen=True, slots=True)
class _Phase:
    """``free = stride*q + r`` and ``summed = stride*a + b(r)``: where the predicate can hold."""

    free: str
    summed: str
    stride: int
    offsets: tuple[int, ...]


def split_phases(program: Program, ctx: PassContext) -> Program:
    """Split a contraction whose predicate asks for a remainder of 0 by that remainder.

    Rewrite: ``Y[y] = Σ_r (X[(y - r)/2] if (y - r) % 2 = 0 else 0)·w[r]`` →
        ``Y[2*q] = Σ_a X[q - a]·w[2*a]; Y[2*q + 1] = Σ_a X[q - a]·w[2*a + 1]``: three quarters of a
        two-dimensional sum's terms were zeros that a predicate put there.
    Legal when: the remainder depends on one free and one summed index of constant extents, both
        with steps prime to the stride; every phase has terms. What is dropped are zeros of the sum.
    """
    symbols = program.symbol_ranges()
    shapes = {t.name: t.shape for t in program.tensors}
    names = names_of(program)
    out: list[AnyStatement] = []
    for statement in in_order(program.statements):
        phases = [statement]
        if isinstance(statement, Statement) and _is_candidate(statement):
            phases = list(_split(statement, symbols, shapes))
        if len(phases) == 1:
            out.append(statement)
            continue
        ctx.changed(_NAME, statement.name, f"{len(phases)} phases without remainders")
        out += [replace(p, name=names.fresh(f"{statement.name}_phase")) for p in phases]
    if len(out) == len(program.statements):
        return program
    return replace_statements(program, renumber(out))


def _is_candidate(statement: Statement) -> bool:
    return is_functional(statement) and contraction_roles(statement) is not None


def _split(
    statement: Statement, symbols: Mapping[str, Interval], shapes: Shapes
) -> list[Statement]:
    """All phases of a statement, over every dimension that has any."""
    done: list[Statement] = []
    work = [statement]
    while work:
        current = work.pop(0)
        phase = _find_phase(current)
        if phase is None or len(work) + len(done) + phase.stride > _MAX_PHASES:
            done.append(current)
            continue
        work += [
            simplify_statement(_take(current, phase, r), symbols, shapes)
            for r in range(phase.stride)
        ]
    return done


def _find_phase(statement: Statement) -> _Phase | None:
    """A remainder in a predicate that one free and one summed index decide."""
    assert statement.reduction is not None
    for element in statement.elements:
        for load in loads(element):
            if load.other is None or getattr(load.other, "value", None) != 0:
                continue
            for constraint in load.predicate:
                phase = _as_phase(statement, constraint)
                if phase is not None:
                    return phase
    return None


def _as_phase(statement: Statement, constraint: Affine) -> _Phase | None:
    """``-(num % stride) ≥ 0``, which is ``num % stride = 0``."""
    assert statement.reduction is not None
    if constraint.const or len(constraint.terms) != 1:
        return None
    atom, c = constraint.terms[0]
    if not isinstance(atom, Mod) or c >= 0:
        return None
    moving = [(a, k) for a, k in atom.num.terms if k % atom.den]
    if len(moving) != 2 or not all(isinstance(a, str) for a, _ in moving):
        return None
    reduced = set(statement.reduction.indices)
    names = set(statement.domain.names)
    summed = [(str(a), k) for a, k in moving if a in reduced]
    free = [(str(a), k) for a, k in moving if a in names and a not in reduced]
    if len(summed) != 1 or len(free) != 1 or free[0][0] in statement.order:
        return None
    extents = [_constant_extent(statement, n) for n, _ in (*free, *summed)]
    if any(e is None for e in extents):
        return None
    inverse = _inverse(summed[0][1], atom.den)
    if inverse is None or _inverse(free[0][1], atom.den) is None:
        return None
    offsets = tuple(
        -(atom.num.const + free[0][1] * r) * inverse % atom.den for r in range(atom.den)
    )
    if extents[0] is None or extents[1] is None:
        return None
    if extents[0] < atom.den or max(offsets) >= extents[1]:
        return None  # a phase without instances or without terms
    return _Phase(free[0][0], summed[0][0], atom.den, offsets)


def _inverse(step: int, stride: int) -> int | None:
    try:
        return pow(step, -1, stride)
    except ValueError:
        return None


def _constant_extent(statement: Statement, name: str) -> int | None:
    r = statement.domain.range_of(name)
    others = [x for x in statement.domain.ranges if x.name != name]
    if any(name in (x.lower.variables() | x.upper.variables()) for x in others):
        return None
    return r.upper.const if r.lower == affine(0) and r.upper.is_const else None


def _take(statement: Statement, phase: _Phase, r: int) -> Statement:
    """The instances of one phase, with indices counted within it."""
    offset = {phase.free: r, phase.summed: phase.offsets[r]}
    mapping = {n: variable(n) * phase.stride + start for n, start in offset.items()}
    ranges = tuple(
        IndexRange(
            name=x.name,
            lower=x.lower,
            upper=affine((x.upper.const - offset[x.name] + phase.stride - 1) // phase.stride),
        )
        if x.name in offset
        else x
        for x in statement.domain.ranges
    )
    domain = Domain(
        ranges=ranges,
        constraints=tuple(c.substitute(mapping) for c in statement.domain.constraints),
    )
    return map_statement_affines(replace(statement, domain=domain), lambda a: a.substitute(mapping))
