"""Remove statements, writes and tensors that no output depends on."""

from __future__ import annotations

from dataclasses import replace

from nestor.ir.program import AnyStatement, Extern, Program
from nestor.passes.analysis import ProgramFacts, program_facts, read_tensors, written_tensors
from nestor.passes.context import PassContext
from nestor.passes.rewriting import replace_statements

_LASTING = ("output", "inout", "state", "input")
_DROPPED = ("temp", "parameter", "constant")


def remove_dead_code(program: Program, ctx: PassContext) -> Program:
    """Drop statements whose results nobody reads, dead writes of live ones, and unused tensors.

    Rewrite: ``t = f(x); y = g(x)`` → ``y = g(x)`` when ``t`` is a temp that nothing reads.
    Legal when: the tensor is a temp and no statement that is kept reads its bytes. Inputs, outputs
        and state stay, unused or not: they are the calling convention.
    """
    facts = program_facts(program)
    live_roots, live = _live(program, facts)
    statements: list[AnyStatement] = []
    for number, statement in enumerate(program.statements):
        if number not in live:
            ctx.changed("remove_dead_code", statement.name, "nothing reads its results")
            continue
        statements.append(_drop_dead_writes(statement, facts, live_roots))
    used: set[str] = set()
    for statement in statements:
        for name in (*read_tensors(statement), *written_tensors(statement)):
            used |= {name, facts.roots[name]}
    tensors = [t for t in program.tensors if t.role not in _DROPPED or t.name in used]
    return replace_statements(program, statements, tensors)


def _live(program: Program, facts: ProgramFacts) -> tuple[set[str], set[int]]:
    """Roots whose bytes matter, and the numbers of the statements that make them."""
    work = [facts.roots[t.name] for t in program.tensors if t.role in _LASTING]
    live: set[int] = set()
    for number, statement in enumerate(program.statements):
        if isinstance(statement, Extern) and not statement.outputs:
            live.add(number)
            work += [facts.roots[n] for n in statement.inputs]
    roots: set[str] = set()
    while work:
        root = work.pop()
        if root in roots:
            continue
        roots.add(root)
        for number in facts.writers.get(root, ()):
            if number not in live:
                live.add(number)
                work += [facts.roots[n] for n in read_tensors(program.statements[number])]
    return roots, live


def _drop_dead_writes(
    statement: AnyStatement, facts: ProgramFacts, live_roots: set[str]
) -> AnyStatement:
    if isinstance(statement, Extern) or len(statement.writes) == 1:
        return statement
    keep = [p for p, w in enumerate(statement.writes) if facts.roots[w.tensor] in live_roots]
    if len(keep) == len(statement.writes):
        return statement
    writes = tuple(statement.writes[p] for p in keep)
    reduction = statement.reduction
    if reduction is None:
        return replace(
            statement, writes=writes, elements=tuple(statement.elements[p] for p in keep)
        )
    if reduction.into:
        return statement
    final = tuple(reduction.final[p] for p in keep)
    return replace(statement, writes=writes, reduction=replace(reduction, final=final))
