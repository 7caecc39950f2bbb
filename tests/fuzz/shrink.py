"""Make a failing case small: fewer schedule steps, fewer statements, smaller loops and expressions.

Each attempt keeps the case only if it still fails in the same way and its Program still has a
meaning (the interpreters agree, nothing undefined is read).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from nestor.errors import NestorError
from nestor.ir.expr import Expr, Load, const, loads, map_children
from nestor.ir.expr import children as expr_children
from nestor.ir.program import Domain, IndexRange, Program, Statement, Tensor
from nestor.ir.schedule import Schedule
from tests.fuzz.enclosure_program import UndefinedRead
from tests.fuzz.generate_programs import Case, exprs_of
from tests.fuzz.harness import (
    Candidate,
    Counts,
    Failure,
    check_candidate,
    check_compiler,
    make_reference,
)

TIME_LIMIT = 60.0
"""Seconds spent on one case at most."""


@dataclass(frozen=True, slots=True)
class Found:
    """A case that fails, under a schedule; None: in the passes or the default schedules."""

    case: Case
    candidate: Candidate | None


Judge = Callable[[Found], str | None]
"""The kind of failure, or None if all is well (or the case has no meaning)."""


def failure_kind(found: Found) -> str | None:
    """How the case fails; None if it does not, or is no proper case any more."""
    try:
        reference = make_reference(found.case)
    except (Failure, UndefinedRead, NestorError, IndexError, KeyError):
        return None
    try:
        if found.candidate is None:
            check_compiler(found.case, reference, Counts())
        else:
            check_candidate(found.case, reference, found.candidate, Counts())
    except Failure as failure:
        return failure.kind
    except Exception as crash:
        return type(crash).__name__
    return None


def shrink(found: Found, judge: Judge = failure_kind) -> Found:
    """The smallest variant that could be found within ``TIME_LIMIT``."""
    kind = judge(found)
    deadline = time.monotonic() + TIME_LIMIT
    progress = kind is not None
    while progress:
        progress = False
        for smaller in variants(found):
            if time.monotonic() > deadline:
                return found
            if judge(smaller) == kind:
                found, progress = smaller, True
                break
    return found


def variants(found: Found) -> Iterator[Found]:
    """Simpler neighbours, boldest first."""
    if found.candidate is not None:
        for schedule in shorter(found.candidate.schedule):
            yield Found(found.case, replace(found.candidate, schedule=schedule))
    programs = (*fewer_statements(found.case.program), *smaller_loops(found.case.program))
    for program in (*programs, *simpler_elements(found.case.program)):
        yield Found(replace(found.case, program=without_unused(program)), found.candidate)
    values = {n: v // 2 for n, v in found.case.symbols.items() if v > 1}
    if values:
        yield Found(replace(found.case, symbols={**found.case.symbols, **values}), found.candidate)


def shorter(schedule: Schedule) -> Iterator[Schedule]:
    """Halves left out, then single steps."""
    count = len(schedule)
    if count > 3:
        yield schedule[: count // 2]
        yield schedule[count // 2 :]
    for k in range(count):
        yield (*schedule[:k], *schedule[k + 1 :])


def fewer_statements(program: Program) -> Iterator[Program]:
    """One statement less; what it wrote becomes an input where others read it."""
    if len(program.statements) < 2:
        return
    for k, s in enumerate(program.statements):
        assert isinstance(s, Statement)
        rest = (*program.statements[:k], *program.statements[k + 1 :])
        written = {w.tensor for x in rest if isinstance(x, Statement) for w in x.writes}
        orphans = {w.tensor for w in s.writes} - written
        tensors = tuple(
            replace(t, role="input") if t.name in orphans and t.role in ("temp", "output") else t
            for t in program.tensors
        )
        yield replace(program, statements=rest, tensors=with_output(tensors, rest))


def with_output(tensors: tuple[Tensor, ...], statements: object) -> tuple[Tensor, ...]:
    """Temps that nobody reads any more are outputs."""
    read = {x.tensor for s in statements for e in exprs_of(s) for x in loads(e)}  # type: ignore[attr-defined]
    bases = {t.alias_of for t in tensors}
    return tuple(
        replace(t, role="output")
        if t.role == "temp" and t.name not in read and t.name not in bases and not t.alias_of
        else t
        for t in tensors
    )


def without_unused(program: Program) -> Program:
    """Tensors that no statement mentions are left out."""
    used: set[str] = set()
    for s in program.statements:
        assert isinstance(s, Statement)
        used |= {w.tensor for w in s.writes} | {x.tensor for e in exprs_of(s) for x in loads(e)}
    used |= {t.alias_of for t in program.tensors if t.name in used and t.alias_of}
    return replace(program, tensors=tuple(t for t in program.tensors if t.name in used))


def smaller_loops(program: Program) -> Iterator[Program]:
    """A constant range cut short; tensors keep their sizes, so accesses stay inside."""
    for k, s in enumerate(program.statements):
        assert isinstance(s, Statement)
        for i, r in enumerate(s.domain.ranges):
            span = r.upper - r.lower
            if not span.is_const or span.const <= 1:
                continue
            for size in {1, span.const // 2, span.const - 1}:
                new = IndexRange(name=r.name, lower=r.lower, upper=r.lower + size)
                ranges = (*s.domain.ranges[:i], new, *s.domain.ranges[i + 1 :])
                domain = Domain(ranges=ranges, constraints=s.domain.constraints)
                yield _with_statement(program, k, replace(s, domain=domain))
        if s.domain.constraints:
            yield _with_statement(program, k, replace(s, domain=Domain(ranges=s.domain.ranges)))


def simpler_elements(program: Program) -> Iterator[Program]:
    """A subexpression replaced by one of its own operands, or by a constant."""
    for k, s in enumerate(program.statements):
        assert isinstance(s, Statement)
        for c, element in enumerate(s.elements):
            for new in simpler(element):
                elements = (*s.elements[:c], new, *s.elements[c + 1 :])
                yield _with_statement(program, k, replace(s, elements=elements))


def simpler(e: Expr) -> Iterator[Expr]:
    """Expressions of the same type with a node less."""
    inner = expr_children(e)
    yield from (x for x in inner if x.dtype is e.dtype and not isinstance(e, Load))
    if inner and not e.dtype.is_storage_only:
        yield const(1, e.dtype)
    if isinstance(e, Load) and e.predicate and not e.dtype.is_storage_only:
        yield const(1, e.dtype)
    if isinstance(e, Load):
        return
    for position, child in enumerate(inner):
        for new in simpler(child):
            yield _with_child(e, position, new)


def _with_child(e: Expr, position: int, new: Expr) -> Expr:
    count = iter(range(len(expr_children(e))))
    return map_children(e, lambda child: new if next(count) == position else child)


def _with_statement(program: Program, k: int, s: Statement) -> Program:
    return replace(program, statements=(*program.statements[:k], s, *program.statements[k + 1 :]))
