"""Drive a compile for a GPU: Program → passes → kernels → schedules → proofs → Triton code."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nestor.compiler import ProgramCalls, plan_calls, refuse_externs
from nestor.ir.affine import Affine
from nestor.ir.hashing import canonical_hash
from nestor.ir.program import Extern, Program
from nestor.ir.schedule import Schedule
from nestor.passes.canonical import canonicalize_kernel
from nestor.passes.fusion import FusedKernel
from nestor.passes.gpu_fusion import partition_for_gpu
from nestor.passes.gpu_pipeline import prepare_for_gpu
from nestor.passes.gpu_schedule import gpu_schedule, warps_of
from nestor.passes.nest import apply_schedule
from nestor.passes.polyhedral import check_nest
from nestor.target.gpu import GpuTarget

if TYPE_CHECKING:
    from nestor.codegen.triton import TritonKernel
    from nestor.frontends.torch.model import ImportedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuKernel:
    """A kernel that was proved. ``seconds``: what proving and writing it took [s]."""

    schedule: Schedule
    triton: TritonKernel
    seconds: float


@dataclass(slots=True, kw_only=True)
class GpuProgram(ProgramCalls):
    """A Program as calls of Triton kernels.

    Attributes: kernels: by key. loops: calls that run again and again: the first, one past the
        last, how often. refused_fusions: statements that were kept apart, and why.
    """

    kernels: dict[str, GpuKernel] = field(default_factory=dict)
    loops: tuple[tuple[int, int, Affine], ...] = ()
    refused_fusions: list[str] = field(default_factory=list)


def compile_for_gpu(
    imported: ImportedModel, target: GpuTarget, *, strict: bool = False
) -> GpuProgram:
    """Passes, kernels and their Triton code for a model.

    Raises: ``Unsupported`` if a kernel has no code or, in ``strict`` mode, an operator no lowering.
    """
    prepared = prepare_for_gpu(imported.program, target)
    partition = partition_for_gpu(
        prepared.main, l2_bytes=target.l2_bytes, processors=target.processors
    )
    if strict:
        refuse_externs([p for p in partition.parts if isinstance(p, Extern)])
    canonical = [p if isinstance(p, Extern) else canonicalize_kernel(p) for p in partition.parts]
    program = GpuProgram(
        main=partition.main,
        weight_program=prepared.weight_program,
        loops=tuple((first, last, loop.extent) for loop, first, last in partition.loops),
        refused_fusions=partition.refused,
    )
    tensors = {}
    for fused, origins in _different(partition.parts, canonical):
        key = program.key_of[fused.kernel] = canonical_hash(fused.kernel)
        program.kernels[key], tensors[key] = _kernel(fused, origins)
    plan_calls(program, partition.parts, canonical, lambda kernel, key: tensors[key])
    return program


def _different(
    originals: Sequence[FusedKernel | Extern],
    canonical: Sequence[tuple[FusedKernel, dict[str, str]] | Extern],
) -> list[tuple[FusedKernel, list[str]]]:
    """Each different kernel once, with the operators that it computes somewhere in the model."""
    found: dict[Program, tuple[FusedKernel, list[str]]] = {}
    for original, part in zip(originals, canonical):
        if isinstance(original, Extern) or isinstance(part, Extern):
            continue
        _, origins = found.setdefault(part[0].kernel, (part[0], []))
        origins += [str(s.origin or s.name).split(" at ")[0] for s in original.kernel.statements]
    return list(found.values())


def _precision(origins: Sequence[str]) -> str:
    """How products of float32 are made, by what PyTorch is set to; exactly where it leaves that."""
    import torch

    convolves = [o for o in origins if "conv" in o]
    if len(convolves) == len(origins) and torch.backends.cudnn.allow_tf32:
        return "tf32"
    is_exact = torch.get_float32_matmul_precision() == "highest"
    return "ieee" if is_exact else "tf32"


def _kernel(fused: FusedKernel, origins: Sequence[str]) -> tuple[GpuKernel, Any]:
    from nestor.codegen.triton import emit_kernel

    clock = time.perf_counter()
    schedule = gpu_schedule(fused)
    nest = apply_schedule(fused.kernel, schedule)
    check_nest(fused.kernel, nest)
    summary = ", ".join(dict.fromkeys(origins))
    triton = emit_kernel(
        nest, summary=summary, precision=_precision(origins), group=warps_of(schedule).group
    )
    made = GpuKernel(schedule=schedule, triton=triton, seconds=time.perf_counter() - clock)
    return made, nest.tensors
