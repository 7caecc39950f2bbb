"""Compile one kernel: schedule → nest → proof → LLVM → object. Runs in a compile worker.

The unit of work, of deduplication and of the object cache. A job is pure: equal kernel, schedule
and target give equal bytes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from nestor.ir.program import Kernel
from nestor.ir.schedule import Schedule
from nestor.target.cpu import CpuTarget

ARRANGED_SECONDS = 3.0
ARRANGED_OPERATIONS = 3_000_000
"""What the proof of one rearranged nest may take, in seconds and in isl's own unit: about as long.
A schedule that needs more gives way to the next one."""

ALL_SECONDS = 7.0
"""What all rearranged nests of a kernel may take together [s]; then it runs as written."""


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


def run_kernel_job(job: KernelJob) -> KernelObject:
    """Apply, prove, and generate. Where a schedule is refused, the next fallback is tried, and
    last the kernel as written.

    Raises: ``IllegalSchedule`` or ``LegalityUnknown`` only if even the nest as written is refused.
    """
    from nestor.errors import IllegalSchedule, LegalityUnknown, UserError

    plain = plain_schedule(job.kernel)
    refused: list[str] = []
    start = time.monotonic()
    for schedule in (job.schedule, *job.fallbacks):
        if schedule == plain:
            break
        if refused and time.monotonic() - start > ALL_SECONDS - ARRANGED_SECONDS:
            refused.append("the time for proofs is used up")
            break
        try:
            return _compile(replace(job, schedule=schedule), "\n".join(refused) or None)
        except (IllegalSchedule, LegalityUnknown, UserError) as error:
            refused.append(f"{type(error).__name__}: {error}")
    return _compile(replace(job, schedule=plain), "\n".join(refused) or None)


def plain_schedule(kernel: Kernel) -> Schedule:
    """No transformation at all: every statement in a serial nest of its own."""
    del kernel
    return ()


def _compile(job: KernelJob, refused: str | None) -> KernelObject:
    from nestor.codegen.llvm import compile_ir, emit_kernel
    from nestor.ir.verifier import verify_nest
    from nestor.passes.nest import apply_schedule, is_arranged
    from nestor.passes.polyhedral import check_nest

    seconds: dict[str, float] = {}
    clock = time.perf_counter()

    def lap(phase: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[phase] = now - clock
        clock = now

    nest = apply_schedule(job.kernel, job.schedule)
    verify_nest(nest)
    lap("schedule")
    if is_arranged(job.schedule):
        check_nest(
            job.kernel, nest, max_operations=ARRANGED_OPERATIONS, max_seconds=ARRANGED_SECONDS
        )
    else:
        check_nest(job.kernel, nest)
    lap("check")
    text = emit_kernel(nest, job.target, function_name=job.function_name, fp_contract=job.contract)
    lap("emit")
    code = compile_ir(text, job.target)
    lap("llvm")
    return KernelObject(
        function_name=job.function_name,
        code=code,
        schedule=job.schedule,
        seconds=seconds,
        refused=refused,
        tensors=tuple(t.name for t in nest.tensors),
    )
