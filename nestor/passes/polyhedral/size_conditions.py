"""For which values of the symbols is every access of a Program inside its tensor?

The checker proves bounds for *all* values of the symbols. Loop kernels are written for sizes that
fit each other, so the condition is derived here, in plain integers: it is checked at every call,
and the Program that is compiled is restricted to it (``restrict_program``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import islpy as isl

from nestor.errors import LegalityUnknown
from nestor.ir.affine import Affine, affine, affine_sum, floor_div
from nestor.ir.expr import IndexExpr, Load, distinct_nodes
from nestor.ir.program import Domain, Origin, Program, Statement, Symbol
from nestor.passes.polyhedral.isl_util import PARAM, Points, context, coordinates

MAX_OPERATIONS = 5_000_000
MAX_PIECES = 8

Conjunction = tuple[Affine, ...]
"""Affines of symbols; each is ≥ 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutsideAccess:
    """An access that is outside its tensor for some values of the symbols.

    Attributes:
        index, extent: of dimension ``dim``; over the statement's indices and symbols.
        when: it is outside where one of these holds; None if that was too hard to tell.
        certain: whenever the statement runs at all, it is outside at some instance.
        witness: values of indices and symbols for which it is.
    """

    statement: str
    tensor: str
    dim: int
    index: Affine
    extent: Affine
    when: tuple[Conjunction, ...] | None
    certain: bool
    witness: Mapping[str, int]
    origin: Origin | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeConditions:
    """Attributes:
    outside: accesses that may leave their tensors.
    pieces: every access is inside where one of these holds; ``((),)`` if always. Also only there,
        unless there are ``MAX_PIECES``: more are left out.
    """

    outside: tuple[OutsideAccess, ...]
    pieces: tuple[Conjunction, ...]


def find_size_conditions(program: Program) -> SizeConditions:
    """Derive the conditions. Raises: ``LegalityUnknown`` where isl takes too long."""
    ctx = context()
    ctx.reset_operations()
    ctx.set_max_operations(MAX_OPERATIONS)
    try:
        return _find(program)
    except isl.Error:
        raise LegalityUnknown(
            f"kernel '{program.name}': whether its accesses are inside their arrays takes more than"
            f" {MAX_OPERATIONS} isl operations to tell"
        ) from None
    finally:
        ctx.set_max_operations(0)
        ctx.reset_operations()


def _find(program: Program) -> SizeConditions:
    symbols = program.symbols
    shapes = {t.name: t.shape for t in program.tensors}
    good = Points((), symbols, (), (), program.symbol_ranges()).domain().params()
    whole = good
    outside: list[OutsideAccess] = []
    seen: set[object] = set()
    for statement in program.statements:
        assert isinstance(statement, Statement)
        points = _points(statement, program)
        for tensor, indices, predicate in _accesses(statement):
            for dim, (index, extent) in enumerate(zip(indices, shapes[tensor])):
                key = (statement.name, tensor, index, extent, predicate)
                if not isinstance(index, Affine) or key in seen:
                    continue
                seen.add(key)
                found = _outside(points, predicate, index, extent)
                if found is None:
                    continue
                bad = found.params()
                runs = points.domain(predicate).params()
                outside.append(
                    OutsideAccess(
                        statement=statement.name,
                        tensor=tensor,
                        dim=dim,
                        index=index,
                        extent=extent,
                        when=_conjunctions(bad.gist(whole), symbols),
                        certain=bool(runs.is_subset(bad)),
                        witness=_witness(found, points),
                        origin=statement.origin,
                    )
                )
                good = good.subtract(bad)
    for t in program.by_role("temp"):
        for dim, extent in enumerate(t.shape):
            negative = Points((), symbols, (-extent - 1,), (), program.symbol_ranges()).domain()
            if not negative.is_empty():
                good = good.subtract(negative.params())
                outside.append(_negative_size(t.name, dim, extent, negative, symbols, whole))
    pieces = _conjunctions(good.coalesce().gist(whole), symbols)
    return SizeConditions(outside=tuple(outside), pieces=pieces[:MAX_PIECES])


def _negative_size(
    name: str, dim: int, extent: Affine, found: Any, symbols: tuple[Symbol, ...], whole: Any
) -> OutsideAccess:
    values = coordinates(found)
    assert values is not None
    return OutsideAccess(
        statement="",
        tensor=name,
        dim=dim,
        index=affine(0),
        extent=extent,
        when=_conjunctions(found.params().gist(whole), symbols),
        certain=bool(whole.is_subset(found.params())),
        witness={s.name: v for s, v in zip(symbols, values[0])},
    )


def _points(statement: Statement, program: Program) -> Points:
    constraints: list[Affine] = []
    ranges = dict(program.symbol_ranges())
    for r in statement.domain.ranges:
        constraints += [affine(r.name) - r.lower, r.upper - 1 - affine(r.name)]
        ranges[r.name] = (r.lower.bounds(ranges)[0], (r.upper - 1).bounds(ranges)[1])
    constraints += statement.domain.constraints
    return Points(statement.domain.names, program.symbols, tuple(constraints), (), ranges)


def _accesses(
    statement: Statement,
) -> list[tuple[str, tuple[IndexExpr, ...], tuple[Affine, ...]]]:
    out: list[tuple[str, tuple[IndexExpr, ...], tuple[Affine, ...]]] = []
    exprs = list(statement.elements)
    for w in statement.writes:
        out.append((w.tensor, w.indices, ()))
        exprs += [i for i in w.indices if not isinstance(i, Affine)]
    for e in exprs:
        for node in distinct_nodes(e):
            if isinstance(node, Load):
                out.append((node.tensor, node.indices, node.predicate))
    return out


def _outside(
    points: Points, predicate: tuple[Affine, ...], index: Affine, extent: Affine
) -> Any | None:
    """The instances at which ``index`` is not in ``[0, extent)``; None if there are none."""
    out: Any | None = None
    for bad in (-index - 1, index - extent):
        high = bad.bounds(points.ranges)[1]
        if high is not None and high < 0:
            continue
        found = points.domain((*predicate, bad))
        if not found.is_empty():
            out = found if out is None else out.union(found)
    return out


def _witness(found: Any, points: Points) -> dict[str, int]:
    sample = coordinates(found)
    assert sample is not None
    env = {s.name: v for s, v in zip(points.symbols, sample[0])}
    env.update(zip(points.names, sample[1]))
    return env


# ---------------------------------------------------------------------------------- isl → affine


def _conjunctions(where: Any, symbols: tuple[Symbol, ...]) -> tuple[Conjunction, ...]:
    """A set of symbol values as affines, each conjunction one of isl's basic sets."""
    out: list[Conjunction] = []
    for basic in where.compute_divs().remove_redundancies().get_basic_sets():
        parts: list[Affine] = []
        for constraint in basic.get_constraints():
            value = _affine_of(constraint.get_aff(), symbols)
            parts.append(value)
            if constraint.is_equality():
                parts.append(-value)
        out.append(tuple(parts))
    return tuple(out)


def _affine_of(aff: Any, symbols: tuple[Symbol, ...]) -> Affine:
    """An ``isl.Aff`` of parameters with integer coefficients."""
    return _scaled(aff, symbols, 1)


def _scaled(aff: Any, symbols: tuple[Symbol, ...], factor: int) -> Affine:
    parts: list[tuple[Affine, int]] = []
    for k, symbol in enumerate(symbols):
        c = (aff.get_coefficient_val(PARAM, k) * factor).to_python()
        parts.append((affine(symbol.name), int(c)))
    for k in range(aff.dim(isl.dim_type.div)):
        c = int((aff.get_coefficient_val(isl.dim_type.div, k) * factor).to_python())
        if c:
            inner = aff.get_div(k)
            den = int(inner.get_denominator_val().to_python())
            parts.append((floor_div(_scaled(inner, symbols, den), den), c))
    const = int((aff.get_constant_val() * factor).to_python())
    return affine_sum(parts, const)


# ---------------------------------------------------------------------------------- restriction


def restrict_program(
    program: Program, piece: Conjunction, statements: frozenset[str], lower: int
) -> Program:
    """The Program for symbols of at least ``lower`` for which ``piece`` holds.

    Conditions on one symbol narrow its range; others become constraints of the domains of
    ``statements``, whose accesses need them.
    """
    ranges = {s.name: [max(s.lower, lower), s.upper] for s in program.symbols}
    further: list[Affine] = []
    for condition in piece:
        if len(condition.terms) != 1 or not isinstance(condition.terms[0][0], str):
            further.append(condition)
            continue
        name, c = condition.terms[0]
        low, high = ranges[str(name)]
        assert low is not None
        if c > 0:
            ranges[str(name)][0] = max(low, -(condition.const // c))
        else:
            limit = condition.const // -c
            ranges[str(name)][1] = limit if high is None else min(high, limit)
    symbols = tuple(
        Symbol(name=s.name, lower=ranges[s.name][0] or 0, upper=ranges[s.name][1])
        for s in program.symbols
    )
    bounds = {s.name: (s.lower, s.upper) for s in symbols}
    needed = tuple(c for c in further if (low := c.bounds(bounds)[0]) is None or low < 0)
    return replace(
        program,
        symbols=symbols,
        statements=tuple(
            replace(s, domain=_constrain(s.domain, needed))
            if isinstance(s, Statement) and s.name in statements and needed
            else s
            for s in program.statements
        ),
    )


def _constrain(domain: Domain, conditions: tuple[Affine, ...]) -> Domain:
    return Domain(ranges=domain.ranges, constraints=(*domain.constraints, *conditions))
