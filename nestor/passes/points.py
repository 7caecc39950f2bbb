"""Where two statements meet in a temp: which of their indices are the same points."""

from __future__ import annotations

from nestor.ir.affine import Affine
from nestor.ir.expr import Load
from nestor.ir.program import Statement
from nestor.passes.analysis import ProgramFacts, is_functional

Names = dict[str, str]
"""What another statement calls the indices of a first one."""


def is_private(statement: Statement, facts: ProgramFacts) -> bool:
    """Whether a statement has one result, a temp, which nothing else writes."""
    if not is_functional(statement) or len(statement.writes) != 1:
        return False
    if statement.reduction is not None and statement.reduction.scan:
        return False
    name = statement.writes[0].tensor
    return facts.is_private_temp(name) and len(facts.writers[facts.roots[name]]) == 1


def same_points(writer: Statement, load: Load, reader: Statement) -> dict[str, str] | None:
    """Indices of ``writer`` → indices of ``reader``, where both access one tensor by plain
    indices of equal ranges."""
    if load.predicate:
        return None
    names: dict[str, str] = {}
    for w, r in zip(writer.writes[0].indices, load.indices, strict=True):
        if not isinstance(w, Affine) or not isinstance(r, Affine):
            return None
        if w == r and w.is_const:
            continue
        pair = _plain(w), _plain(r)
        if pair[0] is None or pair[1] is None:
            return None
        a, b = pair
        if a not in writer.domain.names or b not in reader.domain.names or a in names:
            return None
        ours, theirs = writer.domain.range_of(a), reader.domain.range_of(b)
        if (ours.lower, ours.upper) != (theirs.lower, theirs.upper):
            return None
        names[a] = b
    return names if len(set(names.values())) == len(names) else None


def _plain(index: Affine) -> str | None:
    if index.const or len(index.terms) != 1 or index.terms[0][1] != 1:
        return None
    atom = index.terms[0][0]
    return atom if isinstance(atom, str) else None
