"""The index that a statement's vectors lie along: contiguous in what it reads and writes."""

from __future__ import annotations

from math import prod

from nestor.ir.expr import loads
from nestor.ir.program import Statement
from nestor.passes.schedule_rules import Rules
from nestor.passes.statement_facts import (
    bounding_indices,
    extent_of,
    is_constant,
    reduced_indices,
    widest_bytes,
)
from nestor.passes.strides import access_strides

MAX_TURNED_TERMS = 64
"""Longest sum whose terms lie together that may still be taken in lanes of one result each."""

MIN_LANES = 4
"""Along a shorter index there are no vectors to speak of."""

MAX_NEAR_STRIDE = 4
"""Lanes at most this far apart share their cache lines [elements]."""


def choose_vector(
    rules: Rules, s: Statement, names: list[str], masked: frozenset[str] = frozenset()
) -> str | None:
    """The index along which the statement's accesses are contiguous, if any gains.

    Its extent is constant, or it is one of ``masked``, whose last vector may be masked.
    """
    if s.scatter == "last":
        return None
    reduced = reduced_indices(s)
    scanned = reduced if s.reduction and s.reduction.scan else set()
    bounding = bounding_indices(s)  # loops around others, whose extents they decide
    names = [n for n in names if n not in scanned | bounding]
    candidates = [n for n in names if n in masked or is_constant(s, n)]
    best = max(candidates, key=lambda n: _vector_key(rules, s, n, reduced), default=None)
    if best is None or unit_score(rules, s, best) <= 0 or extent_of(s, best) < 2:
        return None
    return best


def vector_axis(rules: Rules, s: Statement, names: list[str], masked: frozenset[str]) -> str | None:
    """The index of a statement's vectors; of those along which it moves through some of its memory
    without gaps, another one than the best may be chosen."""
    best = choose_vector(rules, s, names, masked)
    if best is None:
        return None
    bounding = bounding_indices(s)
    scanned = s.reduction is not None and s.reduction.scan
    others = [
        n
        for n in names
        if n not in bounding
        and not (scanned and n in reduced_indices(s))
        and is_constant(s, n)
        and extent_of(s, n) >= MIN_LANES
        and (unit_score(rules, s, n) > 0 or _turns_short_rows(rules, s, n))
    ]
    words = others if best in others else [*others, best]
    return rules.choices.word(f"{s.name}.vector", words, best, "index that vectors lie along")


def _turns_short_rows(rules: Rules, s: Statement, index: str) -> bool:
    """Whether lanes along ``index`` are results that lie together, of sums over a few vectors of
    what lies together: those are then read across."""
    if s.reduction is None or index in reduced_indices(s) or _terms(s) > MAX_TURNED_TERMS:
        return False
    return all(
        access_strides(rules.tensors[w.tensor], w.indices, [index])[index] == 1 for w in s.writes
    )


def rectangular(s: Statement, names: list[str]) -> frozenset[str]:
    """Those of ``names`` whose ranges are the same for all values of the other indices."""
    ranges = {n: s.domain.range_of(n) for n in names}
    own = set(s.domain.names)
    return frozenset(
        n for n, r in ranges.items() if not (r.lower.variables() | r.upper.variables()) & own
    )


def _vector_key(rules: Rules, s: Statement, n: str, reduced: set[str]) -> tuple[float, ...]:
    extent = min(extent_of(s, n), rules.unit.lanes(widest_bytes(s)))
    return (unit_score(rules, s, n) * extent, float(n not in reduced), float(extent_of(s, n)))


def unit_score(rules: Rules, s: Statement, index: str) -> float:
    """How contiguous the accesses are along ``index``: a unit stride counts, a jump costs.

    A store counts twice, as a line that is written is read first; after a reduction, by how often
    it happens: what reads a thousand elements for each that it writes should read them in order.
    Lanes a few elements apart still share their cache lines: they neither gain nor cost.
    """
    score = 0.0
    stored = 2.0 / _terms(s)
    accesses = [(w.tensor, w.indices, stored) for w in s.writes]
    accesses += [(x.tensor, x.indices, 1.0) for e in s.elements for x in loads(e)]
    for tensor, indices, weight in accesses:
        stride = access_strides(rules.tensors[tensor], indices, [index])[index]
        if stride == 1:
            score += weight
        elif stride is None or abs(stride) > MAX_NEAR_STRIDE:
            score -= weight
    return score


def _terms(s: Statement) -> int:
    """How many elements are read for each result."""
    if s.reduction is None or s.reduction.scan:
        return 1
    return prod(extent_of(s, n) for n in reduced_indices(s))
