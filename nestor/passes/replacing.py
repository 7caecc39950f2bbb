"""Groups of statements replaced by others: what several rewrites of whole patterns collect."""

from __future__ import annotations

from dataclasses import dataclass, field

from nestor.ir.program import AnyStatement, Program, Statement, Tensor
from nestor.passes.context import PassContext
from nestor.passes.rewriting import (
    Names,
    alias_roots,
    in_order,
    names_of,
    renumber,
    replace_statements,
)


@dataclass(slots=True)
class Replacements:
    """Statements that take the place of others in a program.

    Attributes:
        source: the program that is rewritten.
        ctx: of the pass.
        names: gives names that the program does not have.
        tensors: of the source, and new ones.
        placed: statement of the source → new ones that stand just before its place.
        gone: statements of the source that are left out.
    """

    source: Program
    ctx: PassContext
    names: Names = field(init=False)
    tensors: list[Tensor] = field(init=False)
    placed: dict[str, list[Statement]] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.names = names_of(self.source)
        self.tensors = list(self.source.tensors)

    def program(self) -> Program:
        """The rewritten program, without the temps that nothing names any more."""
        if not self.placed:
            return self.source
        out: list[AnyStatement] = []
        for statement in in_order(self.source.statements):
            out += self.placed.get(statement.name, [])
            if statement.name not in self.gone:
                out.append(statement)
        used = {name for s in out for name in _tensors_of(s)}
        roots = alias_roots({t.name: t for t in self.tensors})
        used |= {roots[t.name] for t in self.tensors if t.alias_of}
        kept = [t for t in self.tensors if t.role != "temp" or t.name in used or t.alias_of]
        return replace_statements(self.source, renumber(out), kept)


def _tensors_of(statement: AnyStatement) -> list[str]:
    """All that a statement reads or writes."""
    if not isinstance(statement, Statement):
        return [*statement.inputs, *statement.outputs]
    loads = [x.tensor for x in statement.loads]
    return loads + [w.tensor for w in statement.writes]
