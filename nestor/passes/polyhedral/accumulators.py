"""Question 3 for the state of reductions: is every element combined once, and nothing else?

All relations are in the order of sequential execution; races are asked about in ``races``. The
rules for the uses of one component of one reduction (a *cell* is a cell of one execution of its
``Alloc``; ``o`` an output point):

1. every update, merge, partial and final of ``o`` finds its cell started for ``o`` before it;
2. no cell is started again for ``o`` after an update or a merge;
3. every update and merge reaches a final or a partial (its *sink*) of ``o`` on the same cell;
4. no update or merge of ``o`` comes after a sink of ``o`` on the same cell;
5. a partial state is merged once, never into itself, and never also read by a final;
6. where different points share a cell, their lives ``[start, last sink]`` do not overlap;
7. updates of a scan or a monoid that does not commute run in order, finals of a scan in between.

With coverage (each update once, each final once) these say that a final sees exactly its elements.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from nestor.errors import IllegalSchedule, LegalityUnknown
from nestor.passes.polyhedral.coverage import finishes_in_place
from nestor.passes.polyhedral.isl_util import (
    IN,
    OUT,
    Session,
    conflict,
    ordered_pairs,
)
from nestor.passes.polyhedral.model import (
    Model,
    Place,
    Site,
    StatementInfo,
    StateRole,
    StateUse,
    shared_loops,
)
from nestor.passes.polyhedral.witness import (
    cell_text,
    instance_facts,
    instance_text,
    refuse,
    sample_pair,
    sample_site,
    where_from,
)

STARTS: tuple[StateRole, ...] = ("init", "init_into")
SINKS: tuple[StateRole, ...] = ("final", "partial")
CHANGES: tuple[StateRole, ...] = ("update", "merge")


def check_accumulators(model: Model, session: Session) -> None:
    """Apply the rules to every reduction. Raises: ``IllegalSchedule`` (question ``buffer``)."""
    for info in model.statements.values():
        if info.statement.reduction is not None and not info.is_scattering:
            _StateCheck(model, session, info, _joint_uses(model, info)).check()


def _joint_uses(model: Model, info: StatementInfo) -> list[StateUse]:
    """The uses of the whole state, in terms of its first component.

    A component may depend on the others, so all must be kept alike (the same cells of buffers side
    by side): then one proof serves all, and a component that no final reads is covered too.
    """
    assert info.statement.reduction is not None
    name = info.statement.name
    count = len(info.statement.reduction.monoid.identity)
    uses = [model.uses.get((name, c), []) for c in range(count)]
    first = {(u.site.uid, u.role): u for u in uses[0] if u.role != "final"}
    finals: dict[int, StateUse] = {}
    for component in uses:
        places: dict[Place, Place] = {}
        others = {(u.site.uid, u.role): u for u in component if u.role != "final"}
        is_alike = set(others) == set(first)
        for key, use in others.items() if is_alike else ():
            twin = first[key]
            is_alike &= use.cell == twin.cell and use.place.uid == twin.place.uid
            is_alike &= places.setdefault(use.place, twin.place) == twin.place
        is_alike &= len(set(places.values())) == len(places)
        for use in component:
            if use.role == "final":
                twin = replace(use, component=0, place=places.get(use.place, use.place))
                known = finals.setdefault(use.site.uid, twin)
                is_alike &= known.place == twin.place and known.cell == twin.cell
        if not is_alike:
            raise LegalityUnknown(f"the components of the state of '{name}' are not kept alike")
    return [*first.values(), *finals.values()]


class _StateCheck:
    """The uses of one component."""

    def __init__(
        self, model: Model, session: Session, info: StatementInfo, uses: list[StateUse]
    ) -> None:
        self.model = model
        self.session = session
        self.info = info
        self.uses = uses
        self.reduction = info.statement.reduction
        self.in_place = finishes_in_place(model, info)

    def check(self) -> None:
        """All rules, cheap ones first."""
        self._check_started()
        self._check_restarts()
        self._check_sinks()
        self._check_partials()
        self._check_lives()
        assert self.reduction is not None
        if self.info.is_scan or not self.reduction.monoid.commutative:
            self._check_order()

    def of(self, *roles: StateRole) -> list[StateUse]:
        """The uses with one of ``roles``."""
        return [u for u in self.uses if u.role in roles]

    # Rules

    def _check_started(self) -> None:
        """Rule 1, and which start: ``into`` exactly where the result is."""
        assert self.reduction is not None
        is_into = self.reduction.into
        for use in self.of(*CHANGES, *SINKS):
            fitting = [s for s in self.of(*STARTS) if s.place == use.place]
            if is_into and not fitting and not use.place.is_buffer and use.role != "partial":
                continue  # it adds to the target itself
            is_result = self.in_place and use.place.holds in self.model.tensors
            wrong = ""
            if use.role == "partial":
                wrong = "init_into"
            elif is_into and (use.role == "final" or is_result):
                wrong = "init"
            for start in fitting:
                if start.role == wrong:
                    self._forbid(start, use, "both", "is the wrong start for")
            fitting = [s for s in fitting if s.role != wrong]
            self._require(use, fitting, "before", "finds no state that was started for it")

    def _check_restarts(self) -> None:
        """Rule 2."""
        for start in self.of(*STARTS):
            for use in self.of(*CHANGES):
                self._forbid(use, start, "before", "is lost: the state is started again by")

    def _check_sinks(self) -> None:
        """Rules 4 and 3."""
        changes, sinks = self.of(*CHANGES), self.of(*SINKS)
        for use in () if self.info.is_scan else changes:
            for sink in sinks:
                self._forbid(sink, use, "before", "misses what comes later:")
        for use in changes:
            if not (self.in_place and use.place.holds in self.model.tensors):
                self._require(use, sinks, "after", "is never read by a final or a merge")

    def _check_partials(self) -> None:
        """Rule 5."""
        partials = self.of("partial")
        for k, a in enumerate(partials):
            for b in partials[: k + 1]:
                self._forbid(a, b, "both", "merges a partial state that is merged again by")
            for final in self.of("final"):
                self._forbid(a, final, "both", "merges a state that is also the result of")
            for merge in self.of("merge"):
                if merge.place == a.place and merge.site is a.site:
                    same = self._pairs(a, merge)
                    for level in range(len(a.site.loops)):
                        same = same.equate(IN, level, OUT, level)
                    if not self.session.is_empty(same):
                        raise self._refuse_two(a, merge, same, "merges a state into itself:")

    def _check_lives(self) -> None:
        """Rule 6: ``start(p) ≤ start(q) ≤ sink(p)`` never holds for points p ≠ q of one cell."""
        starts = self.of(*STARTS)
        for a in starts:
            for b in starts:
                if a.place == b.place and self._is_shared(a, b):
                    self._check_overlap(a, b)

    def _check_overlap(self, a: StateUse, b: StateUse) -> None:
        """Points whose start is ``a`` against later points whose start is ``b``."""
        begins = self._ordered_from_points(a, b, ascending=True)
        for sink in self.of(*SINKS, *CHANGES):
            if sink.place != a.place:
                continue
            ends = self._ordered_from_points(sink, b, ascending=False)
            for p in begins:
                for q in ends:
                    clash = p.intersect(q)
                    if self.session.is_empty(clash):
                        continue
                    foreign = clash.subtract(self._own_points(b))
                    if not self.session.is_empty(foreign):
                        raise self._refuse_overlap(sink, b, foreign)

    def _check_order(self) -> None:
        """Rule 7."""
        updates = self.of("update")
        for a in updates:
            for b in updates:
                for later in self._later_step(a, b):
                    self._forbid_map(b, a, later.reverse(), "before", "comes too early for")
        if self.info.is_scan:
            self._check_scan(updates, self.of("final"))

    def _check_scan(self, updates: list[StateUse], finals: list[StateUse]) -> None:
        for a in updates:
            for b in updates:
                same = conflict(a.site.points.relation(a.point), b.site.points.relation(b.point))
                apart = same.subtract(self._pairs(a, b)) if a.place == b.place else same
                if not self.session.is_empty(apart):
                    raise self._refuse_two(a, b, apart, "keeps its state in another cell than")
        for f in finals:
            for u in updates:
                for later in self._later_step(f, u):
                    self._forbid_map(u, f, later.reverse(), "before", "is already in the state of")
                same = self._same_step(u, f)
                self._forbid_map(f, u, same.reverse(), "before", "misses")
                for later in self._later_step(u, f):
                    self._forbid_map(f, u, later.reverse(), "before", "misses")

    # Relations between uses

    def _pairs(self, a: StateUse, b: StateUse) -> Any:
        """Iterations of ``a`` and ``b`` with the same point, cell and ``Alloc`` execution."""
        self.session.pairs += 1
        left = a.site.points.relation((*a.point, *a.cell))
        right = b.site.points.relation((*b.point, *b.cell))
        rel = conflict(left, right)
        for level in range(a.place.depth):
            rel = rel.equate(IN, level, OUT, level)
        return rel

    def _require(
        self, use: StateUse, others: Sequence[StateUse], when: str, complaint: str
    ) -> None:
        """Each iteration of ``use`` has a partner among ``others`` before (or after) it."""
        open_points = use.site.points.domain()
        for other in others:
            if other.place != use.place:
                continue
            rel = self._pairs(use, other)
            if self.info.is_scan and use.role == "update" and other.role == "final":
                rel = rel.intersect(self._same_step(use, other))
            for found in _ordered(rel, use.site, other.site, use.place.depth, when):
                open_points = open_points.subtract(found.domain())
                if self.session.is_empty(open_points):
                    return
        if not self.session.is_empty(open_points):
            raise self._refuse_one(use, complaint, open_points)

    def _forbid(self, a: StateUse, b: StateUse, when: str, complaint: str) -> None:
        """No pair of one point and cell has ``a`` before ``b`` (or stands in any order)."""
        if a.place == b.place:
            self._forbid_map(a, b, None, when, complaint)

    def _forbid_map(
        self, a: StateUse, b: StateUse, extra: Any | None, when: str, complaint: str
    ) -> None:
        if a.place != b.place:
            return
        rel = self._pairs(a, b)
        if extra is not None:
            rel = rel.intersect(extra)
        if when == "before" or a is b:
            found = _ordered(rel, a.site, b.site, a.place.depth, "after")
        else:
            found = iter((rel,))
        for pairs in found:
            if not self.session.is_empty(pairs):
                raise self._refuse_two(a, b, pairs, complaint)

    def _is_shared(self, a: StateUse, b: StateUse) -> bool:
        """True if some cell is used by different points."""
        left, right = a.site.points.relation(a.cell), b.site.points.relation(b.cell)
        rel = conflict(left, right)
        for level in range(a.place.depth):
            rel = rel.equate(IN, level, OUT, level)
        self.session.pairs += 1
        return not self.session.is_subset(rel, self._pairs(a, b))

    def _ordered_from_points(self, a: StateUse, b: StateUse, *, ascending: bool) -> list[Any]:
        """Pairs (point of ``a``, iteration of ``b``) on one cell, ``a`` before (or after) ``b``."""
        rel = conflict(a.site.points.relation(a.cell), b.site.points.relation(b.cell))
        when = "after" if ascending else "before"
        points = a.site.points.relation(a.point).reverse()
        return [points.apply_range(r) for r in _ordered(rel, a.site, b.site, a.place.depth, when)]

    def _own_points(self, b: StateUse) -> Any:
        return b.site.points.relation(b.point).reverse()

    def _same_step(self, a: StateUse, b: StateUse) -> Any:
        return conflict(a.site.points.relation(a.step), b.site.points.relation(b.step))

    def _later_step(self, a: StateUse, b: StateUse) -> Iterator[Any]:
        """Pairs where ``b``'s reduced indices come after ``a``'s, one map a level."""
        for k in range(len(a.step)):
            left = a.site.points.relation(a.step[: k + 1])
            right = b.site.points.relation(b.step[: k + 1])
            steps = _next_steps(left.range().get_space(), k)
            yield left.apply_range(steps).apply_range(right.reverse())

    # Refusals

    def _refuse_one(self, use: StateUse, complaint: str, points: Any | None) -> IllegalSchedule:
        env = sample_site(use.site, points if points is not None else use.site.points.domain())
        env = env or {}
        lines = [f"{instance_text(use.site, env)} {complaint}", *where_from(self.info)]
        lines.append(f"  in {cell_text(use.place.name, use.cell, env)}" if env else "")
        facts = {"a": instance_facts(use.site, env), "place": use.place.name}
        return refuse(self.model, "buffer", "a reduction loses its state", lines, facts)

    def _refuse_two(self, a: StateUse, b: StateUse, pairs: Any, complaint: str) -> IllegalSchedule:
        env_a, env_b = sample_pair(a.site, b.site, pairs)
        lines = [
            f"{instance_text(a.site, env_a)} {complaint} {instance_text(b.site, env_b)}: "
            f"both use {cell_text(a.place.name, a.cell, env_a)}",
            *where_from(self.info),
        ]
        facts = {
            "a": instance_facts(a.site, env_a),
            "b": instance_facts(b.site, env_b),
            "place": a.place.name,
        }
        return refuse(self.model, "buffer", "a reduction mixes up its state", lines, facts)

    def _refuse_overlap(self, a: StateUse, b: StateUse, pairs: Any) -> IllegalSchedule:
        env = sample_site(b.site, pairs.range()) or {}
        lines = [
            f"{instance_text(b.site, env)} starts {cell_text(b.place.name, b.cell, env)} "
            f"while another point still needs it (a later {a.site.compute.phase})",
            *where_from(self.info),
        ]
        facts = {"a": instance_facts(b.site, env), "place": b.place.name}
        return refuse(self.model, "buffer", "a reduction overwrites a state in use", lines, facts)


def _ordered(rel: Any, a: Site, b: Site, depth: int, when: str) -> Iterator[Any]:
    """Pairs of ``rel`` in which ``b`` runs ``before`` or ``after`` ``a``, innermost level first.

    Pairs of one iteration of one site are in neither order.
    """
    shared, static = shared_loops(a, b)
    ascending = when == "after"
    at_equal = static == (-1 if ascending else 1)
    return ordered_pairs(rel, shared, depth, ascending=ascending, at_equal=at_equal)


def _next_steps(space: Any, level: int) -> Any:
    """``{ [x0…xk] → [y0…yk] : x and y equal before k, xk < yk }`` with the symbols of ``space``."""
    import islpy as isl

    universe = isl.Map.universe(space.map_from_set())
    for k in range(level):
        universe = universe.equate(IN, k, OUT, k)
    return universe.order_lt(IN, level, OUT, level)
