"""Tune a model's kernels: each trial goes where the whole model is expected to gain most.

All that is measured becomes a record at once, so a run that ends at any moment has lost nothing,
and the next one goes on from there. What a run chooses is confirmed: measured again beside the
default, with inputs that it was not chosen with, its results compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nestor.autotune.history import Trial
from nestor.autotune.interrupts import Interrupts
from nestor.autotune.measure_session import LONG_NS
from nestor.autotune.measures import Flights, Measures
from nestor.autotune.measuring import Candidate as Scheduled
from nestor.autotune.measuring import Measurement
from nestor.autotune.options import TuneOptions
from nestor.autotune.pairing import PairPolicy
from nestor.autotune.records.record import KernelKey, Record, TargetKey, current_generator
from nestor.autotune.space import Candidate, RuleSpace, readable_point
from nestor.autotune.strategies import Ranker
from nestor.autotune.task import Task
from nestor.errors import InternalError
from nestor.ir.schedule import Schedule

if TYPE_CHECKING:
    from nestor.autotune.records.store import Records
    from nestor.compiler import ModelKernels
    from nestor.target.cpu import CpuTarget
    from nestor.target.gpu import GpuTarget

CONFIRMED = "confirmed"
"""Strategy's name in records of confirmations: only such schedules run in models."""

BATCH = 8
"""Candidates that are proposed, compiled and measured together."""

_BATCH_SHARE = 0.2
"""Part of the time left that a batch may take."""

_CONFIRMING = 0.12
"""Part of the budget that is kept for confirmations."""

_MOST_CONFIRMING = 0.4
"""And at most, whatever they take."""

_LONG_CALLS = 40
"""Calls of a kernel that takes long until its winner is confirmed."""

_LEAST_GAIN = 0.005
"""A winner that gains less than this part of its kernel's time is not worth its confirmation."""

_NEAR_LIMIT = 0.95
"""Where the kernel nearest to its limit is taken to stand, if that claims to be beyond it."""

_WORTHLESS = 1e-4
"""Search ends when a batch is expected to gain less than this part of the model's time."""

_CONFIRM_GROWTH = 1.5
"""How much longer each span between confirmations during a search is than the one before."""

_FIRST_BATCH_S = 1.5
"""Guess at what a batch takes before one was run [s]."""

_FIRST_LOOK = PairPolicy(least=1, most=6, batch=1, seconds=0.3)
"""To know about how long a kernel takes."""

_LONG_POLICY = PairPolicy(least=2, most=6, batch=1, seconds=2.0, hopeless=1.15, dead=1.4)
"""Of kernels that take long: noise is small against them, and each pair is dear."""

_LEAST_PAIRS = 6
"""Fewer pairs have no interval (``pairing.Interval``); of 9 one may be anything."""

_VERY_LONG_NS = 1e9
"""Kernels that take so long get no more pairs than they need to be confirmed [ns]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run is, after each batch.

    Attributes:
        phase: ``timing``, ``searching`` or ``confirming``.
        seconds, trials: so far. kernel: name of the one under way.
        default_ns, best_ns: sums over the model's calls that are measured [ns].
        expected_ns: what the next batches of all kernels are hoped to gain [ns].
        remembered: trials of earlier runs that records told of.
        tasks: the kernels themselves; they go on changing.
    """

    phase: str
    seconds: float
    trials: int
    kernel: str
    default_ns: float
    best_ns: float
    expected_ns: float
    remembered: int = 0
    tasks: tuple[Task, ...] = ()


@dataclass(slots=True)
class Tuning:
    """What came of a run.

    Attributes: tasks: every kernel that has decisions, the most time first. trials, seconds: spent.
        statuses: how many candidates ended how. interrupted: stopped by Ctrl-C.
        kept_default: the whole model was no faster, and kept its default schedules.
        unmeasured: by name of a kernel, why its default schedule cannot be measured: it is not
            searched, and keeps that.
        reason: why it ended. history: every trial in order, remembered ones first.
    """

    tasks: list[Task]
    trials: int = 0
    seconds: float = 0.0
    statuses: dict[str, int] = field(default_factory=dict)
    interrupted: bool = False
    kept_default: bool = False
    unmeasured: dict[str, str] = field(default_factory=dict)
    reason: str = ""
    history: list[Trial] = field(default_factory=list)

    @property
    def remembered(self) -> int:
        """Trials of earlier runs that records told of."""
        return sum(t.is_remembered for t in self.history)

    @property
    def default_ns(self) -> float:
        """Time of all measured kernels in a call of the model, with default schedules [ns]."""
        return sum(t.calls * t.default_ns for t in self.tasks)

    @property
    def tuned_ns(self) -> float:
        """The same with what was confirmed [ns]."""
        return sum(t.calls * t.default_ns * min(1.0, t.confirmed or 1.0) for t in self.tasks)


@dataclass(slots=True, eq=False)
class _Batch:
    """Candidates of one kernel that are measured together; ``begin``: when they were asked for."""

    task: Task
    candidates: list[Candidate]
    best: float
    begin: float = 0.0


class Tuner:
    """Searches schedules for the kernels of a model, or for one by itself.

    Args:
        tasks: the kernels. target, threads: what they run on and with. records: keep them.
        measurer: runs candidates, as many batches at once as it has slots.
        report: is told after each batch. found: is told whenever winners were asked to confirm
            themselves.
    """

    def __init__(
        self,
        tasks: list[Task],
        target: CpuTarget | GpuTarget,
        threads: int,
        measurer: Measures,
        records: Records,
        options: TuneOptions,
        *,
        report: Callable[[Progress], None] = lambda progress: None,
        found: Callable[[Tuning], None] = lambda tuning: None,
    ):
        self._measurer = measurer
        self._records = records
        self._options = options
        self._report = report
        self._found = found
        self._target = TargetKey.of(target)
        self._threads = threads
        self._begin = time.perf_counter()
        self._interrupts = Interrupts()
        self.tasks = tasks
        self.result = Tuning(self.tasks)

    @classmethod
    def of_model(
        cls,
        kernels: ModelKernels,
        measurer: Measures,
        records: Records,
        options: TuneOptions,
        *,
        ranker_for: Callable[[int], Ranker | None] = lambda number: None,
        report: Callable[[Progress], None] = lambda progress: None,
        found: Callable[[Tuning], None] = lambda tuning: None,
    ) -> Tuner:
        """For the kernels of a model that have decisions.

        Args: kernels: see ``compiler.prepared_kernels``.
            ranker_for: a cost model's opinion on a kernel's candidates, if there is one, by the
                kernel's position.
        Raises: ``UserError`` for options that there cannot be.
        """
        from nestor.autotune.model_tasks import model_tasks

        tasks = model_tasks(kernels, options, ranker_for)
        setting = (kernels.target, kernels.threads, measurer, records, options)
        return cls(tasks, *setting, report=report, found=found)

    def run(self) -> Tuning:
        """Search until the budget is spent or nothing is left to gain; then confirm winners.

        Ctrl-C ends the search; what was found is confirmed in a few seconds, and a second Ctrl-C
        ends that.
        """
        self._begin = time.perf_counter()
        with self._interrupts:
            try:
                self.recall()
                self._time_defaults()
                self._search()
            except KeyboardInterrupt:
                self._interrupts.heed()
                self.result.interrupted = True
                self.result.reason = "stopped"
            self._confirm()
        self.result.seconds = self._spent()
        self.tasks.sort(key=lambda t: -t.calls * t.default_ns)
        return self.result

    # ------------------------------------------------------------------------------ phases

    def recall(self) -> None:
        """Tell strategies what records say of this kernel here, and of others like it."""
        trials: list[tuple[int, Trial]] = []
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
                points[record.schedule] = Candidate(readable_point(record.point), record.schedule)
                trials.append((record.created_ns, _remembered(task, record)))
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
        trials.sort(key=lambda pair: pair[0])
        self.result.history.extend(trial for _, trial in trials)

    def _seeds(self, task: Task, space: RuleSpace) -> list[Candidate]:
        """Points that did well under another generator, or for other sizes."""
        key = (task.key.digest, self._target.digest, self._threads)
        seeds = self._records.seeds(*key)
        seeds += self._records.similar(task.key, self._target.digest, self._threads)
        return [space.at(readable_point(s.point)) for s in seeds if s.point]

    def _time_defaults(self) -> None:
        """Measure every default once, so that the kernels that matter are known."""
        waiting = list(self.tasks)
        with Flights(self._measurer, self._measure) as flights:
            while True:
                if waiting and flights.has_room and not self._is_over():
                    task = waiting.pop(0)
                    if task.default_ns:
                        self._know_default(task)
                    else:
                        flights.depart(_Batch(task, [task.default], best=1.0))
                elif flights:
                    batch, found = flights.arrive()
                    for measured in found:
                        if measured.samples_ns:
                            batch.task.default_ns = min(map(min, measured.samples_ns))
                    self._know_default(batch.task)
                else:
                    break
        # The limits come from a guess at the machine's speed; nothing beats a true one.
        reached = max((t.limit_ns / t.default_ns for t in self.tasks if t.default_ns), default=0.0)
        for task in self.tasks:
            task.limit_ns /= max(1.0, reached / _NEAR_LIMIT)

    def _know_default(self, task: Task) -> None:
        task.tell(task.default, 1.0)
        self._tell("timing", task)

    def _search(self) -> None:
        span = self._options.confirm_every
        due = self._spent() + span if span else float("inf")
        with Flights(self._measurer, self._measure) as flights:
            while True:
                self._interrupts.check()
                batch = self._next_batch(flights.batches) if flights.has_room else None
                if batch is not None:
                    flights.depart(batch)
                    continue
                if not flights:
                    return  # ``_next_batch`` said why
                batch, found = flights.arrive()
                self._end_batch(batch, found)
                self._tell("searching", batch.task)
                if span and self._spent() >= due:
                    self._confirm()
                    span *= _CONFIRM_GROWTH
                    due = self._spent() + span
                    if self.result.interrupted:
                        self.result.reason = "stopped"
                        return

    def _next_batch(self, flying: list[_Batch]) -> _Batch | None:
        """What the model is expected to gain most from, of kernels that are not under way; None
        with the ``reason`` if there is nothing.
        """
        trials = sum(len(b.candidates) for b in flying)
        while True:
            if self._is_over(trials):
                self.result.reason = "the budget is spent"
                return None
            busy = {id(b.task) for b in flying}
            idle = [t for t in self.tasks if id(t) not in busy]
            open_tasks = [t for t in idle if t.default_ns and not t.is_exhausted]
            if not open_tasks:
                self.result.reason = "every schedule was tried"
                return None
            task = max(
                open_tasks,
                key=lambda t: t.expected_gain_ns() / t.expected_seconds(_FIRST_BATCH_S),
            )
            if task.expected_gain_ns() < _WORTHLESS * sum(t.total_ns for t in self.tasks):
                self.result.reason = "no kernel is expected to gain more"
                return None
            begin = self._spent()
            if candidates := task.strategy.propose(self._batch_size(task, trials)):
                return _Batch(task, candidates, best=task.ratio, begin=begin)
            task.is_exhausted = True
            self._tell("searching", task)

    def _end_batch(self, batch: _Batch, found: list[Measurement]) -> None:
        task = batch.task
        records = []
        for number, (candidate, measured) in enumerate(zip(batch.candidates, found)):
            trial = self.result.trials + number
            records.append(self._record(task, candidate, measured, task.strategy.name, trial))
            ratio = measured.ratio
            task.tell(candidate, None if ratio is None else ratio.median)
            self._note(task, candidate, measured)
            count = self.result.statuses.get(measured.status, 0)
            self.result.statuses[measured.status] = count + 1
        self._records.add_many(records)
        self.result.trials += len(found)
        task.end_batch(len(found), self._spent() - batch.begin)

    def _confirm(self) -> None:
        """Measure new winners at length, those that gain most first."""
        winners = [
            t
            for t in self.tasks
            if t.ratio < 1 - _LEAST_GAIN and t.default_ns and t.asked is not t.best
        ]
        winners.sort(key=lambda t: -t.calls * t.default_ns * (1 - t.ratio))
        for number, task in enumerate(winners):
            left = self._left()
            if number and left is not None and left <= 0:
                break
            share = 1.0 if left is None else max(0.1, left / (len(winners) - number) / 4)
            is_long = task.default_ns > LONG_NS
            least = _LEAST_PAIRS if task.default_ns > _VERY_LONG_NS else 9
            policy = PairPolicy(
                least=least, most=60, seconds=min(1.5, share), precision=0.004,
                hopeless=float("inf"), dead=float("inf"),
            )  # fmt: skip
            try:
                self._interrupts.check()
                done = self._measurer.confirm(
                    self._scheduled(task, task.best),
                    self._scheduled(task, task.default),
                    sizes=task.sizes,
                    inputs=task.inputs,
                    seeds=1 if is_long else 2,
                    policy=policy,
                )
            except KeyboardInterrupt:
                self._interrupts.heed()
                self.result.interrupted = True
                break
            self._records.add(self._record(task, task.best, done.measurement, CONFIRMED, 0))
            self._note(task, task.best, done.measurement, is_confirmation=True)
            task.end_confirmation(done.ratio.median if done.is_faster and done.ratio else None)
            self._tell("confirming", task)
        self._found(self.result)

    # ------------------------------------------------------------------------------ parts

    def _batch_size(self, task: Task, flying: int) -> int:
        count = BATCH
        if (left := self._left()) is not None:
            # Of what takes long so few that the next ones can learn from them.
            if task.trials:
                count = max(2, min(BATCH, int(_BATCH_SHARE * left * task.trials / task.seconds)))
            elif task.default_ns > LONG_NS:
                count = 2
        if self._options.trials is None:
            return count
        return max(1, min(count, self._options.trials - self.result.trials - flying))

    def _measure(self, batch: _Batch) -> list[Measurement]:
        """Candidates beside the default; of what takes long, few pairs. None where the default
        itself cannot be measured: its kernel is then left as it is.
        """
        task, policy = batch.task, None
        if not task.default_ns:
            policy = _FIRST_LOOK
        elif task.default_ns > LONG_NS:
            policy = _LONG_POLICY
        try:
            return self._measurer.measure(
                [self._scheduled(task, c) for c in batch.candidates],
                self._scheduled(task, task.default),
                sizes=task.sizes,
                inputs=task.inputs,
                best=batch.best,
                policy=policy,
            )
        except InternalError as error:
            task.is_exhausted = True
            self.result.unmeasured[task.name] = str(error)
            return []

    def _scheduled(self, task: Task, candidate: Candidate) -> Scheduled:
        return Scheduled(kernel=task.kernel, schedule=candidate.schedule)

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

    def _note(
        self,
        task: Task,
        candidate: Candidate,
        measured: Measurement,
        *,
        is_confirmation: bool = False,
    ) -> None:
        self.result.history.append(
            Trial(
                kernel=task.name,
                schedule=candidate.schedule,
                status=measured.status,
                ratio=None if measured.ratio is None else measured.ratio.median,
                seconds=self._spent(),
                is_confirmation=is_confirmation,
            )
        )

    def _spent(self) -> float:
        return time.perf_counter() - self._begin

    def _left(self) -> float | None:
        """Seconds of the whole budget that are left; None without a budget."""
        return None if self._options.seconds is None else self._options.seconds - self._spent()

    def _is_over(self, flying: int = 0) -> bool:
        """Whether the search has to end.

        Args: flying: trials that are under way.
        """
        options = self._options
        if options.trials is not None and self.result.trials + flying >= options.trials:
            return True
        return options.seconds is not None and self._spent() >= options.seconds - self._reserve()

    def _reserve(self) -> float:
        """What confirmations take of the budget: of kernels that take long, their calls [s]."""
        assert self._options.seconds is not None
        calls = sum(t.default_ns for t in self.tasks if t.default_ns > LONG_NS and t.ratio < 1)
        wanted = max(_CONFIRMING * self._options.seconds, _LONG_CALLS * calls * 1e-9)
        return min(wanted, _MOST_CONFIRMING * self._options.seconds)

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
                remembered=self.result.remembered,
                tasks=tuple(self.tasks),
            )
        )


def _remembered(task: Task, record: Record) -> Trial:
    return Trial(
        kernel=task.name,
        schedule=record.schedule,
        status=record.status,
        ratio=record.ratio if record.status == "ok" else None,
        is_confirmation=record.strategy == CONFIRMED,
        is_remembered=True,
    )


def confirmed_schedule(
    records: Records, key: KernelKey, target: TargetKey, threads: int
) -> Schedule | None:
    """The fastest schedule of a kernel that was confirmed here; None: the default is best so far.

    Only what this code generator ran counts. Of several confirmations of a schedule the latest.
    """
    return confirmed_schedules(records, [key], target, threads).get(key.digest)


def confirmed_schedules(
    records: Records, keys: Sequence[KernelKey], target: TargetKey, threads: int
) -> dict[str, Schedule]:
    """As ``confirmed_schedule``, of many kernels, by the digests of their keys."""
    found = records.confirmations(
        [key.digest for key in keys],
        CONFIRMED,
        target=target.digest,
        threads=threads,
        generator=current_generator(),
    )
    best = {digest: _fastest(own) for digest, own in found.items()}
    return {digest: schedule for digest, schedule in best.items() if schedule is not None}


def _fastest(confirmations: Sequence[Record]) -> Schedule | None:
    """The schedule whose latest confirmation is the best, if it gains enough."""
    latest: dict[Schedule, float] = {}
    for record in confirmations:
        if record.status != "ok":
            latest[record.schedule] = float("inf")
        elif record.ratio is not None:
            latest[record.schedule] = record.ratio
    best = min(latest, key=lambda s: latest[s], default=None)
    return best if best is not None and latest[best] < 1 - _LEAST_GAIN else None
