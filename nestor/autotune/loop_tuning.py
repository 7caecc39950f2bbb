"""Tuning of loop kernels: their space, what is tried first, and what is measured.

What is measured is what will run: a schedule that is proved for all sizes, with the code for all of
them, on the caller's own data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nestor.autotune.space import Candidate, RuleSpace
from nestor.config import Config
from nestor.errors import InternalError
from nestor.ir.hashing import canonicalize
from nestor.ir.program import Program
from nestor.ir.schedule import Parallel, Schedule
from nestor.ir.schedule_names import canonical_schedule
from nestor.passes.affine_space import ORDER, Space
from nestor.target.cpu import CpuTarget

if TYPE_CHECKING:
    from nestor.autotune.kernel_inputs import Array
    from nestor.autotune.options import TuneOptions
    from nestor.autotune.strategies import Ranker
    from nestor.autotune.task import Task
    from nestor.autotune.tuner import Progress, Tuning

PROPOSE_SECONDS = 20.0
"""For isl to propose orders; a search has more time for it than a call [s]."""

SAMPLE_SECONDS = 1e-4
"""So that a sample is one call, of all but the shortest kernels: what they overwrite is restored
before a sample, and a second call in a row would see what the first one left [s]."""

SLOWER = 2.0
"""Candidates of kernels that take long are given up past so many times the reference's time."""

RUN_SECONDS = 120.0
"""Of the reference, at most [s]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopProblem:
    """What is tuned.

    Attributes:
        program: as it is compiled, in its own names. sizes: of its symbols.
        inputs: arrays by parameter, as the interpreter takes them.
        schedule: what runs without tuning, in the program's own names.
        target, threads: what it runs on and with. is_small: too small to start threads untuned.
        reassociate, contract: see ``loop_kernel.Kernel``.
    """

    program: Program
    sizes: Mapping[str, int]
    inputs: Mapping[str, Array]
    schedule: Schedule
    target: CpuTarget
    threads: int
    is_small: bool
    reassociate: bool
    contract: bool


def loop_task(problem: LoopProblem, options: TuneOptions) -> Task:
    """The kernel, its space, and what is tried first."""
    from nestor.autotune.records import KernelKey
    from nestor.autotune.strategies import strategy_for
    from nestor.autotune.task import Task
    from nestor.passes.affine_schedule import affine_space
    from nestor.proposing import propose

    kernel, names = canonicalize(problem.program)
    sizes = {names[n]: v for n, v in problem.sizes.items() if n in names}
    facts = propose(kernel, limit_seconds=PROPOSE_SECONDS)

    def rules_for(known: Mapping[str, int] | None) -> Space:
        return affine_space(
            kernel,
            problem.target,
            reassociate=problem.reassociate,
            sizes=known,
            propose=lambda *_: facts,
        )

    rules = rules_for(sizes)
    space = RuleSpace(kernel, rules.schedule)
    untuned = canonical_schedule(problem.schedule, problem.program, names)
    if problem.is_small:
        untuned = without_threads(untuned)
    strategy = strategy_for(options.strategy, space, options.seed, _ranker(rules, sizes))
    strategy.suggest(first_candidates(rules, space))
    return Task(
        name=problem.program.name,
        key=KernelKey.of(kernel, sizes),
        calls=1,
        default=_as_point(untuned, rules_for(None), space),
        strategy=strategy,
        limit_ns=0.0,
        sizes=sizes,
        inputs={names[n]: value for n, value in problem.inputs.items() if n in names},
    )


def _ranker(rules: Space, sizes: Mapping[str, int]) -> Ranker:
    """The heuristic's opinion on candidates."""
    from nestor.passes.affine_schedule import estimate_cycles

    return lambda candidates: (
        1.0 / np.array([estimate_cycles(rules, dict(c.point), sizes) for c in candidates])
    )


def without_threads(schedule: Schedule) -> Schedule:
    """``schedule`` on one thread."""
    return tuple(step for step in schedule if not isinstance(step, Parallel))


def _as_point(untuned: Schedule, rules: Space, space: RuleSpace) -> Candidate:
    """The untuned schedule with its point, if the space for these sizes has one."""
    found = space.at(rules.default())
    return found if found.schedule == untuned else Candidate((), untuned)


def first_candidates(rules: Space, space: RuleSpace) -> list[Candidate]:
    """The heuristic's choice for these very sizes, and for each order that there is, on threads as
    it would and on none."""
    chosen = rules.default()
    orders = [rules.order, *(o for o in rules.plans if o != rules.order)]
    found: list[Candidate] = []
    for order in orders:
        point = {**chosen, ORDER: order}
        knobs = rules.knobs(point)
        serial = {k.name: k.values[0] for k in knobs if is_threading(k.name)}
        found += [space.at(point), space.at({**point, **serial})]
    return found


def is_threading(knob: str) -> bool:
    """Whether a knob of an affine space is about threads; its first value is then none."""
    return knob.endswith("/threads") or "/parallel " in knob


def tune_loop(
    problem: LoopProblem,
    config: Config,
    options: TuneOptions,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Tuning:
    """Search a schedule for one loop kernel at its sizes; records keep what is measured.

    The winner, if one is confirmed, is the task's ``best``, in canonical names.
    Raises: ``InternalError`` if the untuned schedule cannot be measured.
    """
    from nestor.autotune.measuring import Limits, Measurer
    from nestor.autotune.records import Records
    from nestor.autotune.tuner import Tuner

    task = loop_task(problem, options)
    with (
        Records.open(config) as records,
        Measurer(
            problem.target,
            threads=problem.threads,
            config=config,
            limits=Limits(run_seconds=RUN_SECONDS, slower=SLOWER),
            sample_seconds=SAMPLE_SECONDS,
            contract=problem.contract,
        ) as measurer,
    ):
        setting = (problem.target, problem.threads, measurer, records, options)
        found = Tuner([task], *setting, report=report).run()
    for reason in found.unmeasured.values():
        raise InternalError(reason)
    return found
