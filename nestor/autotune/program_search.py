"""Search a Program's own decisions: one at a time, by the kernels that change with it.

Most kernels of a model are the same whatever one decision says. So a decision is judged by the
others: what they take with it against what they take without, each with the best schedule that is
known. What looks better so is put together, and the whole model decides, timed in turns with
itself: kernels alone do not tell what they leave in the caches for each other.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from nestor.autotune.measuring import Candidate, Measurer
from nestor.autotune.pairing import Pair, median_interval
from nestor.autotune.program_space import ProgramCandidate, ProgramPoint, ProgramSpace
from nestor.autotune.records import KernelKey, Record, Records, TargetKey
from nestor.autotune.records.checking import BadRecord
from nestor.autotune.records.record import current_generator
from nestor.autotune.tuner import confirmed_schedule
from nestor.errors import InternalError
from nestor.ir.program import Program
from nestor.passes.default_schedule import default_schedule
from nestor.passes.fusion import FusedKernel
from nestor.passes.knobs import Value
from nestor.passes.register_tile import VectorUnit

PROGRAM = "program"
"""Strategy's name in records of whole models, which alone have it."""

CompareWhole = Callable[[ProgramPoint, float], Sequence[Pair]]
"""Times a call of the model, decided as a point has it, in turns with the default's, for so many
seconds [ns]; empty if its results differ."""

_LEAST_GAIN = 0.005
"""A point that gains less than this part of a call is not worth being remembered."""

_LEAST_CHANGE = 0.01
"""Kernels that change have to gain this part of their time to be tried on the whole model."""

_WHOLE_SECONDS = 6.0
"""Longest that one point is timed on the whole model [s]."""

_OVERTIME = 1.5
"""No comparison of whole models starts after so many times the budget."""

_BROKEN = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramTrial:
    """One decision, changed alone.

    Attributes: default_ns, ns: of the kernels that differ, without and with it, in a call [ns].
        gain_ns: what it should save of a call [ns].
    """

    knob: str
    value: Value
    default_ns: float
    ns: float

    @property
    def gain_ns(self) -> float:
        """What the model should gain by it [ns]."""
        return self.default_ns - self.ns


@dataclass(slots=True)
class ProgramTuning:
    """What came of a search.

    Attributes: point: what was confirmed; empty: the default. ratio: of its time to the default's.
        trials: decisions that were tried alone. knobs: how many there are. seconds: spent.
    """

    point: ProgramPoint = ()
    ratio: float = 1.0
    trials: list[ProgramTrial] = field(default_factory=list)
    knobs: int = 0
    seconds: float = 0.0


class ProgramTuner:
    """Searches the decisions of one Program.

    Args: measurer: for kernels of the default. compare: times whole models.
        seconds: budget [s]; the whole model is compared after that.
    """

    def __init__(
        self,
        space: ProgramSpace,
        measurer: Measurer,
        records: Records,
        compare: CompareWhole,
        *,
        seconds: float,
    ):
        self._space = space
        self._measurer = measurer
        self._records = records
        self._compare = compare
        self._seconds = seconds
        self._times: dict[Program, float] = {}
        self._unlike: list[ProgramPoint] = []
        self._default = space.at()
        self._target = TargetKey.of(self._default.kernels.target)
        self.result = ProgramTuning(knobs=len(self._default.knobs))

    def run(self) -> ProgramTuning:
        """Try every decision, then what looked better on the whole model.

        Ctrl-C ends the search; what was found so far is compared, and a second one ends that.
        """
        self._begin = time.perf_counter()
        with contextlib.suppress(KeyboardInterrupt):
            self._try_all()
        self._decide()
        self.result.seconds = time.perf_counter() - self._begin
        return self.result

    def _try_all(self) -> None:
        for knob in self._default.knobs:
            for value in knob.values:
                if time.perf_counter() - self._begin > self._seconds:
                    return
                if value != knob.default:
                    trial = self._try(knob.name, value)
                    if trial is not None:
                        self.result.trials.append(trial)

    def _try(self, knob: str, value: Value) -> ProgramTrial | None:
        """Time the kernels that a decision changes; None if none does, or it cannot be told."""
        candidate = self._space.at(((knob, value),))
        default = self._default
        if not candidate.point:
            return None
        if not _runs_alike(candidate, default):
            self._unlike.append(candidate.point)
            return None
        mine, theirs = candidate.calls(), default.calls()
        if {k: c[1] for k, c in mine.items()} == {k: c[1] for k, c in theirs.items()}:
            return None
        sums = []
        for own, other in ((theirs, mine), (mine, theirs)):
            total = 0.0
            for kernel, (fused, count, sizes) in own.items():
                more = count - (other[kernel][1] if kernel in other else 0)
                if more > 0:
                    total += more * self._kernel_ns(fused, sizes)
            sums.append(total)
        if sums[0] == _BROKEN:
            return None
        return ProgramTrial(knob=knob, value=value, default_ns=sums[0], ns=sums[1])

    def _kernel_ns(self, fused: FusedKernel, sizes: Mapping[str, int]) -> float:
        """Time of a call of a kernel with the best schedule that is known [ns]."""
        known = self._times.get(fused.kernel)
        if known is not None:
            return known
        target = self._default.kernels.cpu
        key = KernelKey.of(fused.kernel, sizes)
        schedule = confirmed_schedule(
            self._records, key, self._target, self._measurer.threads
        ) or default_schedule(
            fused, VectorUnit(bits=target.vector_bits, registers=target.vector_registers)
        )
        one = Candidate(kernel=fused.kernel, schedule=schedule)
        try:
            (found,) = self._measurer.measure([one], one, sizes=sizes)
            times = [min(pair) for pair in found.samples_ns]
        except InternalError:
            # Its schedule is refused or does not run: rules made for other decisions.
            times = []
        self._times[fused.kernel] = min(times, default=_BROKEN)
        return self._times[fused.kernel]

    def _decide(self) -> None:
        """Compare on the whole model: what looked better together, else the best of it alone, and
        what cannot be told from kernels."""
        best: dict[str, ProgramTrial] = {}
        for trial in sorted(self.result.trials, key=lambda t: -t.gain_ns):
            if trial.gain_ns > _LEAST_CHANGE * trial.default_ns:
                best.setdefault(trial.knob, trial)
        points = [tuple((t.knob, t.value) for t in best.values())] if best else []
        if len(best) > 1:
            points.append(points[0][:1])
        for point in points:
            # A decision may leave nothing to decide for another one.
            if self._is_faster(self._space.at(point).point):
                break
        for point in self._unlike:
            self._is_faster(point)

    def _is_faster(self, point: ProgramPoint) -> bool:
        """Whether the whole model surely is faster with a point; the best such is the result."""
        if time.perf_counter() - self._begin > _OVERTIME * self._seconds:
            return False
        pairs = tuple(self._compare(point, min(_WHOLE_SECONDS, self._seconds / 4)))
        if not pairs:
            return False
        self._records.add(program_record(self._space, point, pairs))
        ratio = _sure_ratio(pairs)
        if ratio < self.result.ratio:
            self.result.point, self.result.ratio = point, ratio
        return ratio < 1


def _runs_alike(a: ProgramCandidate, b: ProgramCandidate) -> bool:
    """Whether kernels of both are called by as many threads: only then do their times compare."""
    return a.kernels.threads == b.kernels.threads and a.kernels.target == b.kernels.target


def _sure_ratio(pairs: Sequence[Pair]) -> float:
    """Median of paired ratios; 1 where the first is not surely faster, or not by much."""
    ratio = median_interval([c / r for c, r in pairs])
    return ratio.median if ratio.high < 1 and ratio.median < 1 - _LEAST_GAIN else 1.0


def program_record(space: ProgramSpace, point: ProgramPoint, pairs: Sequence[Pair]) -> Record:
    """What came of a point on the whole model. Raises: ``BadRecord`` if it is too large."""
    return Record(
        kernel=space.key,
        target=TargetKey.of(space.target),
        threads=space.config.thread_count(),
        schedule=(),
        point=point,
        status="ok",
        samples_ns=tuple(pairs),
        strategy=PROGRAM,
    )


def recorded_point(space: ProgramSpace, records: Records) -> ProgramPoint:
    """The best point that was confirmed for this Program here; empty: the default is.

    Only what this code generator ran counts, and of several records of a point the latest. What is
    read is data: ``ProgramSpace.at`` takes from it what the rules could have decided themselves.
    """
    try:
        key = space.key
    except BadRecord:
        return ()
    latest: dict[ProgramPoint, float] = {}
    target = TargetKey.of(space.target)
    threads = space.config.thread_count()
    for record in records.history(key.digest, target=target.digest, threads=threads):
        if record.strategy != PROGRAM or record.generator != current_generator():
            continue
        point = tuple((n, v) for n, v in record.point or () if type(v) in (int, str))
        latest[point] = _sure_ratio(record.samples_ns)  # type: ignore[index]
    best = min(latest, key=lambda p: latest[p], default=())
    return best if best and latest[best] < 1 else ()
