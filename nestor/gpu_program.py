"""A Program as calls of kernels for a GPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nestor.compiler import ProgramCalls
from nestor.gpu_job import GpuKernelJob
from nestor.ir.affine import Affine
from nestor.ir.loopnest import LoopNest
from nestor.ir.schedule import Schedule

if TYPE_CHECKING:
    from nestor.codegen.triton import TritonKernel


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuKernel:
    """A kernel that was proved, as ``nest``.

    Attributes: number: among the Program's kernels, before calls are joined. calls: how many calls
        it makes at once. seconds: what proving and writing it took [s].
    """

    job: GpuKernelJob
    nest: LoopNest
    triton: TritonKernel
    seconds: float
    number: int
    calls: int = 1

    @property
    def name(self) -> str:
        """As people are told of it."""
        return f"k{self.number}" if self.calls == 1 else f"k{self.number}x{self.calls}"

    @property
    def schedule(self) -> Schedule:
        """That it has."""
        return self.job.schedule


@dataclass(slots=True, kw_only=True)
class GpuProgram(ProgramCalls):
    """A Program as calls of Triton kernels.

    Attributes: kernels: by key. loops: calls that run again and again: the first, one past the
        last, how often. refused_fusions: statements that were kept apart, and why.
    """

    kernels: dict[str, GpuKernel] = field(default_factory=dict)
    loops: tuple[tuple[int, int, Affine], ...] = ()
    refused_fusions: list[str] = field(default_factory=list)
