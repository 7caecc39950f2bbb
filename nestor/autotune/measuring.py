"""Measure scheduled kernels so that the figures can be trusted.

A candidate goes through three gates, and what stops it is its status:

1. A worker process with limits proves its schedule and compiles it: ``illegal``, ``unknown``.
2. Another process, which is never forked and is replaced when it dies, runs it between fences and
   compares its results (``measure_compare``): ``wrong``, ``crashed``, ``timeout``, ``memory``.
3. There it runs in turns with a reference, usually the default schedule: ``ok``, with pairs of
   times. Only their ratios mean anything on a machine whose speed drifts.

Nothing compiles while something is measured.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal

from nestor.autotune.compile_candidates import CandidateCompiler, Compiled, Job
from nestor.autotune.kernel_inputs import Array, check_sizes, save_inputs
from nestor.autotune.measure_native import HELPER_IR
from nestor.autotune.measure_process import CandidateFault
from nestor.autotune.measure_session import (
    REFERENCE,
    MeasureSession,
    Problem,
    RunSettings,
    Variant,
    interpreter_work,
)
from nestor.autotune.pairing import (
    Interval,
    Pair,
    PairPolicy,
    PairSeries,
    RacePolicy,
    collect_pairs,
    median_interval,
    run_race,
)
from nestor.autotune.scratch import ScratchFolder
from nestor.cache import ObjectCache
from nestor.config import Config
from nestor.errors import InternalError, UserError
from nestor.gpu_job import GpuKernelJob
from nestor.ir.program import Program
from nestor.ir.schedule import Schedule
from nestor.kernel_job import KernelJob, KernelObject
from nestor.kernel_store import decode_object, encode_object, job_key
from nestor.runtime.threads import thread_count
from nestor.target.cpu import CpuTarget
from nestor.target.gpu import GpuTarget

Status = Literal["ok", "illegal", "unknown", "wrong", "crashed", "timeout", "memory"]

FUNCTION = "kernel"
"""Name of every candidate's function: as the compiler's, so that objects are found in its cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A kernel in canonical names, and a schedule of it."""

    kernel: Program
    schedule: Schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What became of a candidate.

    Attributes:
        status: ``ok``, or what it did wrong.
        samples_ns: pairs (candidate, reference) of the time of a call [ns]; empty unless ``ok``.
        detail: why it is not ``ok``: the checker's witness, the wrong element, the signal.
        seconds: wall-clock time of the phases ``compile``, ``check`` and ``run`` [s].
    """

    status: Status
    samples_ns: tuple[Pair, ...] = ()
    detail: str = ""
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> Interval | None:
        """The candidate's time over the reference's; None without samples."""
        return median_interval([c / r for c, r in self.samples_ns]) if self.samples_ns else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """Close candidates told apart.

    Attributes: order: their positions from best to worst, those that failed left out.
        measurements: one a candidate, with all pairs of the race.
    """

    order: tuple[int, ...]
    measurements: tuple[Measurement, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmation:
    """A winner measured once more, at length, with other inputs than before.

    Attributes:
        ratio: its time over the default's.
        null: the same for a second copy of the default, in turns with the candidate: how far
            intervals can be trusted here, since the noise of a machine is not independent from
            sample to sample, and where code happens to lie counts too.
        agrees: its results were right each time; otherwise ``measurement`` says what was wrong.
        seeds: of the inputs.
    """

    ratio: Interval | None
    null: Interval | None
    agrees: bool
    measurement: Measurement
    seeds: tuple[int, ...]

    @property
    def is_faster(self) -> bool:
        """Whether it is right, and surely faster than the default, also than another copy of it."""
        if not self.agrees or self.ratio is None or self.null is None:
            return False
        return self.ratio.high < min(1.0, self.null.low)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a candidate may take.

    Attributes:
        compile_seconds: to be proved and compiled [s].
        run_seconds: native code without an answer [s].
        slower: of kernels that take long, so many times the reference's time.
        memory_bytes: its arrays; and beyond them what its code takes [bytes].
        compile_memory_bytes: address space of a compile worker [bytes].
        interpreted: kernels of at most so much work (``interpreter_work``) are compared with the
            interpreter; larger ones with the reference's native results.
    """

    compile_seconds: float = 20.0
    run_seconds: float = 10.0
    slower: float = math.inf
    memory_bytes: int = 4 << 30
    compile_memory_bytes: int = 4 << 30
    interpreted: int = 30_000_000


class Measurer:
    """Measures candidates; a context manager that ends its processes.

    Attributes: slots: one machine measures one batch at a time, see ``measures.Measures``.

    Args:
        target: that code is made for; must be this machine's.
        threads: of kernels; None: as a model's call takes.
        compile_workers: processes that compile; None: as the configuration has it.
        limits: what a candidate may take.
        cache: ``warm``: calls find their arrays where the last one left them; ``cold``: calls take
            turns over copies that exceed the last-level cache (at most ``MAX_SETS`` copies, so
            arrays of a few kilobytes come from an outer cache rather than from memory).
        seed: of inputs.
        policy: how many pairs are taken.
        sample_seconds: a sample repeats a kernel until it takes about so long [s].
        contract: whether ``a*b + c`` may be rounded once.
        precisions: on a GPU, how kernels make products of float32, see ``ModelKernels``.
    """

    slots = 1

    def __init__(
        self,
        target: CpuTarget | GpuTarget,
        *,
        threads: int | None = None,
        compile_workers: int | None = None,
        limits: Limits | None = None,
        cache: Literal["warm", "cold"] = "warm",
        seed: int = 0,
        config: Config | None = None,
        policy: PairPolicy | None = None,
        sample_seconds: float = 1e-3,
        contract: bool = True,
        precisions: Mapping[Program, str] | None = None,
    ):
        config = config or Config.load()
        self.target, self.seed = target, seed
        self.limits = limits or Limits()
        self.threads = thread_count(threads if threads is not None else config.threads)
        self.policy = policy or PairPolicy()
        self._sample_ns = sample_seconds * 1e9
        self._contract = contract
        self._precisions = dict(precisions or {})
        self._given: list[tuple[Mapping[str, Array], Path]] = []
        self._device = _device_of(target)
        self._cold_bytes = 0
        if cache == "cold" and isinstance(target, CpuTarget):
            self._cold_bytes = target.l3_bytes
        self._cache = ObjectCache(config.cache_dir)
        self._compiler = CandidateCompiler(
            compile_workers or config.worker_count(),
            seconds=self.limits.compile_seconds,
            memory_bytes=self.limits.compile_memory_bytes,
        )
        self._folder = ScratchFolder()
        self._helper: bytes | None = None
        self._session: MeasureSession | None = None

    def __enter__(self) -> Measurer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all processes."""
        if self._session is not None:
            self._session.close()
        self._compiler.close()
        self._folder.close()

    # ------------------------------------------------------------------------------ wholes

    def measure(
        self,
        candidates: Sequence[Candidate],
        reference: Candidate,
        *,
        sizes: Mapping[str, int] | None = None,
        inputs: Mapping[str, Array] | None = None,
        best: float = 1.0,
        policy: PairPolicy | None = None,
    ) -> list[Measurement]:
        """Compile all candidates, then run one after the other in turns with ``reference``.

        Args:
            sizes: values of the kernel's symbols.
            inputs: arrays by tensor, in their logical shapes, which nobody may change meanwhile;
                None: drawn at random.
            best: the ratio that is to be beaten: a candidate that is surely above it gets few
                pairs. It sinks as better candidates are found.
            policy: how many pairs are taken; None: the measurer's.
        Returns: one measurement a candidate, in order.
        Raises: ``UserError`` for a candidate of another kernel, or symbols without a value;
            ``InternalError`` if the reference fails.
        """
        compiled = self._compile(candidates, reference)
        made = compiled[reference.schedule]
        session = self._open(made, reference, sizes or {}, self.seed, inputs)
        found: list[Measurement] = []
        for candidate in candidates:
            one = compiled[candidate.schedule]
            measured = self._measure_one(one, candidate, session, best, policy or self.policy)
            if measured.ratio is not None:
                best = min(best, measured.ratio.median)
            found.append(measured)
        return found

    def race(
        self,
        candidates: Sequence[Candidate],
        reference: Candidate,
        *,
        sizes: Mapping[str, int] | None = None,
        within: float = 0.02,
        policy: RacePolicy | None = None,
    ) -> Race:
        """Tell close candidates apart by sequential halving: survivors get more and more pairs.

        Args: within: who is surely further behind the best than this part leaves at once.
        Raises: as ``measure``.
        """
        compiled = self._compile(candidates, reference)
        session = self._open(compiled[reference.schedule], reference, sizes or {}, self.seed)
        states = [
            self._admit(compiled[c.schedule], c, session, f"racer {k}")
            for k, c in enumerate(candidates)
        ]

        def take(position: int, pairs: int) -> Sequence[Pair]:
            state = states[position]
            if isinstance(state, Measurement):
                return ()
            try:
                return session.pairs(state, pairs, 0)
            except CandidateFault as fault:
                states[position] = _failed(fault, compiled[candidates[position].schedule])
                return ()

        result = run_race(len(candidates), take, policy or RacePolicy(), within=within)
        measurements = []
        for position, state in enumerate(states):
            if isinstance(state, Measurement):
                measurements.append(state)
                continue
            session.drop(state)
            measurements.append(
                Measurement(
                    status="ok",
                    samples_ns=tuple(result.series[position].pairs),
                    seconds=_phases(compiled[candidates[position].schedule]),
                )
            )
        order = tuple(p for p in result.order if measurements[p].status == "ok")
        return Race(order=order, measurements=tuple(measurements))

    def confirm(
        self,
        candidate: Candidate,
        default: Candidate,
        *,
        sizes: Mapping[str, int] | None = None,
        inputs: Mapping[str, Array] | None = None,
        seeds: int = 2,
        policy: PairPolicy | None = None,
    ) -> Confirmation:
        """Measure a winner against the default at length, with inputs it was not chosen with.

        How many pairs are taken does not depend on what they say.

        Args: inputs: as of ``measure``; these are varied, see ``kernel_inputs.Draw``.
            seeds: with how many different inputs it is compared and measured.
            policy: ``least``, ``most`` and ``seconds`` count for each seed.
        Raises: as ``measure``.
        """
        compiled = self._compile([candidate], default)
        policy = policy or PairPolicy(least=15, most=40, seconds=2.0)
        used = tuple(self.seed + 1 + k for k in range(seeds))
        pairs: list[Pair] = []
        null: list[Pair] = []
        clock = time.perf_counter()
        for seed in used:
            session = self._open(compiled[default.schedule], default, sizes or {}, seed, inputs)
            found = [
                self._admit(compiled[c.schedule], c, session, name)
                for c, name in ((candidate, "winner"), (default, "default again"))
            ]
            failed = next((f for f in found if isinstance(f, Measurement)), None)
            variants = [f for f in found if isinstance(f, Variant)]
            try:
                if failed is None:
                    taken = _take_beside(session, variants, policy)
                    pairs.extend(taken[0].pairs)
                    null.extend(taken[1].pairs)
                for variant in variants:
                    session.drop(variant)
            except CandidateFault as fault:
                failed = _failed(fault, compiled[candidate.schedule])
            if failed is not None:
                return Confirmation(
                    ratio=None, null=None, agrees=False, measurement=failed, seeds=used
                )
        seconds = _phases(compiled[candidate.schedule], run=time.perf_counter() - clock)
        whole = Measurement(status="ok", samples_ns=tuple(pairs), seconds=seconds)
        return Confirmation(
            ratio=whole.ratio,
            null=Measurement(status="ok", samples_ns=tuple(null)).ratio,
            agrees=True,
            measurement=whole,
            seeds=used,
        )

    # ------------------------------------------------------------------------------ parts

    def _compile(
        self, candidates: Sequence[Candidate], reference: Candidate
    ) -> dict[Schedule, Compiled]:
        """Each different schedule once; objects that the cache has are not made again."""
        for candidate in candidates:
            if candidate.kernel != reference.kernel:
                raise UserError(
                    f"candidate of kernel '{candidate.kernel.name}' cannot be measured against a "
                    f"reference of another kernel; give both the same canonical kernel"
                )
        found: dict[Schedule, Compiled] = {}
        jobs: dict[str, Job] = {}
        schedules: dict[str, Schedule] = {}
        for candidate in (reference, *candidates):
            key, job = self._job(reference.kernel, candidate.schedule)
            data = self._cache.get(key) if key not in jobs else None
            if data is not None:
                made = decode_object(data)
                if made.schedule == candidate.schedule:
                    found[candidate.schedule] = Compiled(status="ok", object=made)
                    continue
            jobs[key], schedules[key] = job, candidate.schedule

        def done(key: str, result: Compiled) -> None:
            found[schedules[key]] = result
            if result.object is not None:
                self._cache.put(key, encode_object(result.object))

        self._compiler.compile(jobs, done)
        return found

    def _job(self, kernel: Program, schedule: Schedule) -> tuple[str, Job]:
        """What compiles a candidate, and its key in the cache."""
        if isinstance(self.target, GpuTarget):
            gpu_job = GpuKernelJob(
                kernel=kernel,
                schedule=schedule,
                target=self.target,
                precision=self._precisions.get(kernel, "ieee"),
                is_interpreted=self._device == "interpreter",
            )
            return gpu_job.key(), gpu_job
        job = KernelJob(
            kernel=kernel,
            schedule=schedule,
            target=self.target,
            function_name=FUNCTION,
            contract=self._contract,
        )
        return job_key(job), job

    def _open(
        self,
        compiled: Compiled,
        reference: Candidate,
        sizes: Mapping[str, int],
        seed: int,
        inputs: Mapping[str, Array] | None = None,
    ) -> MeasureSession:
        """The session with this kernel, these sizes and inputs, and the reference loaded."""
        if compiled.object is None:
            raise InternalError(
                f"the reference schedule of kernel '{reference.kernel.name}' is "
                f"{compiled.status}: {compiled.detail}"
            )
        values = check_sizes(reference.kernel, sizes)
        if self._session is None:
            self._session = MeasureSession(self._run_settings())
        self._session.open(
            Problem(
                kernel=reference.kernel,
                sizes=values,
                seed=seed,
                reference=self._variant(compiled.object, reference, REFERENCE),
                interpret=interpreter_work(reference.kernel, values) <= self.limits.interpreted,
                given="" if inputs is None else str(self._file_of(inputs)),
            )
        )
        return self._session

    def _file_of(self, inputs: Mapping[str, Array]) -> Path:
        """Where arrays that were given lie for the process that runs candidates; written once."""
        for known, file in self._given:
            if known is inputs:
                return file
        file = self._folder.path / f"given-{len(self._given)}.npz"
        save_inputs(file, inputs)
        self._given.append((inputs, file))
        return file

    def _run_settings(self) -> RunSettings:
        helper = b""
        if isinstance(self.target, CpuTarget):
            helper = self._compiler.compile_ir(HELPER_IR, self.target.to_json())
        return RunSettings(
            helper=helper,
            device=self._device,
            threads=self.threads,
            run_seconds=self.limits.run_seconds,
            slower=self.limits.slower,
            memory_bytes=self.limits.memory_bytes,
            sample_ns=self._sample_ns,
            cold_bytes=self._cold_bytes,
            folder=self._folder.path,
        )

    def _variant(self, made: KernelObject, candidate: Candidate, name: str) -> Variant:
        from nestor.compiler import kernel_arguments
        from nestor.passes.nest import is_arranged

        tensors = {t.name: t for t in kernel_arguments(candidate.kernel, candidate.schedule)}
        if not is_arranged(candidate.schedule) and tuple(tensors) != made.tensors:
            raise InternalError(
                f"kernel '{candidate.kernel.name}': its object takes {', '.join(made.tensors)}, "
                f"its schedule says {', '.join(tensors)}"
            )
        return Variant(name=name, object=made, tensors=tuple(tensors[n] for n in made.tensors))

    def _admit(
        self, compiled: Compiled, candidate: Candidate, session: MeasureSession, name: str
    ) -> Variant | Measurement:
        """Load a candidate, compare its results and lay out its arrays; or what it did wrong."""
        if compiled.object is None:
            return Measurement(
                status=compiled.status, detail=compiled.detail, seconds=_phases(compiled)
            )
        variant = self._variant(compiled.object, candidate, name)
        clock = time.perf_counter()
        try:
            session.admit(variant)
        except CandidateFault as fault:
            return _failed(fault, compiled, check=time.perf_counter() - clock)
        return variant

    def _measure_one(
        self,
        compiled: Compiled,
        candidate: Candidate,
        session: MeasureSession,
        best: float,
        policy: PairPolicy,
    ) -> Measurement:
        clock = time.perf_counter()
        variant = self._admit(compiled, candidate, session, "candidate")
        checked = time.perf_counter()
        if isinstance(variant, Measurement):
            return variant
        taken = 0

        def take(count: int) -> Sequence[Pair]:
            nonlocal taken
            taken += count
            return session.pairs(variant, count, taken - count)

        try:
            series: PairSeries = collect_pairs(take, policy, best=best)
            session.drop(variant)
        except CandidateFault as fault:
            return _failed(
                fault, compiled, check=checked - clock, run=time.perf_counter() - checked
            )
        seconds = _phases(compiled, check=checked - clock, run=time.perf_counter() - checked)
        return Measurement(status="ok", samples_ns=tuple(series.pairs), seconds=seconds)


def _take_beside(
    session: MeasureSession, variants: Sequence[Variant], policy: PairPolicy
) -> list[PairSeries]:
    """Pairs of several variants, in turns of a few, as many as there is time for."""
    series = [PairSeries() for _ in variants]
    end = time.monotonic() + policy.seconds
    while (done := len(series[0].pairs)) < policy.most:
        if done >= policy.least and time.monotonic() >= end:
            break
        count = min(policy.batch, policy.most - done)
        for variant, one in zip(variants, series):
            one.pairs.extend(session.pairs(variant, count, done))
    return series


def _device_of(target: CpuTarget | GpuTarget) -> str:
    """What a target's kernels run on here; see ``measure_process.Runner``."""
    if isinstance(target, CpuTarget):
        return "cpu"
    return "interpreter" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"


def _phases(compiled: Compiled, **phases: float) -> dict[str, float]:
    return {"compile": sum(compiled.seconds.values()), **phases}


def _failed(fault: CandidateFault, compiled: Compiled, **phases: float) -> Measurement:
    return Measurement(status=fault.status, detail=str(fault), seconds=_phases(compiled, **phases))
