"""Drop what nothing reads, so that a Program names only tensors it needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from nestor.ir.affine import Affine
from nestor.ir.expr import Expr, Load, walk
from nestor.ir.program import AnyStatement, Extern, Program, Tensor

_KEPT_ROLES = ("input", "output", "inout")


def prune_program(program: Program) -> Program:
    """Remove statements whose results nobody reads, and tensors that no statement mentions.

    Inputs stay: they are the calling convention. A tensor is live if an output depends on it at
    all; writes do not end a life, so loops over time need no special care.
    """
    tensors = {t.name: t for t in program.tensors}
    writers: dict[str, list[AnyStatement]] = {}
    for statement in program.statements:
        for name in written(statement):
            writers.setdefault(_base(name, tensors), []).append(statement)
    work = [t.name for t in program.tensors if t.role in ("output", "inout")]
    live = set(work)
    kept: set[str] = set()
    mentioned = set(work)
    while work:
        for statement in writers.get(work.pop(), ()):
            if statement.name in kept:
                continue
            kept.add(statement.name)
            mentioned.update(written(statement))
            for name in read_tensors(statement):
                mentioned.add(name)
                base = _base(name, tensors)
                mentioned.add(base)
                if base not in live:
                    live.add(base)
                    work.append(base)
    mentioned |= {_base(n, tensors) for n in mentioned}
    return replace(
        program,
        tensors=tuple(t for t in program.tensors if t.role in _KEPT_ROLES or t.name in mentioned),
        statements=tuple(s for s in program.statements if s.name in kept),
    )


def written(statement: AnyStatement) -> tuple[str, ...]:
    """Names of the tensors that a statement writes."""
    if isinstance(statement, Extern):
        return statement.outputs
    return tuple(w.tensor for w in statement.writes)


def read_tensors(statement: AnyStatement) -> Iterator[str]:
    """Names of the tensors that a statement reads."""
    if isinstance(statement, Extern):
        yield from statement.inputs
        return
    expressions: list[Expr] = list(statement.elements)
    for write in statement.writes:
        expressions += [i for i in write.indices if not isinstance(i, Affine)]
    if statement.reduction is not None:
        expressions += statement.reduction.final
        if statement.reduction.into:
            yield from written(statement)
    for expression in expressions:
        for node in walk(expression):
            if isinstance(node, Load):
                yield node.tensor


def _base(name: str, tensors: Mapping[str, Tensor]) -> str:
    """The tensor whose bytes ``name`` is."""
    while tensors[name].alias_of is not None:
        name = tensors[name].alias_of or name
    return name
