"""What a GPU is, as far as schedules and estimates need to know."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from nestor.errors import UserError

Tf32 = Literal["none", "convolutions", "all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuTarget:
    """An NVIDIA GPU.

    Attributes:
        capability: of its architecture, 90 for sm_90.
        processors: streaming multiprocessors.
        shared_bytes: of shared memory that a program may have [bytes].
        registers: of 32 bits that a multiprocessor has.
        l2_bytes: of the last cache [bytes].
        memory_gbps: bandwidth of its memory [GB/s].
        tensor_tflops: of dense products of bf16, accumulated in f32 [10¹² operations/s].
        tflops: of f32 outside tensor cores [10¹² operations/s].
        tf32: in which products of float32 operands are rounded to TF32.
    """

    capability: int
    processors: int
    shared_bytes: int
    registers: int = 65536
    l2_bytes: int
    memory_gbps: float
    tensor_tflops: float
    tflops: float
    tf32: Tf32 = "none"

    def precision(self, *, is_convolution: bool) -> str:
        """How a kernel makes products of float32, as Triton calls it."""
        is_rounded = self.tf32 == "all" or (self.tf32 == "convolutions" and is_convolution)
        return "tf32" if is_rounded else "ieee"

    def tuning_facts(self) -> dict[str, str | int | list[str]]:
        """What a measured time depends on, by name; what only guesses speeds is left out."""
        return {
            "kind": "gpu",
            "capability": self.capability,
            "processors": self.processors,
            "shared_bytes": self.shared_bytes,
            "registers": self.registers,
            "l2_bytes": self.l2_bytes,
            "tf32": self.tf32,
        }

    @property
    def name(self) -> str:
        """``sm_90``."""
        return f"sm_{self.capability}"


_KNOWN = {
    80: GpuTarget(
        capability=80, processors=108, shared_bytes=163 << 10, l2_bytes=40 << 20,
        memory_gbps=2039, tensor_tflops=312, tflops=19.5,
    ),
    86: GpuTarget(
        capability=86, processors=84, shared_bytes=99 << 10, l2_bytes=6 << 20,
        memory_gbps=1008, tensor_tflops=80, tflops=40,
    ),
    89: GpuTarget(
        capability=89, processors=142, shared_bytes=99 << 10, l2_bytes=96 << 20,
        memory_gbps=960, tensor_tflops=364, tflops=91,
    ),
    90: GpuTarget(
        capability=90, processors=132, shared_bytes=227 << 10, l2_bytes=50 << 20,
        memory_gbps=4800, tensor_tflops=989, tflops=67,
    ),
    100: GpuTarget(
        capability=100, processors=148, shared_bytes=227 << 10, l2_bytes=126 << 20,
        memory_gbps=8000, tensor_tflops=2250, tflops=75,
    ),
    103: GpuTarget(
        capability=103, processors=148, shared_bytes=227 << 10, l2_bytes=126 << 20,
        memory_gbps=8000, tensor_tflops=2500, tflops=77,
    ),
    120: GpuTarget(
        capability=120, processors=188, shared_bytes=99 << 10, l2_bytes=128 << 20,
        memory_gbps=1792, tensor_tflops=504, tflops=126,
    ),
    121: GpuTarget(
        capability=121, processors=48, shared_bytes=99 << 10, l2_bytes=24 << 20,
        memory_gbps=273, tensor_tflops=125, tflops=31,
    ),
}  # fmt: skip
"""The largest chip of each architecture that is supported, from NVIDIA's data sheets of A100, RTX
3090 Ti, RTX 6000 Ada, H200, B200, B300, RTX PRO 6000 and DGX Spark; what a program may have of
shared memory from the CUDA C++ programming guide."""


def parse_gpu_target(text: str) -> GpuTarget:
    """The GPU called ``sm_90``. Raises: ``UserError`` naming those that there are."""
    found = re.fullmatch(r"sm_(\d+)", text)
    target = _KNOWN.get(int(found[1])) if found else None
    if target is None:
        known = ", ".join(t.name for t in _KNOWN.values())
        raise UserError(f"{text!r} is no GPU that code is generated for; there are: {known}")
    return target


def gpu_of(
    capability: tuple[int, int], processors: int, l2_bytes: int, shared_bytes: int
) -> GpuTarget:
    """The GPU of this machine, as its driver tells of it; the rest as of the architecture.

    Args: capability: major and minor. shared_bytes: of a program, as of ``GpuTarget``.
    Raises: ``UserError`` for a chip before Ampere.
    """
    number = 10 * capability[0] + capability[1]
    known = [c for c in _KNOWN if c <= number]
    if not known:
        raise UserError(
            f"this GPU has compute capability {capability[0]}.{capability[1]}; "
            "code is generated for 8.0 (Ampere) and later"
        )
    return replace(
        _KNOWN[max(known)],
        capability=number,
        processors=processors,
        l2_bytes=l2_bytes,
        shared_bytes=shared_bytes,
    )


def parse_gpu_targets(text: str) -> tuple[GpuTarget, ...]:
    """GPUs of ``sm_80,sm_90``; none if ``text`` names a CPU. Raises: as ``parse_gpu_target``."""
    names = [part.strip() for part in text.split(",")]
    if not names[0].startswith("sm_"):
        return ()
    return tuple(dict.fromkeys(parse_gpu_target(name) for name in names))
