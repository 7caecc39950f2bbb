"""Compile one kernel for a GPU: schedule → nest → proof → Triton → machine code."""

from __future__ import annotations

import hashlib
import json
import struct
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from nestor.ir.program import Kernel
from nestor.ir.schedule import Schedule, schedule_to_json
from nestor.kernel_job import KernelObject
from nestor.target.gpu import GpuTarget

if TYPE_CHECKING:
    from nestor.codegen.triton import Siblings, TritonKernel
    from nestor.ir.loopnest import LoopNest


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuKernelJob:
    """What makes a kernel of a GPU: the kernel in canonical names, its schedule, the target.

    ``precision``: of products of float32, as Triton calls it. ``is_interpreted``: its source is all
    that is wanted; Triton's interpreter runs it.
    """

    kernel: Kernel
    schedule: Schedule
    target: GpuTarget
    precision: str = "ieee"
    summary: str = ""
    is_interpreted: bool = False

    def key(self) -> str:
        """Digest of everything that makes the code."""
        from nestor.codegen.triton import CODEGEN_VERSION
        from nestor.ir.printer import print_program
        from nestor.passes.polyhedral import CHECKER_VERSION

        parts = {
            "kernel": print_program(self.kernel),
            "schedule": schedule_to_json(self.schedule),
            "capability": self.target.capability,
            "shared_bytes": self.target.shared_bytes,
            "processors": self.target.processors,
            "precision": self.precision,
            "interpreted": self.is_interpreted,
            "codegen": CODEGEN_VERSION,
            "checker": CHECKER_VERSION,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def proved(self) -> LoopNest:
        """What the schedule makes of the kernel.

        Raises: ``IllegalSchedule``, ``LegalityUnknown``, ``UserError``.
        """
        from nestor.ir.verifier import verify_nest
        from nestor.passes.nest import apply_schedule
        from nestor.passes.polyhedral import check_nest

        nest = apply_schedule(self.kernel, self.schedule)
        verify_nest(nest)
        check_nest(self.kernel, nest)
        return nest

    def source(self, nest: LoopNest, siblings: Siblings | None = None) -> TritonKernel:
        """Write the kernel. Args: nest: as ``proved``. siblings: None: it is one call.

        Raises: ``Unsupported`` for what has no code.
        """
        from nestor.codegen.triton import ALONE, emit_kernel
        from nestor.passes.gpu_schedule import warps_of

        return emit_kernel(
            nest,
            summary=self.summary or "kernel",
            precision=self.precision,
            warps=warps_of(self.schedule),
            siblings=siblings or ALONE,
        )

    def compile(self) -> KernelObject:
        """Its code, as ``GpuCode``.

        Raises: as ``proved`` and ``source``; ``RefusedByTriton``.
        """
        from nestor.linking import dim_of
        from nestor.passes.gpu_schedule import warps_of
        from nestor.runtime.dims import dim_to_json

        clock = time.perf_counter()
        made = self.source(self.proved())
        seconds = {"check": time.perf_counter() - clock}
        warps = warps_of(self.schedule)
        code = GpuCode(
            function=made.name,
            grid=[dim_to_json(dim_of(e)) for e in made.grid],
            sizes=list(made.symbols),
            checks=made.checks,
            warps=warps.count,
            most=warps.persistent * self.target.processors,
            shared_bytes=0,
            scratch_bytes=0,
            parameters=0,
            source=made.source,
        )
        if not self.is_interpreted:
            from nestor.codegen.triton.cubin import CubinJob, compile_cubin

            clock = time.perf_counter()
            job = CubinJob(
                kernel=made,
                capability=self.target.capability,
                shared_bytes=self.target.shared_bytes,
                warps=warps.count,
                stages=warps.stages,
            )
            cubin = compile_cubin(job)
            seconds["triton"] = time.perf_counter() - clock
            code.function, code.binary, code.warps = cubin.function, cubin.code, cubin.warps
            code.shared_bytes, code.parameters = cubin.shared_bytes, cubin.parameters
            code.scratch_bytes = cubin.scratch_bytes
        return KernelObject(
            function_name=made.name,
            code=code.encode(),
            schedule=self.schedule,
            seconds=seconds,
            tensors=made.tensors,
        )


@dataclass(slots=True, kw_only=True)
class GpuCode:
    """What starts a kernel: see ``runtime.manifest.GpuLaunch``.

    ``source``: for the interpreter. ``binary``: machine code; empty if it is to be interpreted.
    """

    function: str
    grid: list[Any]
    sizes: list[str]
    checks: bool
    warps: int
    most: int
    shared_bytes: int
    scratch_bytes: int
    parameters: int
    source: str
    binary: bytes = b""

    def encode(self) -> bytes:
        """Data only: a length, a JSON header, the machine code."""
        fields = asdict(self)
        fields.pop("binary")
        header = json.dumps(fields).encode()
        return struct.pack("<Q", len(header)) + header + self.binary

    @classmethod
    def decode(cls, data: bytes) -> GpuCode:
        """Inverse of ``encode``."""
        (size,) = struct.unpack_from("<Q", data)
        return cls(binary=data[8 + size :], **json.loads(data[8 : 8 + size]))
