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


def same_points(writer: Statement, load: Load, reader: Statement) -> Names | None:
    """Indices of ``writer`` → indices of ``reader``: what ``load`` reads was written where they are
    equal. Indices that do not stand alone in a dimension, with one range on both sides, are left
    out. None where an index of the writer would be two of the reader's."""
    if load.predicate:
        return None
    names: Names = {}
    for w, r in zip(writer.writes[0].indices, load.indices, strict=True):
        a = plain_index(w) if isinstance(w, Affine) else None
        b = plain_index(r) if isinstance(r, Affine) else None
        if a not in writer.domain.names or b not in reader.domain.names:
            continue
        assert a is not None and b is not None
        ours, theirs = writer.domain.range_of(a), reader.domain.range_of(b)
        if (ours.lower, ours.upper) != (theirs.lower, theirs.upper):
            continue
        if names.get(a, b) != b:
            return None
        names[a] = b
    return names if len(set(names.values())) == len(names) else None


def merged_points(writer: Statement, load: Load, reader: Statement) -> Names | None:
    """As ``same_points``, where a dimension may hold several indices: ``30*i + j``, ``j < 30``."""
    if load.predicate:
        return None
    names: Names = {}
    for w, r in zip(writer.writes[0].indices, load.indices, strict=True):
        if not isinstance(w, Affine) or not isinstance(r, Affine) or w.const != r.const:
            continue
        digits = index_digits(w, writer)
        if digits is None:
            continue
        theirs = {c: a for a, c in r.terms if isinstance(a, str) and a in reader.domain.names}
        if len(theirs) != len(r.terms) or set(theirs) != {c for _, c in digits}:
            continue
        for a, c in digits:
            b = theirs[c]
            ours, other = writer.domain.range_of(a), reader.domain.range_of(b)
            if (ours.lower, ours.upper) != (other.lower, other.upper) or names.get(a, b) != b:
                return None
            names[a] = b
    return names if len(set(names.values())) == len(names) else None


def index_digits(index: Affine, statement: Statement) -> list[tuple[str, int]] | None:
    """Indices and their factors, greatest first, if different indices give different places, as
    digits give different numbers: each factor exceeds what the smaller ones can add up to."""
    digits = [(a, c) for a, c in index.terms if isinstance(a, str) and c > 0]
    if not digits or len(digits) != len(index.terms):
        return None
    digits.sort(key=lambda digit: -digit[1])
    reach = 0
    for n, (name, factor) in enumerate(reversed(digits)):
        if factor <= reach or name not in statement.domain.names:
            return None
        r = statement.domain.range_of(name)
        if n + 1 < len(digits) and not (r.upper - r.lower).is_const:
            return None
        reach += factor * ((r.upper - r.lower).const - 1) if (r.upper - r.lower).is_const else 0
    return digits


def plain_index(index: Affine) -> str | None:
    """The variable that ``index`` is, if it is one."""
    if index.const or len(index.terms) != 1 or index.terms[0][1] != 1:
        return None
    atom = index.terms[0][0]
    return atom if isinstance(atom, str) else None
