"""The steps of a loop kernel's compilation that ask isl, each run apart under a wall clock.

``IslStages`` sends them to the helper process (``isl_helper``) and shares out ``ISL_SECONDS`` among
them; what does not end in time is ended, and gives way to something simpler. Without workers
(``NESTOR_WORKERS=0``), and where no process can be started, they run in this process, where only
isl's own operations are bounded.
"""

from __future__ import annotations

import functools
import pickle
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nestor.errors import InternalError, LegalityUnknown
from nestor.ir.program import Program
from nestor.isl_helper import Unanswered, shared_helper
from nestor.kernel_job import (
    ARRANGED_SECONDS,
    KernelJob,
    KernelObject,
    generate_code,
    plain_schedule,
    prove_schedule,
)
from nestor.workers import DEFAULT_TIMEOUT_S, default_worker_count, write_reproducer

if TYPE_CHECKING:
    from nestor.passes.polyhedral.size_conditions import SizeConditions

ISL_SECONDS = 10.0
"""What isl may take for one kernel, all steps together [s of wall-clock time]."""

SIZES_SECONDS = 3.0
PREPARE_SECONDS = 1.5

PLAIN_SECONDS = 2.0
"""Kept back for the proof of the loops as written."""

PLAIN_PATIENCE = 3.0
"""Wall-clock over processor time for that proof: nothing stands behind it, and on a machine that is
busy or stops the process it should not fail for want of a turn. Elsewhere the two are the same."""

INNER_SHARE = 0.8
"""Of a step's time, what the checker is told: it then says what it was about, and lives on."""

_proved = functools.lru_cache(maxsize=2)(prove_schedule)
"""Code is generated where, and from what, the proof was made."""


def find_sizes(program: Program) -> SizeConditions:
    """For which sizes every access is inside its array."""
    from nestor.passes.polyhedral.size_conditions import find_size_conditions

    return find_size_conditions(program)


def prepare(program: Program, reassociate: bool) -> Program:
    """The Program that schedules are chosen for."""
    from nestor.passes.affine_pipeline import prepare_affine

    return prepare_affine(program, reassociate=reassociate)


def prove(job: KernelJob, seconds: float | None) -> None:
    """Apply the job's schedule and prove the nest; see ``prove_schedule``."""
    _proved(job, seconds)


def generate(job: KernelJob, seconds: float | None) -> KernelObject:
    """Code for a job that ``prove`` accepted; it is proved again should it be forgotten."""
    return generate_code(job, _proved(job, seconds))


STEPS: dict[str, Callable[..., Any]] = {
    "sizes": find_sizes,
    "prepare": prepare,
    "prove": prove,
    "generate": generate,
}


def run_job(payload: bytes) -> bytes:
    """Kind ``isl``: a pickled ``(step, arguments, processor_seconds)`` from the parent's own pipe →
    pickled result. Past its time on the processor the process is ended, by SIGPROF's default.
    """
    step, arguments, processor_seconds = pickle.loads(payload)
    signal.setitimer(signal.ITIMER_PROF, processor_seconds)
    try:
        return pickle.dumps(STEPS[step](*arguments))
    except MemoryError:
        raise LegalityUnknown(f"the step '{step}' needs more memory than a worker has") from None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def warm_up(payload: bytes) -> bytes:
    """Kind ``isl-warm``: load what the steps need."""
    import nestor.codegen.llvm
    import nestor.passes.affine_pipeline
    import nestor.passes.polyhedral.affine_nest
    import nestor.passes.polyhedral.proposals
    import nestor.passes.polyhedral.size_conditions  # noqa: F401

    return payload


class IslStages:
    """What isl does for one kernel, and the time that is left for it."""

    def __init__(self, seconds: float = ISL_SECONDS) -> None:
        self.left = seconds
        self._inner: float | None = None

    def sizes(self, program: Program) -> SizeConditions:
        """See ``find_sizes``. Raises: ``LegalityUnknown`` if that takes too long."""
        found: SizeConditions = self._run("sizes", (program,), SIZES_SECONDS, program.name)
        return found

    def prepare(self, program: Program, *, reassociate: bool) -> Program:
        """See ``prepare``. Raises: ``LegalityUnknown`` if that takes too long."""
        arguments = (program, reassociate)
        prepared: Program = self._run("prepare", arguments, PREPARE_SECONDS, program.name)
        return prepared

    def prove(self, job: KernelJob) -> None:
        """Prove one schedule. Raises: ``IllegalSchedule``, ``LegalityUnknown``, ``UserError``."""
        is_plain = job.schedule == plain_schedule(job.kernel)
        arranged = min(ARRANGED_SECONDS / INNER_SHARE, self.left - PLAIN_SECONDS)
        most, patience = (self.left, PLAIN_PATIENCE) if is_plain else (arranged, 1.0)
        # Rounded, for the proof is found again by it.
        self._inner = round(INNER_SHARE * most * patience, 3)
        self._run("prove", (job, self._inner), most, job.kernel.name, patience)

    def generate(self, job: KernelJob) -> KernelObject:
        """Code for the schedule that was proved last.

        Raises: ``InternalError`` with a reproducer if LLVM crashes or never ends.
        """
        arguments = (job, self._inner)
        try:
            made: KernelObject = _call("generate", arguments, DEFAULT_TIMEOUT_S, DEFAULT_TIMEOUT_S)
        except Unanswered as error:
            payload = pickle.dumps(("generate", arguments, DEFAULT_TIMEOUT_S))
            folder = write_reproducer("isl", payload, str(error), None)
            raise InternalError(
                f"kernel '{job.kernel.name}': generating code failed: {error}"
                f"\nreproduce: python -m nestor._worker --replay {folder}",
                reproducer=folder,
            ) from None
        return made

    def spend(self, seconds: float) -> None:
        """Note what was used elsewhere."""
        self.left = max(0.0, self.left - seconds)

    def _run(
        self,
        step: str,
        arguments: tuple[Any, ...],
        most: float,
        kernel: str,
        patience: float = 1.0,
    ) -> Any:
        limit = min(most, self.left)
        if limit <= 0:
            raise LegalityUnknown(f"kernel '{kernel}': {ISL_SECONDS:g} s of isl are used up")
        with shared_helper().lock:
            _is_apart()  # starting the helper is no work of isl's
            clock = time.monotonic()
            try:
                return _call(step, arguments, limit, limit * patience)
            except Unanswered as error:
                raise LegalityUnknown(
                    f"kernel '{kernel}': the step '{step}' was given up: {error}"
                ) from None
            finally:
                # Past the limit nothing ran: a process that was stopped loses no more than that.
                self.spend(min(limit, time.monotonic() - clock))


def _is_apart() -> bool:
    """Whether there is a helper to ask; starts it."""
    return default_worker_count() > 0 and shared_helper().start()


def _call(
    step: str, arguments: tuple[Any, ...], processor_seconds: float, wall_seconds: float
) -> Any:
    """Run a step in the helper, or here. Raises: ``Unanswered``; what the step raises."""
    helper = shared_helper()
    with helper.lock:
        if not _is_apart():
            return STEPS[step](*arguments)
        payload = pickle.dumps((step, arguments, processor_seconds))
        return pickle.loads(helper.ask("isl", payload, wall_seconds))
