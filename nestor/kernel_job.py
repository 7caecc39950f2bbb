"""Compile one kernel: schedule → nest → proof → LLVM → object. Runs in a compile worker.

The unit of work, of deduplication and of the object cache. A job is pure: equal kernel, schedule
and target give equal bytes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Protocol

from nestor.errors import IllegalSchedule, LegalityUnknown, UserError
from nestor.ir.loopnest import LoopNest
from nestor.ir.program import Kernel
from nestor.ir.schedule import Schedule
from nestor.target.cpu import CpuTarget

ARRANGED_SECONDS = 3.0
ARRANGED_OPERATIONS = 3_000_000
"""What the proof of one rearranged nest may take, in seconds and in isl's own unit: about as long.
A schedule that needs more gives way to the next one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelJob:
    """What makes an object: a kernel in canonical names, its schedule, the target, a name.

    ``contract``: whether ``a*b + c`` may be rounded once. Without it, results are bit for bit those
    of the reference interpreter, for a kernel that keeps its order of operations.
    ``fallbacks``: schedules to try in turn where the one before is refused.
    """

    kernel: Kernel
    schedule: Schedule
    target: CpuTarget
    function_name: str
    contract: bool = True
    fallbacks: tuple[Schedule, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelObject:
    """Object code of a kernel, and the schedule that it was made with.

    ``seconds``: time by phase. ``refused``: why the proposed schedule was not used, if it was not.
    ``tensors``: names of the tensors whose addresses the function takes, in order.
    """

    function_name: str
    code: bytes
    schedule: Schedule
    seconds: dict[str, float] = field(default_factory=dict)
    refused: str | None = None
    tensors: tuple[str, ...] = ()


class Proofs(Protocol):
    """Where schedules are proved and code is generated: here, or apart under a wall clock."""

    def prove(self, job: KernelJob) -> None:
        """Accept the job's schedule. Raises: ``IllegalSchedule``, ``LegalityUnknown``,
        ``UserError``.
        """

    def generate(self, job: KernelJob) -> KernelObject:
        """Code of the schedule that was accepted last."""


class ProofsHere:
    """In this process, within the checker's own limits."""

    def prove(self, job: KernelJob) -> None:
        """See ``Proofs``."""
        self._proof = prove_schedule(job)

    def generate(self, job: KernelJob) -> KernelObject:
        """See ``Proofs``."""
        return generate_code(job, self._proof)


def run_kernel_job(job: KernelJob, proofs: Proofs | None = None) -> KernelObject:
    """Apply, prove, and generate. Where a schedule is refused, the next fallback is tried, and
    last the kernel as written.

    Args: proofs: None: in this process.
    Raises: ``IllegalSchedule`` or ``LegalityUnknown`` only if even the nest as written is refused.
    """
    proofs = proofs or ProofsHere()
    plain = plain_schedule(job.kernel)
    refused: list[str] = []
    chosen = replace(job, schedule=plain, fallbacks=())
    for schedule in (job.schedule, *job.fallbacks):
        if schedule == plain:
            break
        candidate = replace(job, schedule=schedule, fallbacks=())
        try:
            proofs.prove(candidate)
        except (IllegalSchedule, LegalityUnknown, UserError) as error:
            refused.append(f"{type(error).__name__}: {error}")
            continue
        chosen = candidate
        break
    if chosen.schedule == plain:
        proofs.prove(chosen)
    return replace(proofs.generate(chosen), refused="\n".join(dict.fromkeys(refused)) or None)


def plain_schedule(kernel: Kernel) -> Schedule:
    """No transformation at all: every statement in a serial nest of its own."""
    del kernel
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """A nest that the checker accepted, and the time that took by phase."""

    nest: LoopNest
    seconds: dict[str, float]


def prove_schedule(job: KernelJob, max_seconds: float | None = None) -> Proof:
    """Apply the job's schedule and prove the nest; its fallbacks are not looked at.

    Args: max_seconds: for the proof [s]; None: as the kind of schedule has it.
    Raises: ``IllegalSchedule``, ``LegalityUnknown``, or ``UserError``.
    """
    from nestor.ir.verifier import verify_nest
    from nestor.passes.nest import apply_schedule, is_arranged
    from nestor.passes.polyhedral import check_nest
    from nestor.passes.polyhedral.checker import MAX_OPERATIONS, MAX_SECONDS

    lap = _Laps()
    nest = apply_schedule(job.kernel, job.schedule)
    verify_nest(nest)
    lap("schedule")
    if is_arranged(job.schedule):
        operations, seconds = ARRANGED_OPERATIONS, ARRANGED_SECONDS
    else:
        operations, seconds = MAX_OPERATIONS, MAX_SECONDS
    check_nest(job.kernel, nest, max_operations=operations, max_seconds=max_seconds or seconds)
    lap("check")
    return Proof(nest=nest, seconds=lap.seconds)


def generate_code(job: KernelJob, proof: Proof) -> KernelObject:
    """Object code of a nest that was proved."""
    from nestor.codegen.llvm import compile_ir, emit_kernel

    nest, lap = proof.nest, _Laps()
    text = emit_kernel(nest, job.target, function_name=job.function_name, fp_contract=job.contract)
    lap("emit")
    code = compile_ir(text, job.target)
    lap("llvm")
    return KernelObject(
        function_name=job.function_name,
        code=code,
        schedule=job.schedule,
        seconds={**proof.seconds, **lap.seconds},
        tensors=tuple(t.name for t in nest.tensors),
    )


class _Laps:
    """Seconds by phase; a call ends one."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._clock = time.perf_counter()

    def __call__(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase] = now - self._clock
        self._clock = now
