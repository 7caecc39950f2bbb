"""The space of a Program's own decisions, made before there are kernels.

Passes and the partition into kernels ask for knobs as schedules' rules do (``passes/knobs.py``),
named after the decision and the shapes it is about: equal layers decide alike. A *program point*
gives some of these knobs values; running the passes with it makes the kernels it stands for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from nestor.compiler import ModelKernels, PreparedProgram, prepare_program, prepared_kernels
from nestor.config import Config
from nestor.ir.program import Program, Symbol
from nestor.passes.fusion import FusedKernel
from nestor.passes.knobs import Choices, Knob, Value
from nestor.target.cpu import CpuTarget

if TYPE_CHECKING:
    from nestor.autotune.records import KernelKey

ProgramPoint = tuple[tuple[str, Value], ...]
"""Knobs whose values are not the defaults; empty: what the rules decide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramCandidate:
    """A Program as a point makes it.

    Attributes:
        point: what is decided otherwise than by default.
        prepared: the Program after its passes. kernels: what it is cut into.
        knobs: everything that was asked for on the way, in order.
    """

    point: ProgramPoint
    prepared: PreparedProgram
    kernels: ModelKernels
    knobs: tuple[Knob, ...]

    def calls(self) -> dict[Program, tuple[FusedKernel, int, Mapping[str, int]]]:
        """Each different kernel, how often it runs in a call of the model, and at what sizes."""
        kernels = self.kernels
        counted = zip(kernels.kernels, kernels.calls, kernels.sizes)
        return {fused.kernel: (fused, count, sizes) for fused, count, sizes in counted}


class ProgramSpace:
    """All ways in which the passes can prepare one Program.

    Args: program: of a frontend. has_updates: as of ``compiler.prepare_program``.
        sizes: of its symbols in the example, as far as they are known.
    """

    def __init__(
        self,
        program: Program,
        target: CpuTarget,
        config: Config,
        *,
        has_updates: bool = False,
        sizes: Mapping[str, int] | None = None,
    ):
        self.program = program
        self.target = target
        self.config = config
        self.has_updates = has_updates
        self.sizes = dict(sizes or {})

    def at(self, point: ProgramPoint = ()) -> ProgramCandidate:
        """The candidate of a point.

        Knobs that nobody asks for, values that a knob does not have and defaults drop out: the
        candidate's own point has none of them.
        """
        choices = Choices(dict(point))
        prepared = self.prepare(choices)
        kernels = self.kernels_of(prepared)
        return ProgramCandidate(
            point=choices.otherwise(),
            prepared=prepared,
            kernels=kernels,
            knobs=tuple(choices.asked.values()),
        )

    def prepare(self, choices: Choices) -> PreparedProgram:
        """The Program after its passes, with decisions given beforehand."""
        return prepare_program(
            self.program, self.target, self.config, has_updates=self.has_updates, choices=choices
        )

    def kernels_of(self, prepared: PreparedProgram) -> ModelKernels:
        """What a prepared Program is cut into."""
        return prepared_kernels(prepared, self.config, self.sizes)

    @cached_property
    def has_sizes(self) -> bool:
        """Whether the example tells the sizes of all symbols, so that it can be measured."""
        return all(s.name in self.sizes for s in self.program.symbols)

    @cached_property
    def key(self) -> KernelKey:
        """The Program as records know it, at the example's sizes: with a symbol that nothing uses,
        which no kernel has, so that a kernel's records are never taken for those of a model that is
        this kernel.

        Raises: ``BadRecord`` if it is too large.
        """
        from nestor.autotune.records import KernelKey

        taken = {s.name for s in self.program.symbols}
        name = next(n for n in (f"model{k}" for k in range(len(taken) + 1)) if n not in taken)
        mark = Symbol(name=name, lower=1)
        marked = replace(self.program, symbols=(*self.program.symbols, mark))
        return KernelKey.of(marked, self.sizes)
