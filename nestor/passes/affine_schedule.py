"""The untuned schedule of an affine kernel: the cheapest proposal and shapes by an analytic cost.

The cost counts cycles: arithmetic by shape, bytes by the cache that they come from, and the start
of threads. It only has to tell good from bad: distributing from fusing, tiles from none, threads
from one. What is chosen, and why, is kept (``explain_schedule``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from nestor.ir.program import Program
from nestor.ir.schedule import Schedule
from nestor.passes.affine_access import OTHER, tensor_bytes
from nestor.passes.affine_choices import Choice
from nestor.passes.affine_facts import AffineFacts, Dependence
from nestor.passes.affine_latency import UNKNOWN_CYCLES, carried_cycles
from nestor.passes.affine_nests import Nest
from nestor.passes.affine_space import (
    Plan,
    Space,
    choice_at,
    parallel_around,
    plans_of,
    schedule_of,
)
from nestor.passes.knobs import Choices, Knob, Value
from nestor.target.cpu import CpuTarget

Proposer = Callable[[Program, float], AffineFacts]
"""Asks for dependences and orders within a limit [s]."""

START_CYCLES = 25_000.0
"""To start a team of threads and wait for it: 5 µs where nothing else runs, more elsewhere."""

SCALAR_RATE = 4.0
"""Operations in a cycle that are no vectors: loads are operands of arithmetic."""

GUARD_FACTOR = 1.2
"""A statement of fewer loops in the middle of a product costs conditions, and time to prove."""

RAGGED_FACTOR = 1.5
"""Statements that share a vector loop and start or end apart ask at every vector who runs."""

WAVE_FACTOR = 2.5
"""Skewed tiles have short rows with ragged ends: measured on stencils that fit the cache."""

APART_FACTOR = 1.5
"""As ``WAVE_FACTOR`` where rows are whole and run for one statement after the other."""

CALL_CYCLES = 30.0
"""Overhead of one run of a nest: loop bounds, masks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """A choice, why it was made, and the dependence behind it, if one is."""

    choice: str
    reason: str
    dependence: Dependence | None = None


@dataclass(frozen=True, slots=True)
class _Rated:
    """A plan with its defaults and its cost [cycles]."""

    plan: Plan
    shapes: dict[int, str]
    threads: dict[int, bool]
    outer: frozenset[str]
    cycles: float


def choose_schedule(
    program: Program,
    target: CpuTarget,
    *,
    reassociate: bool = False,
    sizes: Mapping[str, int] | None = None,
    limit_seconds: float = 2.0,
    propose: Proposer | None = None,
) -> Schedule:
    """A good schedule for any affine kernel, untuned.

    Args:
        reassociate: sums may be evaluated in any order. What may be reordered is stated in the
            program itself (``Reduction(into=True)``); without it such sums are left as they are.
        sizes: typical values of symbols; else 1000 each.
        limit_seconds: for isl [s].
        propose: where isl runs; None: in this process, where the limit is asked for only between
            its operations. ``nestor.proposing.propose`` runs it in a helper process.
    Returns: the default point of ``affine_space``. The checker has not seen it.
    """
    space = affine_space(
        program,
        target,
        reassociate=reassociate,
        sizes=sizes,
        limit_seconds=limit_seconds,
        propose=propose,
    )
    return schedule_of(space, space.default())


def affine_space(
    program: Program,
    target: CpuTarget,
    *,
    reassociate: bool = False,
    sizes: Mapping[str, int] | None = None,
    limit_seconds: float = 2.0,
    propose: Proposer | None = None,
) -> Space:
    """The knobs of ``program``'s schedule; their defaults are the heuristic's choice.

    Args: as of ``choose_schedule``.
    """
    facts = _facts(program, limit_seconds, propose)
    plans = plans_of(program, target, facts, sizes)
    if not reassociate:
        plans = {origin: _keep_order_of_sums(plan) for origin, plan in plans.items()}
    rated = {o: _rate(program, target, plan, sizes) for o, plan in plans.items()}
    best = min(rated, key=lambda origin: rated[origin].cycles)
    return Space(
        program=program,
        target=target,
        plans=plans,
        order=best,
        outer={o: r.outer for o, r in rated.items()},
        shapes={(o, k): shape for o, r in rated.items() for k, shape in r.shapes.items()},
        threads={(o, k): on for o, r in rated.items() for k, on in r.threads.items()},
    )


def fallback_points(space: Space) -> list[dict[str, Value]]:
    """Points to try in turn where the checker refuses the default: simpler and simpler ones."""
    first = space.default()
    found = [first]

    def add(change: Callable[[Knob, Value], Value]) -> None:
        last = found[-1]
        changed = {k.name: change(k, last[k.name]) for k in space.knobs(last)}
        if changed != last:
            # What the changes open is at its defaults.
            found.append({k.name: changed.get(k.name, k.default) for k in space.knobs(changed)})

    add(lambda knob, value: 0 if knob.name.endswith("/promote") else value)

    def simpler(knob: Knob, value: Value) -> Value:
        if not knob.name.endswith("/shape") or value not in ("contract", "wavefront", "dot"):
            return value
        return next(s for s in ("panel", "stream", "plain") if s in knob.values)

    add(simpler)
    add(lambda knob, value: "plain" if knob.name.endswith("/shape") else value)
    return found


def _facts(program: Program, limit_seconds: float, propose: Proposer | None) -> AffineFacts:
    if propose is not None:
        return propose(program, limit_seconds)
    from nestor.passes.polyhedral.proposals import propose_here

    return propose_here(program, limit_seconds=limit_seconds)


def _keep_order_of_sums(plan: Plan) -> Plan:
    from dataclasses import replace

    choices = tuple(tuple(c for c in own if not c.is_split) for own in plan.choices)
    return replace(plan, choices=choices, keeps_sums=True)


# Cost


def _rate(
    program: Program, target: CpuTarget, plan: Plan, sizes: Mapping[str, int] | None
) -> _Rated:
    outer = _outermost(plan) if target.cores > 1 else {}
    shapes: dict[int, str] = {}
    threads: dict[int, bool] = {}
    total = 0.0
    for k, nest in enumerate(plan.nests):
        is_inside = not outer.keys().isdisjoint(nest.outer)
        options: list[tuple[float, Choice, bool]] = []
        for choice in plan.choices[k]:
            cycles = _cycles(program, target, nest, choice, sizes)
            if is_inside:
                options.append((cycles / target.cores, choice, False))
                continue
            options.append((cycles, choice, False))
            if choice.parallel and target.cores > 1:
                starts = START_CYCLES * nest.trips
                starts *= _waves(nest, choice) * _starts_inside(nest, choice)
                options.append((cycles / target.cores + starts, choice, True))
        best = min(options, key=lambda option: option[0])
        total += best[0]
        shapes[k], threads[k] = best[1].shape, best[2]
    total += START_CYCLES * sum(outer.values())
    return _Rated(plan, shapes, threads, frozenset(outer), total)


RUN_CYCLES = 20.0
"""Of an innermost loop, to start and end; lanes that sum apart are added up each time."""

SPLIT_CYCLES = 30.0


def estimate_cycles(
    space: Space, point: Mapping[str, Value], sizes: Mapping[str, int] | None = None
) -> float:
    """About what the schedule at ``point`` takes [cycles]: an opinion for a search to start from.

    Beyond what the heuristic asks when it chooses among shapes this knows of cache tiles that they
    must not be too short.
    """
    choices = Choices(point)
    origin = space.decide_order(choices)
    plan = space.plans[origin]
    around = space.decide_around(choices, origin)
    total, started = 0.0, 0.0
    for k, nest in enumerate(plan.nests):
        choice = space.decide_nest(choices, origin, k)
        cycles = _cycles(space.program, space.target, nest, choice, sizes)
        cycles += nest.instances() * _run_cycles(nest, choice)
        at = next((p for p, n in enumerate(nest.outer) if n in around), None)
        if at is not None:
            cycles /= space.target.cores
            started = max(started, math.prod(nest.lengths[n] for n in nest.outer[:at]))
        elif choice.parallel:
            starts = nest.trips * _waves(nest, choice) * _starts_inside(nest, choice)
            cycles = cycles / space.target.cores + START_CYCLES * starts
        total += cycles
    return total + START_CYCLES * started


def _run_cycles(nest: Nest, choice: Choice) -> float:
    """What innermost loops cost by starting and ending, for one instance."""
    last = (choice.order or nest.loops)[-1]
    length = float(min(choice.tiles.get(last) or nest.extents[last], nest.extents[last]))
    for loop, size in (*choice.rows, *([choice.vector] if choice.vector else [])):
        if loop != last:
            length *= size
    return (RUN_CYCLES + SPLIT_CYCLES * choice.is_split) / max(1.0, length)


def _outermost(plan: Plan) -> dict[str, float]:
    """Each nest's outermost parallel loop around it, and how often its threads are started.

    A loop that does too little in each start is left out.
    """
    found: dict[str, float] = {}
    work: dict[str, float] = {}
    for nest in plan.nests:
        at = next((k for k, n in enumerate(nest.outer) if n in plan.outer), None)
        if at is not None:
            loop = nest.outer[at]
            found[loop] = float(math.prod(nest.lengths[n] for n in nest.outer[:at]))
            work[loop] = work.get(loop, 0.0) + nest.instances()
    return {n: starts for n, starts in found.items() if work[n] > 2 * START_CYCLES * starts}


def _waves(nest: Nest, choice: Choice) -> float:
    """How many diagonals run one after the other."""
    if choice.wave is None:
        return 1.0
    total = 0.0
    for loop in choice.wave:
        size = choice.tiles.get(loop) or choice.register_size(loop) or 1
        total += nest.extents[loop] / size
    return total


def _starts_inside(nest: Nest, choice: Choice) -> float:
    """Iterations of the loops around the parallel one, each of which starts the threads."""
    if choice.parallel is None:
        return 1.0
    total = 1.0
    if choice.wave is not None:
        for loop in choice.tile_order:
            if loop in choice.wave:
                break
            total *= nest.extents[loop] / (choice.tiles.get(loop) or 1)
        return max(1.0, total)
    for loop in (*choice.tile_order, *choice.order):
        if loop == choice.parallel:
            break
        size = choice.tiles.get(loop, 0)
        total *= (
            nest.extents[loop] / size
            if size and loop in choice.tile_order
            else (nest.extents[loop] if not size else 1.0)
        )
    return max(1.0, total)


def _cycles(
    program: Program,
    target: CpuTarget,
    nest: Nest,
    choice: Choice,
    sizes: Mapping[str, int] | None,
) -> float:
    """Estimated cycles of all runs of ``nest`` on one thread."""
    instances = nest.instances()
    work = 0.0
    for v in nest.deep:
        widest = max(s.element_bytes for s in v.streams)
        rate = 2.0 * target.lanes(8 * widest) if choice.vector else SCALAR_RATE
        work += v.operations / rate
    if choice.vector is None:
        last = (choice.order or nest.loops)[-1]
        outside = [n for n in nest.loops if n != last]
        flows = {(v.source, v.target) for v in nest.facts.carried(last, outside)}
        side_by_side = max(1, math.prod(size for _, size in choice.rows))
        work = max(work, _waiting_cycles(nest, flows, last) / side_by_side)
    if choice.shape == "wavefront" and choice.vector:
        work *= APART_FACTOR if choice.is_apart else WAVE_FACTOR
    if len(nest.deep) < len(nest.views) and choice.shape in ("contract", "dot"):
        work *= GUARD_FACTOR
    moved = _bytes_moved(program, target, nest, choice, sizes)
    if len(nest.deep) > 1 and choice.shape == "stream":
        moved, work = moved * RAGGED_FACTOR, work * RAGGED_FACTOR
    runs = nest.trips
    return instances * max(work, moved) + runs * CALL_CYCLES


def _waiting_cycles(nest: Nest, flows: set[tuple[str, str]], loop: str) -> float:
    """From one iteration of ``loop`` to the next, which needs results of the one before."""
    total = 0.0
    views = {v.name: v for v in nest.views}
    for source, target in flows:
        known = views.get(source) if source == target else None
        own = carried_cycles(known, loop) if known else None
        total += UNKNOWN_CYCLES if own is None else own
    return total


def _bytes_moved(
    program: Program,
    target: CpuTarget,
    nest: Nest,
    choice: Choice,
    sizes: Mapping[str, int] | None,
) -> float:
    """Cycles that memory takes for one instance."""
    if choice.shape == "contract":
        return 0.0
    inner = choice.vector[0] if choice.vector else (choice.order or nest.loops)[-1]
    cycles = 0.0
    seen: set[tuple[str, tuple[tuple[str, int], ...]]] = set()
    footprint = sum(
        {
            s.tensor: tensor_bytes(program, s.tensor, sizes) for v in nest.views for s in v.streams
        }.values()
    )
    for v in nest.deep:
        for s in v.streams:
            key = (s.tensor, tuple(sorted(s.strides.items())))
            if key in seen or s.strides.get(inner, 0) == 0:
                continue
            seen.add(key)
            is_far = s.strides[inner] == OTHER
            size = float(target.line_bytes if is_far else s.element_bytes)
            reused = (
                choice.shape in ("dot", "wavefront") and len(choice.rows) + len(choice.tiles) > 1
            )
            near = 8.0 if reused and not is_far else 1.0
            cycles += size / _bytes_per_cycle(target, footprint) / near
    return cycles


def _bytes_per_cycle(target: CpuTarget, footprint: int) -> float:
    """What one core gets from the cache that holds ``footprint`` [bytes per cycle]."""
    if footprint <= target.l1d_bytes:
        return 64.0
    if footprint <= target.l2_bytes:
        return 24.0
    if footprint <= target.l3_bytes:
        return 8.0
    return max(1.0, target.memory_gbps / target.ghz / max(1, target.cores))


# Reasons


def explain_schedule(
    space: Space, point: Mapping[str, Value] | None = None, facts: AffineFacts | None = None
) -> list[Reason]:
    """What was chosen at ``point`` (the default one if None), and why.

    Args: facts: names the dependences that forbade a parallel loop.
    """
    point = space.default() if point is None else point
    origin = space.decide_order(Choices(point))
    plan = space.plans[origin]
    found = [Reason(choice=f"order: {origin}", reason=_ORIGINS.get(origin, "found by isl"))]
    for k, nest in enumerate(plan.nests):
        choice = choice_at(space, point, k)
        names = ", ".join(v.name for v in nest.views)
        found.append(
            Reason(choice=f"{names}: {choice.shape}", reason=f"loops {', '.join(nest.loops)}")
        )
        found += [Reason(choice=f"{names}: {c}", reason=r) for c, r in choice.reasons]
        found += _refused(nest, choice, facts)
    for loop in sorted(parallel_around(space, point)):
        found.append(
            Reason(choice=f"parallel {loop}", reason="no dependence crosses its iterations")
        )
    return found


_ORIGINS = {
    "original": "as written",
    "distributed": "loops as written, around as few statements as can be",
    "serialize-sccs": "statements that do not depend on each other in a cycle run apart",
    "max-fusion": "what may run together does",
    "incremental": "fused where that costs no parallel loop",
    "outer-coincidence": "parallel loops stand outside",
    "share-reads": "reads of the same elements run together",
}


def _refused(nest: Nest, choice: Choice, facts: AffineFacts | None) -> list[Reason]:
    """Loops of the nest that something crosses, with one dependence each."""
    found: list[Reason] = []
    for loop in nest.loops:
        carried = nest.facts.carried(loop, ())
        if loop == choice.parallel or not carried:
            continue
        at = carried[0].dependence
        known = facts is not None and 0 <= at < len(facts.dependences)
        dependence = facts.dependences[at] if known and facts is not None else None
        text = (
            f"{carried[0].source} → {carried[0].target}" if dependence is None else str(dependence)
        )
        found.append(
            Reason(
                choice=f"{loop} is not parallel", reason=f"it carries {text}", dependence=dependence
            )
        )
    return found
