"""Question 2, order: do dependent instances run in the Program's order?

Here the nest is read as a sequential program; that parallel and vector loops change nothing is
proved in ``races``. Dependences are between *elements of kernel tensors*, wherever they are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import islpy as isl

from nestor.errors import LegalityUnknown
from nestor.ir.affine import Affine, variable
from nestor.ir.expr import IndexExpr, Load, loads
from nestor.passes.polyhedral.isl_util import (
    IN,
    OUT,
    Points,
    Session,
    conflict,
    coordinates,
    pairs_by_level,
)
from nestor.passes.polyhedral.model import (
    TRANSFERS,
    Access,
    Model,
    Site,
    StatementInfo,
    shared_loops,
)
from nestor.passes.polyhedral.witness import refuse, refuse_pair, where_from

FIX = "keep the order of these loops, skew them, or drop the step"


def check_dependences(model: Model, session: Session) -> None:
    """Flow, anti and output dependences, one pair of accesses at a time.

    Raises: ``IllegalSchedule`` (question ``dependence``).
    """
    for info in model.statements.values():
        _check_unordered(model, session, info)
    by_root: dict[str, list[Access]] = {}
    for access in model.accesses:
        if access.site.compute.phase not in TRANSFERS:
            by_root.setdefault(model.alias_root(access.tensor), []).append(access)
    for root, accesses in by_root.items():
        writes = _distinct([a for a in accesses if a.is_write])
        if not writes:
            continue
        in_buffers = all(w.place.is_buffer and w.place not in model.promoted for w in writes)
        if in_buffers and written_once(model, session, root):
            if not any(w.is_state for w in writes):
                continue  # ``buffers`` finds the one write of each element before its reads
        others = [a for a in _distinct(accesses) if not a.is_write]
        for k, write in enumerate(writes):
            for other in (*writes[: k + 1], *others):  # each pair of writes once
                _check_pair(model, session, write, other)


def _distinct(accesses: list[Access]) -> list[Access]:
    keyed = {(a.site.uid, a.role, a.tensor, a.element, a.predicate): a for a in accesses}
    return list(keyed.values())


def written_once(model: Model, session: Session, tensor: str) -> bool:
    """True if no other tensor aliases it and its elements are written at most once each."""
    root = model.alias_root(tensor)
    if any(model.alias_root(t) == root for t in model.tensors if t != tensor):
        return False
    writers = [
        (info, w.indices)
        for info in model.statements.values()
        for w in info.statement.writes
        if w.tensor == tensor
    ]
    if len(writers) != 1:
        return False
    info, indices = writers[0]
    affines = tuple(i for i in indices if isinstance(i, Affine))
    if len(affines) != len(indices) or info.is_scattering:
        return False
    points = info.points if info.is_scan or not info.reduced else info.outputs
    if {str(a) for a in affines} >= set(points.names):
        return True
    session.queries += 1
    return bool(points.relation(affines).is_injective())


def _check_pair(model: Model, session: Session, write: Access, other: Access) -> None:
    """The order of ``write`` against ``other``, in both directions of the Program's order."""
    a_info = model.statements[write.site.compute.statement]
    b_info = model.statements[other.site.compute.statement]
    if a_info is b_info and not _seq_names(a_info):
        return  # phases of one point are a question of its state; different points never meet
    forward, backward = program_order(a_info, b_info)
    if write is other:
        backward = False
    shared, static = shared_loops(write.site, other.site)
    if runs_in_program_order(write.site, other.site, a_info, b_info):
        return
    rel = None
    for is_forward, wanted in ((True, forward), (False, backward)):
        if not wanted or (shared == 0 and static == (-1 if is_forward else 1)):
            continue
        if rel is None:
            session.pairs += 1
            rel = _conflict(write, other)
            if session.is_empty(rel):
                return
        for ordered in _program_pairs(rel, write, other, a_info, b_info, is_forward):
            _check_nest_order(model, session, write, other, ordered, is_forward)


def _check_nest_order(
    model: Model, session: Session, a: Access, b: Access, pairs: Any, is_forward: bool
) -> None:
    """All ``pairs`` run in the nest with ``a`` first (``is_forward``) or ``b`` first."""
    shared, static = shared_loops(a.site, b.site)
    for level, wrong in pairs_by_level(pairs, shared, 0, ascending=not is_forward):
        if level == shared and static == (-1 if is_forward else 1):
            continue
        if not session.is_empty(wrong):
            first, second = (a, b) if is_forward else (b, a)
            wrong = wrong if is_forward else wrong.reverse()
            raise refuse_pair(
                model,
                "dependence",
                "the loop nest reverses a dependence",
                first,
                second,
                wrong,
                "{a} must run before {b}: both touch {at}",
                FIX,
                kind="order",
            )


def _conflict(a: Access, b: Access) -> Any:
    """Pairs of iterations that touch one element; all pairs if one tensor aliases the other."""
    same = a.tensor == b.tensor
    return conflict(
        a.site.points.relation(a.element if same else (), a.predicate, a.free),
        b.site.points.relation(b.element if same else (), b.predicate, b.free),
    )


# The Program's order


def runs_in_program_order(a: Site, b: Site, a_info: StatementInfo, b_info: StatementInfo) -> bool:
    """True if the loops that two sites share are plainly the Program's, in its order.

    Each index of the order is a loop, perhaps shifted by what the loops around it determine. Then
    all their instances keep the Program's order, whatever they touch, and isl need not be asked:
    most pairs of a nest that runs nearly as written, and all of one that runs exactly so. False
    says nothing.
    """
    shared, static = shared_loops(a, b)
    if any(len({v.index for v in s.loops}) != len(s.loops) for s in (a, b)):
        return False  # a name that stands for two loops
    level = 0
    for x, y in zip(a_info.sequence, b_info.sequence):
        if isinstance(x, str) and isinstance(y, str):
            if level == shared:
                return False
            # Past equal outer loops, a shift by what is equal there keeps this loop's order.
            outer = {v.index for v in a.loops[:level]} | {p.name for p in a.points.symbols}
            shift_a = _shift(a, x, level)
            if (
                shift_a is None
                or shift_a != _shift(b, y, level)
                or not shift_a.variables() <= outer
            ):
                return False
            level += 1
        elif x != y:
            is_order = isinstance(x, int) and isinstance(y, int) and level == shared
            return is_order and static == (-1 if x < y else 1)  # type: ignore[operator]
    if a_info is b_info:
        return a is b  # instances that agree in the whole sequence have no order
    return level == shared and static == (-1 if a_info.position < b_info.position else 1)


def _shift(site: Site, index: str, level: int) -> Affine | None:
    """How far the statement's ``index`` is from the loop at ``level``; None if it has no value."""
    value = site.instance.get(index)
    return None if value is None else value - variable(site.loops[level].index)


def _seq_names(info: StatementInfo) -> list[str]:
    return [x for x in info.sequence if isinstance(x, str)]


def program_order(a: StatementInfo, b: StatementInfo) -> tuple[bool, bool]:
    """Whether instances of ``a`` may come before ones of ``b``, and the other way round."""
    for x, y in zip(a.sequence, b.sequence):
        if isinstance(x, str) or isinstance(y, str):
            return True, True
        if x != y:
            return x < y, x > y
    return (True, True) if a is b else (a.position < b.position, a.position > b.position)


def _program_pairs(
    rel: Any, a: Access, b: Access, a_info: StatementInfo, b_info: StatementInfo, is_forward: bool
) -> Iterator[Any]:
    """The part of ``rel`` in which the Program runs ``a`` before ``b`` (or ``b`` before ``a``)."""
    left: list[Affine] = []
    right: list[Affine] = []
    inst_a, inst_b = a.site.instance, b.site.instance
    for x, y in zip(a_info.sequence, b_info.sequence):
        if isinstance(x, str) and isinstance(y, str):
            if x not in inst_a or y not in inst_b:
                raise LegalityUnknown(f"'{x}' is both reduced and sequential")
            left.append(inst_a[x])
            right.append(inst_b[y])
            yield rel.intersect(_earlier(a, b, left, right, is_forward))
        elif x != y:
            if isinstance(x, int) and isinstance(y, int) and (x < y) == is_forward:
                yield _at_equal(rel, a, b, left, right)
            return
    if a_info is not b_info and (a_info.position < b_info.position) == is_forward:
        yield _at_equal(rel, a, b, left, right)


def _at_equal(rel: Any, a: Access, b: Access, left: list[Affine], right: list[Affine]) -> Any:
    if not left:
        return rel
    return rel.intersect(
        conflict(
            a.site.points.relation(tuple(left), (), a.free),
            b.site.points.relation(tuple(right), (), b.free),
        )
    )


def _earlier(
    a: Access, b: Access, left: list[Affine], right: list[Affine], is_forward: bool
) -> Any:
    """Pairs equal in all but the last of ``left``/``right``, where ``a`` (or ``b``) is smaller."""
    map_a = a.site.points.relation(tuple(left), (), a.free)
    map_b = b.site.points.relation(tuple(right), (), b.free)
    step = isl.Map.universe(map_a.range().get_space().map_from_set())
    last = len(left) - 1
    for k in range(last):
        step = step.equate(IN, k, OUT, k)
    order = step.order_lt if is_forward else step.order_gt
    return map_a.apply_range(order(IN, last, OUT, last)).apply_range(map_b.reverse())


# Instances that the Program leaves unordered


def _check_unordered(model: Model, session: Session, info: StatementInfo) -> None:
    """Different instances of one statement that its order does not order must not meet.

    Such a statement has no meaning that a nest could keep. A reduction's own updates are the
    exception (``accumulators``), a scatter to unique targets another. Where the running state lives
    in the target, the elements must not read that target at all.
    """
    s = info.statement
    is_in_place = any(a.is_state and a.site.compute.statement == s.name for a in model.accesses)
    names = _seq_names(info)
    is_full = info.is_scan or not info.reduced or info.is_scattering
    outputs = info.points if is_full else info.outputs
    for k, w in enumerate(s.writes):
        root = model.alias_root(w.tensor)
        left = _element(outputs, w.indices, ())
        for other in s.writes[k:]:
            is_same = other is w
            if model.alias_root(other.tensor) != root or info.is_scattering:
                continue
            if s.scatter == "unique" and is_same:
                continue
            right = _element(outputs, other.indices, ()) if other.tensor == w.tensor else None
            pair = (left, outputs), (right, outputs)
            _check_meeting(model, session, info, *pair, names, is_same)
        for load, points in _own_loads(info, outputs):
            if model.alias_root(load.tensor) == root:
                is_same = load.tensor == w.tensor
                right = _element(points, load.indices, load.predicate) if is_same else None
                pair = (left, outputs), (right, points)
                _check_meeting(model, session, info, *pair, names, not is_in_place)


def _own_loads(info: StatementInfo, outputs: Points) -> Iterator[tuple[Load, Points]]:
    """Loads of the elements, at each instance, and of the final map, at each output point."""
    s = info.statement
    for element in s.elements:
        yield from ((load, info.points) for load in loads(element))
    for final in s.reduction.final if s.reduction else ():
        yield from ((load, outputs) for load in loads(final))


def _element(
    points: Points, indices: tuple[IndexExpr, ...], predicate: tuple[Affine, ...]
) -> Any | None:
    """Where an access of the statement goes; None: anywhere (its index is data)."""
    known = tuple(i for i in indices if isinstance(i, Affine))
    return points.relation(known, predicate) if len(known) == len(indices) else None


def _check_meeting(
    model: Model,
    session: Session,
    info: StatementInfo,
    a: tuple[Any | None, Points],
    b: tuple[Any | None, Points],
    ordered: list[str],
    may_meet_itself: bool,
) -> None:
    (left, left_points), (right, right_points) = a, b
    if left is None or right is None:
        left, right = left_points.relation(()), right_points.relation(())
    meeting = conflict(left, right)
    columns = [(left_points.names.index(n), right_points.names.index(n)) for n in left_points.names]
    for name in ordered:
        if name in left_points.names:
            i, o = left_points.names.index(name), right_points.names.index(name)
            meeting = meeting.equate(IN, i, OUT, o)
    if may_meet_itself:
        cases = [m for i, o in columns for m in
                 (meeting.order_lt(IN, i, OUT, o), meeting.order_gt(IN, i, OUT, o))]  # fmt: skip
    else:
        cases = [meeting]
    for case in cases:
        if session.is_empty(case):
            continue
        found = coordinates(case)
        assert found is not None
        split = len(left_points.names)
        first = dict(zip(left_points.names, found[1][:split]))
        second = dict(zip(right_points.names, found[1][split:]))
        name = info.statement.name
        text = [", ".join(f"{n}={v}" for n, v in d.items()) for d in (first, second)]
        lines = [
            f"{name}[{text[0]}] and {name}[{text[1]}] touch one element, one of them writes it, "
            "and the statement's order does not say which comes first",
            *where_from(info),
            "fix: write to another tensor, or make the statement sequential",
        ]
        facts = {
            "a": {"statement": name, "instance": first},
            "b": {"statement": name, "instance": second},
            "kind": "unordered",
        }
        raise refuse(model, "dependence", "a statement conflicts with itself", lines, facts)
