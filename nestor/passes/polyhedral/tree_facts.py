"""Which loops of a schedule tree carry which dependences, and whether the tree keeps them all."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import islpy as isl

from nestor.errors import LegalityUnknown
from nestor.ir.schedule_tree import Band, Leaf, Sequence, Tree, tree_statements
from nestor.passes.affine_facts import BandFacts, DirectionVector
from nestor.passes.polyhedral.dependence_analysis import DependenceAnalysis, Relation
from nestor.passes.polyhedral.isl_util import PARAM, SET

MAX_SIGN_VECTORS = 81
"""Different direction vectors of one dependence in one band; with more, all are assumed."""


@dataclass(slots=True, eq=False)
class _Active:
    """What is left of a relation below some loops; ``index`` counts in the analysis' list."""

    index: int
    relation: Relation
    map: Any


@dataclass(slots=True, eq=False)
class TreeFacts:
    """The tree with ``permutable`` as found, facts of its bands, and whether it is legal."""

    tree: Tree
    bands: tuple[BandFacts, ...]
    is_legal: bool


def tree_facts(
    analysis: DependenceAnalysis, tree: Tree, *, deadline: float | None = None
) -> TreeFacts:
    """Judge ``tree`` by the dependences of ``analysis``.

    Args: deadline: on ``time.monotonic``'s clock [s].
    Raises: ``LegalityUnknown`` past the deadline.
    """
    walk = _Walk(deadline)
    active = [_Active(k, r, r.map) for k, r in enumerate(analysis.relations)]
    found = walk.visit(tree, active)
    return TreeFacts(found, tuple(walk.bands), walk.is_legal)


class _Walk:
    def __init__(self, deadline: float | None):
        self.deadline = deadline
        self.bands: list[BandFacts] = []
        self.is_legal = True

    def visit(self, tree: Tree, active: list[_Active]) -> Tree:
        """Facts of ``tree``, given the dependences that the loops around leave to it."""
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise LegalityUnknown("the facts of a schedule tree took too long")
        match tree:
            case Leaf():
                # What is left are instances that run unordered.
                self.is_legal &= all(a.relation.is_reduction for a in active)
                return tree
            case Sequence():
                return self._sequence(tree, active)
            case Band():
                return self._band(tree, active)

    def _sequence(self, tree: Sequence, active: list[_Active]) -> Tree:
        place = {s: k for k, child in enumerate(tree.children) for s in tree_statements(child)}
        inside: list[list[_Active]] = [[] for _ in tree.children]
        for a in active:
            source, target = (
                place[x.statement.name] for x in (a.relation.source, a.relation.target)
            )
            if source == target:
                inside[source].append(a)
            elif source > target and not a.relation.is_reduction:
                self.is_legal = False
        children = zip(tree.children, inside, strict=True)
        return replace(tree, children=tuple(self.visit(c, own) for c, own in children))

    def _band(self, tree: Band, active: list[_Active]) -> Tree:
        vectors: list[DirectionVector] = []
        below: list[_Active] = []
        position = len(self.bands)
        for a in active:
            rows = [
                tuple(loop.row(m.statement.name) for loop in tree.loops)
                for m in (a.relation.source, a.relation.target)
            ]
            left = a.relation.source.points.relation(rows[0])
            right = a.relation.target.points.relation(rows[1])
            deltas = a.map.apply_domain(left).apply_range(right).deltas()
            is_reduction = a.relation.is_reduction
            for signs in _sign_vectors(deltas, len(tree.loops)):
                if any(signs):
                    vectors.append(_vector(a, signs))
                    if next(x for x in signs if x) < 0 and not is_reduction:
                        self.is_legal = False
                    continue
                rest = a.map.intersect(left.apply_range(right.reverse()))
                below.append(_Active(a.index, a.relation, rest))
        facts = BandFacts(
            loops=tuple(loop.name for loop in tree.loops), vectors=tuple(dict.fromkeys(vectors))
        )
        self.bands.append(facts)
        child = self.visit(tree.child, below)
        assert self.bands[position] is facts
        return replace(tree, child=child, permutable=facts.is_permutable())


def _vector(a: _Active, signs: tuple[int, ...]) -> DirectionVector:
    return DirectionVector(
        signs=signs,
        dependence=a.index,
        source=a.relation.source.statement.name,
        target=a.relation.target.statement.name,
        is_reduction=a.relation.is_reduction,
    )


def _sign_vectors(deltas: Any, count: int) -> Iterator[tuple[int, ...]]:
    """The signs that the members of a set of distances have; found one dimension at a time."""
    deltas = deltas.project_out(PARAM, 0, deltas.dim(PARAM)).coalesce()
    parts: list[tuple[tuple[int, ...], Any]] = [((), deltas)]
    for k in range(count):
        split: list[tuple[tuple[int, ...], Any]] = []
        for signs, part in parts:
            for sign, some in _split(part, k):
                if not some.is_empty():
                    split.append(((*signs, sign), some))
        parts = split
        if len(parts) > MAX_SIGN_VECTORS:
            parts = _widened(parts)
    yield from (signs for signs, _ in parts)


def _widened(parts: list[tuple[tuple[int, ...], Any]]) -> list[tuple[tuple[int, ...], Any]]:
    """The same vectors without their sets: what follows is then taken to be anything."""
    whole = isl.Set.universe(parts[0][1].get_space())
    return [(signs, whole) for signs, _ in parts]


def _split(part: Any, k: int) -> Iterator[tuple[int, Any]]:
    yield 1, part.lower_bound_val(SET, k, 1)
    yield 0, part.fix_val(SET, k, 0)
    yield -1, part.upper_bound_val(SET, k, -1)
