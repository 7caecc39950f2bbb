"""Expensive elements of a row that two statements need: computed once, kept while it lasts."""

from __future__ import annotations

from math import prod

from nestor.ir.affine import Affine, variable
from nestor.ir.expr import Expr, Load, loads, map_affines, map_expr, walk
from nestor.ir.program import AnyStatement, Program, Statement, Tensor, Write
from nestor.passes.analysis import (
    ProgramFacts,
    expression_work,
    is_functional,
    is_pointwise,
    program_facts,
)
from nestor.passes.context import PassContext
from nestor.passes.fusion import MAX_ROW_TEMP_ELEMS
from nestor.passes.rewriting import (
    Names,
    extent_of,
    first_position,
    in_order,
    map_expressions,
    names_of,
    renumber,
    replace_statements,
)

_NAME = "keep_row_elements"
_EXPENSIVE = 15.0
"""Work [additions] that costs more than storing an element near and reading it twice."""


def keep_row_elements(program: Program, ctx: PassContext) -> Program:
    """Store an expensive element that a reduction and a later pointwise statement both compute.

    Rewrite: ``l[i] = Σ_j exp(x[i,j] - m[i]); y[i,j] = exp(x[i,j] - m[i]) / l[i]`` →
        ``e[i,j] = exp(x[i,j] - m[i]); l[i] = Σ_j e[i,j]; y[i,j] = e[i,j] / l[i]``.
    Legal when: both run over the same box, one reads the other's result, and what the element reads
        is written before the reduction and not again.
    Pays when: the reduced indices are few enough for a row of ``e`` to stay near.
    """
    facts = program_facts(program)
    names = names_of(program)
    tensors = {t.name: t for t in program.tensors}
    rewritten: dict[str, Statement] = {}
    made: dict[str, Statement] = {}
    for statement in program.statements:
        if not isinstance(statement, Statement) or not _is_row_sum(statement, facts):
            continue
        reader = _reader(program, statement, rewritten)
        if reader is None:
            continue
        pointwise, renamed = reader
        kept = _keep(statement, names, tensors)
        made[statement.name] = kept
        load = _load(kept, {n: variable(n) for n in statement.domain.names})
        rewritten[statement.name] = _replaced(statement, statement.elements[0], load)
        element = _renamed(statement.elements[0], renamed)
        rewritten[pointwise.name] = _replaced(pointwise, element, _load(kept, renamed))
        ctx.changed(_NAME, statement.name, f"'{pointwise.name}' reads the same elements again")
    if not made:
        return program
    out: list[AnyStatement] = []
    for old in in_order(program.statements):
        if old.name in made:
            out.append(made[old.name])
        out.append(rewritten.get(old.name, old))
    return replace_statements(program, renumber(out), tensors.values())


def _is_row_sum(s: Statement, facts: ProgramFacts) -> bool:
    """A reduction of one expensive element over a box that a row may hold."""
    if s.reduction is None or not is_functional(s) or s.reduction.scan or s.reduction.into:
        return False
    if len(s.elements) != 1 or expression_work(s.elements[0]) < _EXPENSIVE:
        return False
    if s.domain.constraints or s.reduction.state_indices:
        return False
    extents = [extent_of(r) for r in s.domain.ranges]
    if any(e.variables() & set(s.domain.names) for e in extents):
        return False
    row = [extent_of(s.domain.range_of(n)) for n in s.reduction.indices]
    if not all(e.is_const for e in row) or prod(e.const for e in row) > MAX_ROW_TEMP_ELEMS:
        return False
    position = first_position(s)
    return all(facts.is_written_before(x.tensor, position) for x in loads(s.elements[0]))


def _reader(
    program: Program, s: Statement, rewritten: dict[str, Statement]
) -> tuple[Statement, dict[str, Affine]] | None:
    """The pointwise statement that reads the result of ``s`` and computes its element again, and
    its indices in the place of those of ``s``."""
    results = {w.tensor for w in s.writes}
    for other in program.statements:
        if not isinstance(other, Statement) or other.name in rewritten:
            continue
        if not is_pointwise(other) or not is_functional(other):
            continue
        if first_position(other) < first_position(s) or other.domain.constraints:
            continue
        if not any(x.tensor in results for x in other.loads):
            continue
        for renamed in _renamings(s, other):
            element = _renamed(s.elements[0], renamed)
            if any(node == element for e in other.elements for node in walk(e)):
                return other, renamed
    return None


def _renamings(s: Statement, other: Statement) -> list[dict[str, Affine]]:
    """Ways to pair equal ranges: each index of ``s`` with the one in its order, free ones first."""
    found = []
    assert s.reduction is not None
    free = [n for n in s.domain.names if n not in s.reduction.indices]
    for order in (list(s.domain.names), [*free, *s.reduction.indices]):
        if len(order) != len(other.domain.names):
            continue
        pairs = dict(zip(order, other.domain.names))
        ranges = [(s.domain.range_of(a), other.domain.range_of(b)) for a, b in pairs.items()]
        if all((a.lower, a.upper) == (b.lower, b.upper) for a, b in ranges):
            found.append({a: variable(b) for a, b in pairs.items()})
    return found


def _renamed(element: Expr, renamed: dict[str, Affine]) -> Expr:
    return map_affines(element, lambda a: a.substitute(renamed))


def _keep(s: Statement, names: Names, tensors: dict[str, Tensor]) -> Statement:
    """The statement that stores the elements of ``s`` in a temp over its whole domain."""
    element = s.elements[0]
    name = names.fresh(f"{s.writes[0].tensor}_elements")
    shape = tuple(extent_of(r) for r in s.domain.ranges)
    tensors[name] = Tensor(name=name, shape=shape, dtype=element.dtype, role="temp")
    indices = tuple(variable(r.name) - r.lower for r in s.domain.ranges)
    return Statement(
        name=names.fresh(f"{s.name}_elements"),
        domain=s.domain,
        elements=(element,),
        writes=(Write(tensor=name, indices=indices),),
        order=s.order,
    )


def _load(kept: Statement, renamed: dict[str, Affine]) -> Load:
    write = kept.writes[0]
    indices = tuple(i.substitute(renamed) for i in write.indices if isinstance(i, Affine))
    return Load(tensor=write.tensor, indices=indices, dtype=kept.elements[0].dtype)


def _replaced(s: Statement, element: Expr, load: Load) -> Statement:
    return map_expressions(s, lambda e: map_expr(e, lambda node: load if node == element else node))
