"""Find attention: a softmax between two contractions, whatever lies between them."""

from __future__ import annotations

from dataclasses import dataclass

from nestor.ir.affine import affine
from nestor.ir.expr import Binary, Expr, Load, Unary
from nestor.ir.monoid import is_builtin
from nestor.ir.program import AnyStatement, Domain, Program, Statement
from nestor.passes.analysis import ProgramFacts, contraction_roles, is_functional
from nestor.passes.points import Names, is_private, same_points
from nestor.passes.statement_facts import free_indices


@dataclass(frozen=True, slots=True)
class Attention:
    """Statements of a softmax between two contractions.

    Attributes:
        scores: writers of the scores and of what only they read, first to last; the last writes
            the tensor that the softmax reads.
        names: for each statement (by name), what it calls the indices of the last of ``scores``.
        key: the index of the last of ``scores`` that the softmax runs over.
    """

    scores: tuple[Statement, ...]
    largest: Statement
    weights: Statement
    total: Statement
    result: Statement
    names: dict[str, Names]
    key: str

    def members(self) -> set[str]:
        own = (*self.scores, self.largest, self.weights, self.total, self.result)
        return {s.name for s in own}


def find_attention(result: Statement, program: Program, facts: ProgramFacts) -> Attention | None:
    """The attention that ends in the contraction ``result``."""
    roles = contraction_roles(result)
    if roles is None or not is_functional(result) or len(result.writes) != 1:
        return None
    if roles.others or roles.windows or result.reduction is None or len(roles.k) != 1:
        return None
    for operand in (roles.a_expr, roles.b_expr):
        weights = _writer(operand, facts, program)
        if weights is None or not isinstance(weights.elements[0], Unary):
            continue
        found = _from_weights(result, weights, program, facts)
        if found is not None:
            return found
    return None


def _from_weights(
    result: Statement, weights: Statement, program: Program, facts: ProgramFacts
) -> Attention | None:
    """``weights`` is ``exp(X - m)`` with one reader besides ``result``: the total."""
    element = weights.elements[0]
    if weights.reduction is not None or not isinstance(element, Unary) or element.op != "exp":
        return None
    if not isinstance(element.x, Binary) or element.x.op != "sub":
        return None
    source, largest = _writer(element.x.a, facts, program), _writer(element.x.b, facts, program)
    others = [r for r in _readers(weights, facts, program) if r is not result]
    if source is None or largest is None or len(others) != 1:
        return None
    total = others[0]
    if not isinstance(total, Statement) or not _reduces(total, "sum", weights):
        return None
    if not _reduces(largest, "max", source) or not is_private(total, facts):
        return None
    wanted = ((source, [largest, weights]), (largest, [weights]), (total, [result]))
    for writer, readers in wanted:
        if {r.name for r in _readers(writer, facts, program)} != {r.name for r in readers}:
            return None
    return _named(result, weights, total, largest, source, program, facts)


def _named(
    result: Statement,
    weights: Statement,
    total: Statement,
    largest: Statement,
    source: Statement,
    program: Program,
    facts: ProgramFacts,
) -> Attention | None:
    """Relate everybody's indices to those of the scores."""
    own = {n: n for n in free_indices(source)}
    names: dict[str, Names] = {source.name: own}
    for writer, reader in (
        (source, largest),
        (source, weights),
        (weights, total),
        (weights, result),
    ):
        seen = _seen(writer, reader)
        if seen is None or not set(names[writer.name].values()) <= set(seen):
            return None
        names[reader.name] = {a: seen[b] for a, b in names[writer.name].items()}
    assert largest.reduction is not None and result.reduction is not None
    keys = [n for n in own if names[largest.name][n] in largest.reduction.indices]
    if len(keys) != 1:
        return None
    (key,) = keys
    for reader in (total, result):
        assert reader.reduction is not None
        if reader.reduction.indices != (names[reader.name][key],):
            return None
    dtypes = {s.elements[0].dtype for s in (largest, weights, total, result)}
    if len(dtypes) != 1 or not _is_box(source.domain) or not _is_box(result.domain):
        return None
    scores = _producers(source, names, program, facts)
    return Attention(scores, largest, weights, total, result, names, key)


def _is_box(domain: Domain) -> bool:
    """Whether all indices run from 0 to what no other index decides."""
    own = set(domain.names)
    return all(r.lower == affine(0) and not r.upper.variables() & own for r in domain.ranges)


def _producers(
    source: Statement, names: dict[str, Names], program: Program, facts: ProgramFacts
) -> tuple[Statement, ...]:
    """``source`` after the statements whose results it alone reads, at the same points."""
    chain = [source]
    while True:
        reader = chain[0]
        before: list[Statement] = []
        for load in reader.loads:
            writer = _writer(load, facts, program)
            if writer is None or writer in chain or writer in before:
                continue
            if [r.name for r in _readers(writer, facts, program)] != [reader.name]:
                continue
            seen = _seen(writer, reader)
            back = {b: a for a, b in seen.items()} if seen else {}
            if set(names[reader.name].values()) == set(back) and set(back.values()) == set(
                free_indices(writer)
            ):
                names[writer.name] = {a: back[b] for a, b in names[reader.name].items()}
                before.append(writer)
        if len(before) != 1:
            return tuple(chain)
        chain = [*before, *chain]


def _writer(node: Expr, facts: ProgramFacts, program: Program) -> Statement | None:
    """The one statement that writes what a plain load of a private temp reads."""
    if not isinstance(node, Load) or node.predicate:
        return None
    numbers = facts.writers.get(facts.roots[node.tensor], [])
    if len(numbers) != 1:
        return None
    writer = program.statements[numbers[0]]
    return writer if isinstance(writer, Statement) and is_private(writer, facts) else None


def _readers(writer: Statement, facts: ProgramFacts, program: Program) -> list[AnyStatement]:
    return [program.statements[n] for n in facts.readers.get(writer.writes[0].tensor, [])]


def _reduces(s: Statement, monoid: str, of: Statement) -> bool:
    """A plain maximum or sum, over one index, of what ``of`` writes."""
    r = s.reduction
    return (
        r is not None
        and r.monoid.name == monoid
        and is_builtin(r.monoid)
        and len(r.indices) == 1
        and not r.scan
        and not r.into
        and is_functional(s)
        and isinstance(s.elements[0], Load)
        and s.elements[0].tensor == of.writes[0].tensor
    )


def _seen(writer: Statement, reader: Statement) -> Names | None:
    """What ``reader`` calls the indices of ``writer``, whose result it reads at one place."""
    places = {x for x in reader.loads if x.tensor == writer.writes[0].tensor}
    return same_points(writer, places.pop(), reader) if len(places) == 1 else None
