"""Question 2, concurrency: is any dependence carried by a parallel, vector or grid loop?

Two accesses to one cell of memory, one of them a write, must not happen in different iterations of
such a loop within one iteration of the loops outside it. Then every interleaving gives what the
sequential order gives. A vector loop is held to the same rule: its lanes run in lockstep, and
without dependences between lanes that is the sequential order too. The one exception: lanes of a
``merge`` are combined in index order by definition.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nestor.errors import IllegalSchedule
from nestor.ir.affine import Affine
from nestor.passes.polyhedral.dependences import written_once
from nestor.passes.polyhedral.isl_util import IN, OUT, Session, conflict
from nestor.passes.polyhedral.model import (
    CONCURRENT,
    TRANSFERS,
    Access,
    AccessRole,
    Model,
    shared_loops,
)
from nestor.passes.polyhedral.witness import refuse_pair


def check_races(model: Model, session: Session) -> None:
    """Raises: ``IllegalSchedule`` (question ``dependence``)."""
    groups: dict[object, list[Access]] = {}
    for access in _memory_accesses(model):
        place = access.place
        key = place if place.is_buffer else model.alias_root(place.name)
        groups.setdefault(key, []).append(access)
    for accesses in groups.values():
        writes = [a for a in accesses if a.is_write]
        position = {id(a): k for k, a in enumerate(writes)}
        for k, write in enumerate(writes):
            for other in accesses:
                if position.get(id(other), k) <= k:  # each pair of writes once
                    _check_pair(model, session, write, other)


def _memory_accesses(model: Model) -> Iterator[Access]:
    """Every distinct access, those of accumulators too."""
    seen: set[object] = set()
    for access in model.accesses:
        key = (access.site.uid, access.role, access.place, access.cell, access.predicate)
        if key not in seen:
            seen.add(key)
            yield access
    for (statement, component), uses in model.uses.items():
        for use in uses:
            role: AccessRole = "read" if use.role in ("partial", "final") else "write"
            key = (use.site.uid, role, use.place, use.cell, ())
            if key not in seen:
                seen.add(key)
                holds = f"{statement}#{component}"
                yield Access(use.site, role, use.place, use.cell, holds, use.point)


def _check_pair(model: Model, session: Session, a: Access, b: Access) -> None:
    shared, _ = shared_loops(a.site, b.site)
    depth = a.place.depth
    levels = [k for k in range(depth, shared) if a.site.loops[k].kind in CONCURRENT]
    if _is_one_merge(a, b):
        levels = [k for k in levels if not _combines_lanes(a, k)]
    if not levels or _is_settled(model, session, a, b):
        return
    session.pairs += 1
    rel = _same_cell(a, b)
    for level in range(levels[-1] + 1):
        if level in levels:
            for order in (rel.order_lt, rel.order_gt):
                pairs = order(IN, level, OUT, level)
                if not session.is_empty(pairs):
                    raise _refuse(model, a, b, pairs, level)
                if a is b:
                    break  # the other direction is its mirror image
        rel = rel.equate(IN, level, OUT, level)


def _is_one_merge(a: Access, b: Access) -> bool:
    """True for the target of a merge with itself; in a promoted buffer it is read and written."""
    is_merge = a.site is b.site and a.site.compute.phase == "merge"
    return is_merge and a.place == b.place and a.cell == b.cell


def _combines_lanes(a: Access, level: int) -> bool:
    """True for the innermost vector loop of a merge whose target does not depend on it."""
    vectors = [k for k, v in enumerate(a.site.loops) if v.kind == "vector"]
    index = a.site.loops[level].index
    return vectors[-1:] == [level] and all(index not in c.variables() for c in a.cell)


def _is_settled(model: Model, session: Session, a: Access, b: Access) -> bool:
    """True where the Program itself says that different instances write different elements.

    The copies of a compute that a tail makes run different instances (question ``coverage``).
    """
    same = a.site.compute.statement == b.site.compute.statement and a.tensor == b.tensor
    phases = {a.site.compute.phase, b.site.compute.phase}
    if not same or not phases.isdisjoint(TRANSFERS) or a.place.is_buffer or b.place.is_buffer:
        return False
    if a.is_state or b.is_state:
        return False
    if not (a.is_write and b.is_write):
        return False
    info = model.statements.get(a.site.compute.statement)
    if info is None or sum(w.tensor == a.tensor for w in info.statement.writes) > 1:
        return False
    if info.statement.scatter == "unique":
        return True
    return phases in ({"point"}, {"final"}) and written_once(model, session, a.tensor)


def _same_cell(a: Access, b: Access) -> Any:
    same = a.place == b.place
    left: tuple[Affine, ...] = a.cell if same else ()
    right: tuple[Affine, ...] = b.cell if same else ()
    return conflict(
        a.site.points.relation(left, a.predicate, a.free),
        b.site.points.relation(right, b.predicate, b.free),
    )


def _refuse(model: Model, a: Access, b: Access, pairs: Any, level: int) -> IllegalSchedule:
    loop = a.site.loops[level]
    return refuse_pair(
        model,
        "dependence",
        f"{loop.kind} loop '{loop.index}' carries a dependence",
        a,
        b,
        pairs,
        "{a} and {b} run in different iterations of it: both touch {cell}, at least one writes",
        "run this loop serially, or give each iteration memory of its own",
        kind="race",
        loop=loop.index,
    )
