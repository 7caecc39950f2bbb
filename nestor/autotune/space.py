"""The space of a kernel's schedules: every way in which its rules could have decided.

A *point* is the value of each knob that the rules asked for. Which knobs there are depends on the
decisions before them (rows are not blocked where one tile holds them all), so points are made by
running the rules with a source of decisions, never by multiplying lists of values.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from nestor.ir.program import Program
from nestor.ir.schedule import Schedule
from nestor.passes.default_schedule import default_schedule
from nestor.passes.fusion import FusedKernel
from nestor.passes.gpu_schedule import gpu_schedule
from nestor.passes.knobs import Choices, Knob, Value
from nestor.passes.register_tile import VectorUnit
from nestor.target.cpu import CpuTarget
from nestor.target.gpu import GpuTarget

Point = tuple[tuple[str, Value], ...]
"""Knobs and their values, in the order in which the rules ask."""

Rule = Callable[[Choices], Schedule]
"""Writes a kernel's schedule; asks for what it leaves open."""

_REMEMBERED = 1024
"""Points whose knobs are kept."""

_FAR_STEP = 0.3
"""How often a mutation takes any value instead of a neighbouring one."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A point, and the schedule that it stands for."""

    point: Point
    schedule: Schedule


class RuleSpace:
    """All schedules of one kernel that a rule can make.

    Args: kernel: in canonical form. rule: the same point always gives the same schedule.
    """

    def __init__(self, kernel: Program, rule: Rule):
        self.kernel = kernel
        self._rule = rule
        self._seen: dict[Point, tuple[Candidate, tuple[Knob, ...]]] = {}

    def default(self) -> Candidate:
        """What runs without search."""
        return self._run(Choices())[0]

    def at(self, point: Point | Mapping[str, Value]) -> Candidate:
        """The candidate of a point; values that a knob does not have give way to its default."""
        return self._run(Choices(dict(point)))[0]

    def knobs(self, point: Point = ()) -> tuple[Knob, ...]:
        """What the rules ask for on the way to ``point``, in order."""
        return self._known(Choices(dict(point)))[1]

    def sample(self, rng: random.Random) -> Candidate:
        """A candidate each of whose decisions is drawn evenly."""
        return self._run(_Drawn(rng))[0]

    def mutate(self, point: Point, rng: random.Random) -> Candidate:
        """One decision made differently, mostly by one step; decisions that it opens are drawn."""
        knobs = self.knobs(point)
        if not knobs:
            return self.at(point)
        values = dict(point)
        knob = rng.choice(knobs)
        value = values.get(knob.name, knob.default)
        near = knob.neighbours(value) if value in knob.values else ()
        if not near or rng.random() < _FAR_STEP:
            near = tuple(v for v in knob.values if v != value)
        values[knob.name] = rng.choice(near)
        return self._run(_Drawn(rng, values))[0]

    def cross(self, a: Point, b: Point, rng: random.Random) -> Candidate:
        """Each decision as one of the two points has it."""
        mine, theirs = dict(a), dict(b)
        names = list(dict.fromkeys((*mine, *theirs)))
        values = {}
        for name in names:
            both = [p[name] for p in (mine, theirs) if name in p]
            values[name] = rng.choice(both)
        return self._run(_Drawn(rng, values))[0]

    def every(self, limit: int) -> Iterator[Candidate]:
        """All candidates, each once, up to ``limit`` of them, the default first.

        Later decisions vary fastest.
        """
        pending: list[dict[str, Value]] = [{}]
        count = 0
        while pending and count < limit:
            fixed = pending.pop()
            candidate, knobs = self._run(Choices(fixed))
            yield candidate
            count += 1
            free = [k for k in knobs if k.name not in fixed]
            taken: dict[str, Value] = dict(fixed)
            # The first decision that is still open, and with it at its default each later one.
            branches: list[dict[str, Value]] = []
            for knob in free:
                others = (v for v in knob.values if v != knob.default)
                branches += [{**taken, knob.name: v} for v in others]
                taken[knob.name] = knob.default
            pending += reversed(branches)

    def size(self, limit: int) -> int:
        """How many candidates there are, counted up to ``limit``."""
        return sum(1 for _ in self.every(limit))

    def _known(self, choices: Choices) -> tuple[Candidate, tuple[Knob, ...]]:
        """As ``_run``, for what is asked again and again: the best points so far."""
        key = choices.given()
        if key not in self._seen:
            if len(self._seen) >= _REMEMBERED:
                self._seen.clear()
            self._seen[key] = self._run(choices)
        return self._seen[key]

    def _run(self, choices: Choices) -> tuple[Candidate, tuple[Knob, ...]]:
        schedule = self._rule(choices)
        return Candidate(choices.point(), schedule), tuple(choices.asked.values())


class Space(RuleSpace):
    """All schedules of a fused kernel that its rules can make.

    Args: fused: the kernel, in canonical form. target: whose vectors and registers count.
    """

    def __init__(self, fused: FusedKernel, target: CpuTarget):
        self.fused = fused
        self.unit = VectorUnit(bits=target.vector_bits, registers=target.vector_registers)
        super().__init__(fused.kernel, lambda choices: default_schedule(fused, self.unit, choices))


class GpuSpace(RuleSpace):
    """All schedules of a fused kernel for a GPU.

    Args: fused: the kernel, in canonical form. target: whose generation counts.
    """

    def __init__(self, fused: FusedKernel, target: GpuTarget):
        capability = target.capability
        super().__init__(fused.kernel, lambda choices: gpu_schedule(fused, choices, capability))


def space_of(fused: FusedKernel, target: CpuTarget | GpuTarget) -> RuleSpace:
    """All schedules of a fused kernel, in canonical form, that a target's rules can make."""
    return GpuSpace(fused, target) if isinstance(target, GpuTarget) else Space(fused, target)


class _Drawn(Choices):
    """Decisions that are drawn where they are not given."""

    def __init__(self, rng: random.Random, given: Mapping[str, Value] | None = None):
        super().__init__(given)
        self._rng = rng

    def _decide(self, knob: Knob) -> Value:
        if knob.name in self._given:
            return super()._decide(knob)
        return self._rng.choice(knob.values)


def distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Candidates without those whose schedule came before: points may say the same."""
    return list({c.schedule: c for c in reversed(candidates)}.values())[::-1]


def readable_point(point: object) -> Point:
    """A record's point as a space has it; knobs with other kinds of values left out."""
    knobs = point if isinstance(point, tuple) else ()
    return tuple((name, value) for name, value in knobs if _is_value(value))


def _is_value(value: object) -> bool:
    if isinstance(value, tuple):
        return all(isinstance(v, int) and not isinstance(v, bool) for v in value)
    return isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool))
