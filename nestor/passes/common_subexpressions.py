"""Compute equal things once: identical statements that make identical temps become one."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace

from nestor.ir.program import AnyStatement, Extern, Program, Statement
from nestor.passes.analysis import ProgramFacts, is_functional, program_facts
from nestor.passes.context import PassContext
from nestor.passes.rewriting import (
    first_position,
    in_order,
    rename_indices,
    rename_loads,
    replace_statements,
)


def merge_common_subexpressions(program: Program, ctx: PassContext) -> Program:
    """Replace a statement by an earlier one that computes the same tensors.

    Rewrite: ``a = f(x); b = f(x); y = g(a, b)`` → ``a = f(x); y = g(a, a)``.
    Legal when: the statements are equal up to the names of indices and targets, the second's
        targets are temps without aliases that it alone writes, and what they read is not written
        after the first.
    """
    facts = program_facts(program)
    seen: dict[Hashable, list[_Seen]] = {}
    renamed: dict[str, str] = {}
    dropped: set[str] = set()
    statements: list[AnyStatement] = []
    for statement in in_order(program.statements):
        if isinstance(statement, Extern):
            statements.append(statement)
            continue
        if renamed:
            statement = rename_loads(statement, renamed)
        earlier = _find(statement, facts, seen)
        if earlier is None:
            statements.append(statement)
            continue
        for old, new in zip(statement.writes, earlier.writes):
            renamed[old.tensor] = new.tensor
            dropped.add(old.tensor)
        ctx.changed("merge_common_subexpressions", statement.name, f"equal to '{earlier.name}'")
    if not dropped:
        return program
    return replace_statements(
        program, statements, [t for t in program.tensors if t.name not in dropped]
    )


@dataclass(slots=True)
class _Seen:
    """A statement and, once another one looks like it, its canonical form."""

    statement: Statement
    key: Hashable = None


def _find(
    statement: Statement, facts: ProgramFacts, seen: dict[Hashable, list[_Seen]]
) -> Statement | None:
    """An earlier equal statement; else remember this one."""
    if not is_functional(statement):
        return None
    position = first_position(statement)
    for load in statement.loads:
        if not facts.is_written_before(load.tensor, position):
            return None
    targets = [w.tensor for w in statement.writes]
    if any(
        facts.tensors[t].role not in ("temp", "output")
        or t in facts.aliased
        or len(facts.writers[t]) > 1
        for t in targets
    ):
        return None
    earlier = _equal_one(statement, facts, seen)
    if earlier is None or not all(facts.is_private_temp(t) for t in targets):
        return None
    start = first_position(earlier)
    if all(facts.is_written_before(x.tensor, start) for x in statement.loads):
        return earlier
    return None


def _equal_one(
    statement: Statement, facts: ProgramFacts, seen: dict[Hashable, list[_Seen]]
) -> Statement | None:
    """The first statement with the same canonical form; canonical forms are built on demand."""
    signature = (
        tuple(sorted(x.tensor for x in statement.loads)),
        len(statement.writes),
        len(statement.domain.ranges),
    )
    bucket = seen.setdefault(signature, [])
    found: Statement | None = None
    mine = _Seen(statement)
    if bucket:
        mine.key = _key(statement, facts)
        for other in bucket:
            if other.key is None:
                other.key = _key(other.statement, facts)
            if other.key == mine.key:
                found = other.statement
                break
    if found is None:
        bucket.append(mine)
    return found


def _key(statement: Statement, facts: ProgramFacts) -> Hashable:
    names = {n: f"%{p}" for p, n in enumerate(statement.domain.names)}
    same = rename_indices(statement, names)
    targets = tuple(
        (
            facts.tensors[w.tensor].shape,
            facts.tensors[w.tensor].dtype,
            facts.tensors[w.tensor].layout,
        )
        for w in same.writes
    )
    anonymous = replace(
        same,
        name="",
        order=(0,),
        origin=None,
        writes=tuple(replace(w, tensor="") for w in same.writes),
    )
    return anonymous, targets
