"""One kernel at a time in the process that runs candidates, which is replaced whenever it dies."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from nestor.autotune.measure_process import CandidateFault, Runner, RunnerLost
from nestor.autotune.pairing import Pair
from nestor.errors import InternalError
from nestor.ir.printer import print_program
from nestor.ir.program import Program, Statement, Tensor
from nestor.kernel_job import KernelObject

T = TypeVar("T")

REFERENCE = "reference"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A compiled candidate, ready to load.

    Attributes: tensors: what its function takes, in order, in the schedule's layouts.
    """

    name: str
    object: KernelObject
    tensors: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A kernel with the values of its symbols, the seed of its inputs, and a reference.

    Attributes: interpret: results are those of the interpreter, not of the reference.
        given: see ``kernel_inputs.Draw``.
    """

    kernel: Program
    sizes: Mapping[str, int]
    seed: int
    reference: Variant
    interpret: bool
    given: str = ""

    def digest(self) -> str:
        """Of all that decides what results should be."""
        parts = (
            print_program(self.kernel),
            repr(sorted(self.sizes.items())),
            repr((self.seed, self.interpret, self.given)),
        )
        code = self.reference.object.code
        return hashlib.sha256("\n".join(parts).encode() + b"\0" + code).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """How kernels run.

    Attributes:
        helper: object code of ``measure_native.HELPER_IR``.
        threads: of kernels.
        run_seconds: native code without an answer [s].
        slower: a candidate of a long kernel may take so many times as long as the reference.
        memory_bytes: a candidate's arrays; and beyond them what its code takes [bytes].
        sample_ns: a sample takes about so long, at least [ns].
        cold_bytes: cache that copies of the arrays should exceed; 0: warm [bytes].
        folder: for what outlives a process.
        device: what kernels run on, see ``measure_process.Runner``.
    """

    helper: bytes
    threads: int
    run_seconds: float
    memory_bytes: int
    sample_ns: float
    cold_bytes: int
    folder: Path
    slower: float = math.inf
    device: str = "cpu"


LONG_NS = 0.2e9
"""Kernels that take so long run as seldom as can be: once for their results, and in pairs [ns]."""

_GRACE_SECONDS = 2.0
"""Beyond ``RunSettings.slower``, for a machine that is busy for a moment [s]."""


def interpreter_work(program: Program, sizes: Mapping[str, int]) -> int:
    """About how long the interpreter takes, in instances of a pointwise statement: some 30 million
    of them take a second.

    Products are summed by NumPy, at some fifty times that speed; each iteration of a loop whose
    order counts is a few dozen calls of NumPy.
    """
    from nestor.kernel_native import count_instances
    from nestor.passes.contraction import contraction_of

    tensors = {t.name: t for t in program.tensors}
    total = 0
    for statement in program.statements:
        instances = count_instances(replace(program, statements=(statement,)), dict(sizes))
        if not isinstance(statement, Statement):
            continue
        ordered = [i for i in statement.order if isinstance(i, str)]
        if ordered or statement.scatter == "last":
            kept = [r for r in statement.domain.ranges if not ordered or r.name in ordered]
            loops = replace(statement, domain=replace(statement.domain, ranges=tuple(kept)))
            iterations = count_instances(replace(program, statements=(loops,)), dict(sizes))
            total += 3000 * iterations
        total += instances // (50 if contraction_of(statement, tensors) is not None else 1)
    return total


class MeasureSession:
    """A problem and the variants of its kernel that are loaded."""

    def __init__(self, settings: RunSettings):
        self._settings = settings
        self._runner: Runner | None = None
        self._problem: Problem | None = None
        self._digest = ""
        self._is_open = False
        self._reference_ns = 0.0
        self._loaded: dict[str, Variant] = {}

    @property
    def pid(self) -> int | None:
        """The process that runs candidates, if there is one."""
        return self._runner.pid if self._runner is not None else None

    def open(self, problem: Problem) -> None:
        """Turn to a problem; variants of another one are forgotten."""
        digest = problem.digest()
        if digest != self._digest:
            self._problem, self._digest, self._is_open = problem, digest, False
            self._loaded.clear()

    def admit(self, variant: Variant) -> None:
        """Load, check and prepare a variant. Raises: ``CandidateFault``."""

        def steps() -> None:
            self._load(variant)
            is_long = self._reference_ns > LONG_NS
            checked = self._ask("check", name=variant.name, sides=1 if is_long else 2)
            call_ns = float(checked["call_ns"]) if is_long else 0.0
            if call_ns > self._settings.slower * self._reference_ns:
                raise CandidateFault(
                    "timeout", f"took {call_ns / self._reference_ns:.1f} times the reference's time"
                )
            self._prepare(variant.name, call_ns)

        self._loaded.pop(variant.name, None)
        self._attempt(steps)
        self._loaded[variant.name] = variant

    def pairs(self, variant: Variant, count: int, first: int) -> list[Pair]:
        """Samples in turns with the reference. Raises: ``CandidateFault``.

        Args: first: how many pairs of this variant there were before.
        """

        def steps() -> dict[str, Any]:
            return self._ask(
                "pairs", name=variant.name, reference=REFERENCE, count=count, first=first
            )

        try:
            answer = self._attempt(steps)
        except CandidateFault:
            self._loaded.pop(variant.name, None)
            raise
        return [(float(c), float(r)) for c, r in answer["pairs"]]

    def _attempt(self, steps: Callable[[], T]) -> T:
        """Do ``steps`` in the process; once more should somebody end it meanwhile."""
        for is_last in (False, True):
            try:
                self._have_runner()
                return steps()
            except CandidateFault:
                self._restart()  # what a wrong candidate touched is not known
                raise
            except RunnerLost:
                self._restart()
                if is_last:
                    raise
        raise AssertionError("unreachable")

    def drop(self, variant: Variant) -> None:
        """Forget a variant."""
        self._loaded.pop(variant.name, None)
        if self._is_open:
            try:
                self._ask("drop", name=variant.name)
            except RunnerLost:
                self._restart()

    def close(self) -> None:
        """End the process."""
        self._restart()
        self._loaded.clear()

    def _restart(self) -> None:
        """Have a fresh process next time."""
        runner, self._runner, self._is_open = self._runner, None, False
        if runner is not None:
            runner.close()

    def _ask(self, command: str, **arguments: object) -> dict[str, Any]:
        assert self._runner is not None
        answer: dict[str, Any] = self._runner.ask(command, **arguments)
        return answer

    def _load(self, variant: Variant) -> None:
        self._ask(
            "load",
            name=variant.name,
            code=variant.object.code,
            function=variant.object.function_name,
            tensors=variant.tensors,
        )

    def _prepare(self, name: str, call_ns: float = 0.0) -> float:
        """Lay out a variant's arrays; the time of its call [ns]."""
        settings = self._settings
        answer = self._ask(
            "prepare",
            name=name,
            sample_ns=settings.sample_ns,
            cold_bytes=settings.cold_bytes,
            call_ns=call_ns,
        )
        return float(answer["call_ns"])

    def _limit(self, run_seconds: float) -> None:
        """How long native code may run from now on."""
        assert self._runner is not None
        run_seconds = min(run_seconds, self._settings.run_seconds)
        self._runner.limit(run_seconds)
        self._ask("limit", run_seconds=run_seconds)

    def _have_runner(self) -> None:
        """A process with the reference, and all that were loaded before it was replaced."""
        if self._runner is not None and not self._runner.is_alive():
            self._restart()
        if self._is_open:
            return
        settings = self._settings
        if self._runner is None:
            self._runner = Runner(
                settings.helper,
                threads=settings.threads,
                run_seconds=settings.run_seconds,
                memory_bytes=settings.memory_bytes,
                device=settings.device,
            )
        try:
            self._open_problem()
        except CandidateFault as fault:
            self._restart()
            assert self._problem is not None
            raise InternalError(
                f"the reference schedule of kernel '{self._problem.kernel.name}' cannot be "
                f"measured: {fault.status}: {fault}"
            ) from None

    def _open_problem(self) -> None:
        problem = self._problem
        assert problem is not None, "no problem is open"
        self._limit(math.inf)
        self._ask("open", program=problem.kernel, sizes=dict(problem.sizes))
        self._load(problem.reference)
        self._ask(
            "judge",
            name=REFERENCE,
            file=str(self._settings.folder / f"{self._digest}.npz"),
            seed=problem.seed,
            interpret=problem.interpret,
            given=problem.given,
        )
        self._reference_ns = self._prepare(REFERENCE)
        # In a pair the clock runs for both.
        self._limit((1 + self._settings.slower) * self._reference_ns * 1e-9 + _GRACE_SECONDS)
        for variant in self._loaded.values():
            self._load(variant)
            self._prepare(variant.name)
        self._is_open = True
