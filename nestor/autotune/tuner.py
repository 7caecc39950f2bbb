"""Tune a model's kernels: each trial goes where the whole model is expected to gain most.

All that is measured becomes a record at once, so a run that ends at any moment has lost nothing,
and the next one goes on from there. What a run chooses is confirmed: measured again beside the
default, with inputs that it was not chosen with, its results compared.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nestor.autotune.measuring import Candidate as Scheduled
from nestor.autotune.measuring import Measurement, Measurer
from nestor.autotune.pairing import PairPolicy
from nestor.autotune.records.record import KernelKey, Record, TargetKey, current_generator
from nestor.autotune.space import Candidate, Space
from nestor.autotune.strategies import Ranker, strategy_for, strategy_named
from nestor.autotune.task import Task
from nestor.errors import UserError
from nestor.ir.schedule import Schedule

if TYPE_CHECKING:
    from nestor.autotune.records.store import Records
    from nestor.compiler import ModelKernels
    from nestor.passes.fusion import FusedKernel

CONFIRMED = "confirmed"
"""Strategy's name in records of confirmations: only such schedules run in models."""

BATCH = 8
"""Candidates that are proposed, compiled and measured together."""

_CONFIRMING = 0.12
"""Part of the budget that is kept for confirmations."""

_LEAST_GAIN = 0.005
"""A winner that gains less than this part of its kernel's time is not worth its confirmation."""

_NEAR_LIMIT = 0.95
"""Where the kernel nearest to its limit is taken to stand, if that claims to be beyond it."""

_WORTHLESS = 1e-4
"""Search ends when a batch is expected to gain less than this part of the model's time."""

_FIRST_BATCH_S = 1.5
"""Guess at what a batch takes before one was run [s]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneOptions:
    """How to tune.

    Attributes:
        seconds: budget of wall-clock time [s]; None: none. trials: candidates in all; None: no
            limit. strategy: see ``strategies.STRATEGIES``. seed: of what strategies draw.
        only: names of kernels; empty: all.
    """

    seconds: float | None = None
    trials: int | None = None
    strategy: str = "bayesian"
    seed: int = 0
    only: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run is, after each batch.

    Attributes:
        phase: ``timing``, ``searching`` or ``confirming``.
        seconds, trials: so far. kernel: name of the one under way.
        default_ns, best_ns: sums over the model's calls that are measured [ns].
        expected_ns: what the next batches of all kernels are hoped to gain [ns].
    """

    phase: str
    seconds: float
    trials: int
    kernel: str
    default_ns: float
    best_ns: float
    expected_ns: float


@dataclass(slots=True)
class Tuning:
    """What came of a run.

    Attributes: tasks: every kernel that has decisions, the most time first. trials, seconds: spent.
        statuses: how many candidates ended how. interrupted: stopped by Ctrl-C.
        kept_default: the whole model was no faster, and kept its default schedules.
        reason: why it ended.
    """

    tasks: list[Task]
    trials: int = 0
    seconds: float = 0.0
    statuses: dict[str, int] = field(default_factory=dict)
    interrupted: bool = False
    kept_default: bool = False
    reason: str = ""

    @property
    def default_ns(self) -> float:
        """Time of all measured kernels in a call of the model, with default schedules [ns]."""
        return sum(t.calls * t.default_ns for t in self.tasks)

    @property
    def tuned_ns(self) -> float:
        """The same with what was confirmed [ns]."""
        return sum(t.calls * t.default_ns * min(1.0, t.confirmed or 1.0) for t in self.tasks)


_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}


def parse_seconds(text: str | float) -> float:
    """A span of time, ``"90s"``, ``"1.5m"``, ``"2h"`` or a number of seconds [s].

    Raises: ``UserError`` for anything else, and for spans that are not positive.
    """
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([smh]?)\s*", str(text))
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not found or not seconds > 0:
        raise UserError(f"{text!r} is no span of time; give it as 60s, 10m or 1h")
    return seconds


class Tuner:
    """Searches schedules for the kernels of a model.

    Args:
        kernels: see ``compiler.prepared_kernels``. measurer: runs candidates. records: keep them.
        ranker_for: a cost model's opinion on a kernel's candidates, if there is one.
        report: is told after each batch.
    """

    def __init__(
        self,
        kernels: ModelKernels,
        measurer: Measurer,
        records: Records,
        options: TuneOptions,
        *,
        ranker_for: Callable[[FusedKernel], Ranker | None] = lambda fused: None,
        report: Callable[[Progress], None] = lambda progress: None,
    ):
        self._measurer = measurer
        self._records = records
        self._options = options
        self._report = report
        self._target = TargetKey.of(kernels.target)
        self._threads = kernels.threads
        self._begin = time.perf_counter()
        _check_options(options, len(kernels.kernels))
        strategy_named(options.strategy)  # an unknown one is told of at once
        self.tasks: list[Task] = []
        for number, (fused, calls) in enumerate(zip(kernels.kernels, kernels.calls)):
            name = f"k{number}"
            if (options.only and name not in options.only) or fused.kernel.symbols:
                continue
            space = Space(fused, kernels.target)
            if not space.knobs():
                continue
            self.tasks.append(
                Task(
                    name=name,
                    key=KernelKey.of(fused.kernel),
                    calls=calls,
                    default=space.default(),
                    strategy=strategy_for(options.strategy, space, options.seed, ranker_for(fused)),
                    limit_ns=_limit_ns(fused, kernels),
                )
            )
        self.result = Tuning(self.tasks)

    def run(self) -> Tuning:
        """Search until the budget is spent or nothing is left to gain; then confirm winners.

        Ctrl-C ends the search; what was found is confirmed in a few seconds, and a second Ctrl-C
        ends that.
        """
        self._begin = time.perf_counter()
        try:
            self._recall()
            self._time_defaults()
            self._search()
        except KeyboardInterrupt:
            self.result.interrupted = True
            self.result.reason = "stopped"
        self._confirm()
        self.result.seconds = self._spent()
        self.tasks.sort(key=lambda t: -t.calls * t.default_ns)
        return self.result

    # ------------------------------------------------------------------------------ phases

    def _recall(self) -> None:
        """Tell strategies what records say of this kernel here, and of others like it."""
        for task in self.tasks:
            space = task.strategy.space
            history = self._records.history(
                task.key.digest, target=self._target.digest, threads=self._threads
            )
            ratios: dict[Schedule, list[float]] = {}
            points: dict[Schedule, Candidate] = {}
            failed: set[Schedule] = set()
            for record in history:
                if record.generator != current_generator():
                    continue
                points[record.schedule] = Candidate(_point(record), record.schedule)
                if record.status != "ok":
                    failed.add(record.schedule)
                    continue
                ratios.setdefault(record.schedule, []).append(record.ratio or 1.0)
                task.default_ns = sorted(r for _, r in record.samples_ns)[
                    len(record.samples_ns) // 2
                ]
            for schedule, candidate in points.items():
                known = sorted(ratios.get(schedule, ()))
                ratio = known[len(known) // 2] if known and schedule not in failed else None
                task.tell(candidate, ratio)
            task.strategy.suggest(self._seeds(task, space))

    def _seeds(self, task: Task, space: Space) -> list[Candidate]:
        """Points that did well under another generator, or for other sizes."""
        key = (task.key.digest, self._target.digest, self._threads)
        seeds = self._records.seeds(*key)
        seeds += self._records.similar(task.key, self._target.digest, self._threads)
        return [space.at(_point(s)) for s in seeds if s.point]

    def _time_defaults(self) -> None:
        """Measure every default once, so that the kernels that matter are known."""
        for task in self.tasks:
            if self._is_over():
                break
            if not task.default_ns:
                default = self._scheduled(task, task.default)
                (found,) = self._measurer.measure([default], default, best=1.0)
                if found.samples_ns:
                    task.default_ns = min(min(pair) for pair in found.samples_ns)
            task.tell(task.default, 1.0)
            self._tell("timing", task)
        # The limits come from a guess at the machine's speed; nothing beats a true one.
        reached = max((t.limit_ns / t.default_ns for t in self.tasks if t.default_ns), default=0.0)
        for task in self.tasks:
            task.limit_ns /= max(1.0, reached / _NEAR_LIMIT)

    def _search(self) -> None:
        while True:
            if self._is_over():
                self.result.reason = "the budget is spent"
                return
            open_tasks = [t for t in self.tasks if t.default_ns and not t.is_exhausted]
            if not open_tasks:
                self.result.reason = "every schedule was tried"
                return
            task = max(
                open_tasks,
                key=lambda t: t.expected_gain_ns() / t.expected_seconds(_FIRST_BATCH_S),
            )
            if task.expected_gain_ns() < _WORTHLESS * sum(t.total_ns for t in self.tasks):
                self.result.reason = "no kernel is expected to gain more"
                return
            self._run_batch(task)
            self._tell("searching", task)

    def _run_batch(self, task: Task) -> None:
        clock = time.perf_counter()
        candidates = task.strategy.propose(self._batch_size())
        if not candidates:
            task.is_exhausted = True
            return
        scheduled = [self._scheduled(task, c) for c in candidates]
        found = self._measurer.measure(
            scheduled, self._scheduled(task, task.default), best=task.ratio
        )
        records = []
        for number, (candidate, measured) in enumerate(zip(candidates, found)):
            trial = self.result.trials + number
            records.append(self._record(task, candidate, measured, task.strategy.name, trial))
            ratio = measured.ratio
            task.tell(candidate, None if ratio is None else ratio.median)
            count = self.result.statuses.get(measured.status, 0)
            self.result.statuses[measured.status] = count + 1
        self._records.add_many(records)
        self.result.trials += len(candidates)
        task.end_batch(len(candidates), time.perf_counter() - clock)

    def _confirm(self) -> None:
        """Measure winners at length, those that gain most first."""
        winners = [t for t in self.tasks if t.ratio < 1 - _LEAST_GAIN and t.default_ns]
        winners.sort(key=lambda t: -t.calls * t.default_ns * (1 - t.ratio))
        for number, task in enumerate(winners):
            left = self._left()
            if number and left is not None and left <= 0:
                return
            share = 1.0 if left is None else max(0.1, left / (len(winners) - number) / 4)
            policy = PairPolicy(
                least=9, most=60, seconds=min(1.5, share), precision=0.004,
                hopeless=float("inf"), dead=float("inf"),
            )  # fmt: skip
            try:
                done = self._measurer.confirm(
                    self._scheduled(task, task.best),
                    self._scheduled(task, task.default),
                    policy=policy,
                )
            except KeyboardInterrupt:
                self.result.interrupted = True
                return
            self._records.add(self._record(task, task.best, done.measurement, CONFIRMED, 0))
            if done.is_faster and done.ratio is not None:
                task.confirmed = done.ratio.median
            self._tell("confirming", task)

    # ------------------------------------------------------------------------------ parts

    def _batch_size(self) -> int:
        if self._options.trials is None:
            return BATCH
        return max(1, min(BATCH, self._options.trials - self.result.trials))

    def _scheduled(self, task: Task, candidate: Candidate) -> Scheduled:
        return Scheduled(kernel=task.strategy.space.fused.kernel, schedule=candidate.schedule)

    def _record(
        self, task: Task, candidate: Candidate, found: Measurement, strategy: str, trial: int
    ) -> Record:
        return Record(
            kernel=task.key,
            target=self._target,
            threads=self._threads,
            schedule=candidate.schedule,
            point=candidate.point,
            status=found.status,
            samples_ns=found.samples_ns,
            detail=found.detail,
            strategy=strategy,
            trial=trial,
        )

    def _spent(self) -> float:
        return time.perf_counter() - self._begin

    def _left(self) -> float | None:
        """Seconds of the whole budget that are left; None without a budget."""
        return None if self._options.seconds is None else self._options.seconds - self._spent()

    def _is_over(self) -> bool:
        """Whether the search has to end."""
        options = self._options
        if options.trials is not None and self.result.trials >= options.trials:
            return True
        return options.seconds is not None and self._spent() >= (1 - _CONFIRMING) * options.seconds

    def _tell(self, phase: str, task: Task) -> None:
        known = [t for t in self.tasks if t.default_ns]
        self._report(
            Progress(
                phase=phase,
                seconds=self._spent(),
                trials=self.result.trials,
                kernel=task.name,
                default_ns=sum(t.calls * t.default_ns for t in known),
                best_ns=sum(t.total_ns for t in known),
                expected_ns=sum(t.expected_gain_ns() for t in known),
            )
        )


def _check_options(options: TuneOptions, kernels: int) -> None:
    """Raise ``UserError`` for a budget or kernels that there cannot be."""
    if options.trials is not None and options.trials < 1:
        raise UserError(f"{options.trials} trials find nothing; give at least 1")
    names = [f"k{n}" for n in range(kernels)]
    unknown = [name for name in options.only if name not in names]
    if unknown:
        raise UserError(
            f"the model has no kernel {unknown[0]!r}; its kernels are k0 to {names[-1]}: see "
            "`nestor compile` or the table of a run without --kernel"
            if names
            else f"the model has no kernel {unknown[0]!r}: it has none at all"
        )


def _limit_ns(fused: FusedKernel, kernels: ModelKernels) -> float:
    """The least time that a kernel takes however it is scheduled [ns]."""
    from nestor.cost_model.kernel_facts import kernel_facts
    from nestor.cost_model.roofline import roofline

    return roofline(kernel_facts(fused.kernel), kernels.target, kernels.threads).ns


def _point(record: Record) -> tuple[tuple[str, int | str | tuple[int, ...]], ...]:
    """A record's point as the space has it; knobs with other kinds of values left out."""
    return tuple((n, v) for n, v in record.point or () if _is_value(v))  # type: ignore[misc]


def _is_value(value: object) -> bool:
    if isinstance(value, tuple):
        return all(isinstance(v, int) and not isinstance(v, bool) for v in value)
    return isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool))


def confirmed_schedule(
    records: Records, key: KernelKey, target: TargetKey, threads: int
) -> Schedule | None:
    """The fastest schedule of a kernel that was confirmed here; None: the default is best so far.

    Only what this code generator ran counts. Of several confirmations of a schedule the latest.
    """
    latest: dict[Schedule, float] = {}
    found: Sequence[Record] = records.history(key.digest, target=target.digest, threads=threads)
    for record in found:
        if record.generator != current_generator():
            continue
        if record.status != "ok":
            latest[record.schedule] = float("inf")
        elif record.strategy == CONFIRMED and record.ratio is not None:
            latest[record.schedule] = record.ratio
    best = min(latest, key=lambda s: latest[s], default=None)
    return best if best is not None and latest[best] < 1 - _LEAST_GAIN else None
