"""Question 1: does every statement instance run exactly once?"""

from __future__ import annotations

from typing import Any

from nestor.errors import IllegalSchedule
from nestor.passes.polyhedral.isl_util import (
    Points,
    Session,
    conflict,
    coordinates,
    pairs_by_level,
)
from nestor.passes.polyhedral.model import Model, Site, StatementInfo
from nestor.passes.polyhedral.witness import (
    instance_facts,
    instance_text,
    refuse,
    sample_pair,
    sample_site,
    where_from,
)


def check_coverage(model: Model, session: Session) -> None:
    """Point and update: each instance of the domain once; final: each output point once (a scan:
    each index). An ``init`` counts only where no final reads the state: there it is the result of
    an empty reduction. Where inits must be otherwise is a question of the state (``accumulators``).

    Raises: ``IllegalSchedule`` (question ``coverage``).
    """
    for info in model.statements.values():
        reduction = info.statement.reduction
        if reduction is None:
            _check_phase(model, session, info, "point", info.points)
            continue
        _check_phase(model, session, info, "update", info.points)
        for site in info.sites:
            if site.compute.phase in ("init", "merge"):
                _check_inside(model, session, info, site, info.outputs)
        if not finishes_in_place(model, info):
            domain = info.points if info.is_scan else info.outputs
            _check_phase(model, session, info, "final", domain)
        elif not reduction.into:
            _check_phase(model, session, info, "init", info.outputs)


def finishes_in_place(model: Model, info: StatementInfo) -> bool:
    """True if the reduction runs in its target and its final map, the identity, is left out."""
    reduction = info.statement.reduction
    if reduction is None or any(s.compute.phase == "final" for s in info.sites):
        return False
    count = len(reduction.monoid.identity)
    if len(reduction.final) != count:
        return False
    is_identity = all(getattr(f, "name", None) == f"s{c}" for c, f in enumerate(reduction.final))
    uses = [u for c in range(count) for u in model.uses.get((info.statement.name, c), ())]
    accumulators = {f"{info.statement.name}#{c}" for c in range(count)}
    results = [u for u in uses if u.role in ("init", "init_into", "update", "merge")]
    partials = {u.place for u in uses if u.role == "partial"}
    return is_identity and all(
        u.place.holds not in accumulators or u.place in partials for u in results
    )


def _instances(site: Site, names: tuple[str, ...]) -> Any:
    instance = site.instance
    return site.points.relation(tuple(instance[n] for n in names))


def _check_phase(
    model: Model, session: Session, info: StatementInfo, phase: str, wanted: Points
) -> None:
    sites = [s for s in info.sites if s.compute.phase == phase]
    if phase == "init":
        sites = [s for s in sites if any(_is_result_init(model, info, s))]
    domain = wanted.domain()
    images = [_instances(s, wanted.names) for s in sites]
    for site in sites:
        _check_inside(model, session, info, site, wanted)
    missing = domain
    for image in images:  # one after the other: measured four times cheaper than their union
        if session.is_empty(missing):
            break
        missing = missing.subtract(image.range())
    if not session.is_empty(missing):
        raise _refuse_missing(model, info, wanted, phase, missing)
    if phase == "init":
        return  # to start a state twice is harmless, or forbidden by the rules of states
    for k, (site, image) in enumerate(zip(sites, images)):
        for other, other_image in zip(sites[:k], images[:k]):
            if _are_apart(site, other, wanted.names):
                continue
            session.pairs += 1
            twice = conflict(image, other_image)
            if not session.is_empty(twice):
                raise _refuse_twice(model, info, site, other, twice)
        depth = len(site.loops)
        for level, twice in pairs_by_level(conflict(image, image), depth, 0, ascending=True):
            if level < depth and not session.is_empty(twice):
                raise _refuse_twice(model, info, site, site, twice)


def _check_inside(
    model: Model, session: Session, info: StatementInfo, site: Site, wanted: Points
) -> None:
    """Every iteration of the site is an instance in ``wanted``."""
    outside = _instances(site, wanted.names).subtract_range(wanted.domain()).domain()
    if not session.is_empty(outside):
        raise _refuse_outside(model, info, site, outside)


def _are_apart(a: Site, b: Site, names: tuple[str, ...]) -> bool:
    """True if some index takes different values at the two sites, by the loops' ranges alone."""
    left, right = a.instance, b.instance
    for name in names:
        low, high = left[name].bounds(a.points.ranges)
        other_low, other_high = right[name].bounds(b.points.ranges)
        if high is not None and other_low is not None and high < other_low:
            return True
        if low is not None and other_high is not None and other_high < low:
            return True
    return False


def _is_result_init(model: Model, info: StatementInfo, site: Site) -> list[bool]:
    """Whether the site starts a state that is the result itself (and no partial state)."""
    uses = model.uses.get((info.statement.name, 0), ())
    return [u.place.holds == info.statement.writes[0].tensor for u in uses if u.site is site]


def _refuse_outside(model: Model, info: StatementInfo, site: Site, outside: Any) -> IllegalSchedule:
    env = sample_site(site, outside)
    assert env is not None
    lines = [
        f"{instance_text(site, env)} runs, but lies outside the statement's domain",
        *where_from(info),
        "fix: guard the tail of a tile whose size does not divide the extent",
    ]
    facts = {"kind": "outside", "a": instance_facts(site, env)}
    return refuse(model, "coverage", "an instance is added", lines, facts)


def _refuse_missing(
    model: Model, info: StatementInfo, wanted: Points, phase: str, missing: Any
) -> IllegalSchedule:
    found = coordinates(missing)
    assert found is not None
    instance = dict(zip(wanted.names, found[1]))
    inner = ", ".join(f"{n}={v}" for n, v in instance.items())
    lines = [
        f"{info.statement.name}[{inner}] ({phase}) never runs",
        *where_from(info),
        "fix: cover the whole domain; a tile whose size does not divide the extent needs a tail",
    ]
    facts = {
        "kind": "missing",
        "a": {
            "statement": info.statement.name,
            "phase": phase,
            "instance": instance,
            "symbols": {s.name: v for s, v in zip(wanted.symbols, found[0])},
        },
    }
    return refuse(model, "coverage", "an instance is missing", lines, facts)


def _refuse_twice(
    model: Model, info: StatementInfo, a: Site, b: Site, twice: Any
) -> IllegalSchedule:
    env_a, env_b = sample_pair(a, b, twice)
    at = [
        ", ".join(f"{v.index}={env[v.index]}" for v in site.loops)
        for site, env in ((a, env_a), (b, env_b))
    ]
    lines = [
        f"{instance_text(a, env_a)} runs at ({at[0]}) and again at ({at[1]})",
        *where_from(info),
        "fix: the copies of a tail must not overlap the main loop",
    ]
    facts = {"kind": "twice", "a": instance_facts(a, env_a), "b": instance_facts(b, env_b)}
    return refuse(model, "coverage", "an instance runs twice", lines, facts)
