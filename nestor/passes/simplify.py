"""Simplify expressions, index maps and domains of every statement, exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from nestor.ir.affine import Affine, Interval
from nestor.ir.expr import Var, walk
from nestor.ir.program import Domain, Extern, Program, Statement
from nestor.passes.context import PassContext
from nestor.passes.rewriting import index_ranges, map_expressions, map_write, replace_statements
from nestor.passes.simplify_expr import (
    Shapes,
    simplify_affine,
    simplify_constraints,
    simplify_expr,
)


def simplify_program(program: Program, ctx: PassContext) -> Program:
    """Apply the exact rules of ``simplify_expr`` everywhere.

    Rewrite: ``x*1 → x``, ``cast(cast(x)) → cast(x)`` when lossless, ``(8*i + j)//8 → i`` for
        0 ≤ j < 8, predicates and selects that the ranges decide, constants evaluated.
    Legal when: always; no rule changes a bit of a result (NaN payloads apart).
    """
    symbols = program.symbol_ranges()
    shapes = {t.name: t.shape for t in program.tensors}
    statements = [
        s if isinstance(s, Extern) else simplify_statement(s, symbols, shapes)
        for s in program.statements
    ]
    return replace_statements(program, statements)


def simplify_statement(
    statement: Statement, symbols: Mapping[str, Interval], shapes: Shapes
) -> Statement:
    """Simplify one statement; the same object when nothing changed."""
    ranges = index_ranges(statement.domain, symbols)
    if any(lo is not None and hi is not None and lo > hi for lo, hi in ranges.values()):
        return statement  # an empty domain decides everything, and nothing runs
    statement = map_expressions(statement, lambda e: simplify_expr(e, ranges, shapes))
    statement = _drop_unread_state(statement)

    def simplify_index(value: Affine) -> Affine:
        return simplify_affine(value, ranges)

    writes = tuple(map_write(w, simplify_index) for w in statement.writes)
    domain = _simplify_domain(statement.domain, ranges)
    if domain is statement.domain and all(a is b for a, b in zip(writes, statement.writes)):
        return statement
    return replace(statement, writes=writes, domain=domain)


def _drop_unread_state(s: Statement) -> Statement:
    """A reduction whose result mentions no state is a plain statement over its output points."""
    r = s.reduction
    if r is None or r.into or any(isinstance(n, Var) for f in r.final for n in walk(f)):
        return s
    domain = s.domain
    if not r.scan:
        reduced = set(r.indices)
        domain = Domain(
            ranges=tuple(x for x in domain.ranges if x.name not in reduced),
            constraints=tuple(c for c in domain.constraints if not c.variables() & reduced),
        )
    return replace(s, domain=domain, elements=r.final, reduction=None)


def _simplify_domain(domain: Domain, ranges: Mapping[str, Interval]) -> Domain:
    constraints, holds = simplify_constraints(domain.constraints, ranges)
    if not holds or constraints == domain.constraints:
        return domain
    return replace(domain, constraints=constraints)
