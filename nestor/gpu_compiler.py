"""Drive a compile for a GPU: Program → passes → kernels → schedules → proofs → Triton code."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nestor.compiler import ModelKernels, kernel_arguments, plan_calls, refuse_externs
from nestor.errors import LegalityUnknown, Unsupported, UserError
from nestor.gpu_job import GpuKernelJob
from nestor.gpu_program import GpuKernel, GpuProgram
from nestor.gpu_siblings import join_siblings
from nestor.ir.hashing import canonical_hash
from nestor.ir.program import Extern, Program
from nestor.ir.schedule import Schedule
from nestor.passes.canonical import canonicalize_kernel
from nestor.passes.fusion import FusedKernel
from nestor.passes.gpu_fusion import GpuPartition, partition_for_gpu
from nestor.passes.gpu_pipeline import prepare_for_gpu
from nestor.passes.gpu_schedule import gpu_schedule
from nestor.passes.pipeline import PipelineResult
from nestor.target.gpu import GpuTarget

if TYPE_CHECKING:
    from nestor.frontends.torch.model import ImportedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedForGpu:
    """A model after all passes, cut into kernels.

    Attributes: canonical: each kernel in canonical names, with what these stand for.
        sizes: of the Program's symbols in the example.
    """

    passes: PipelineResult
    partition: GpuPartition
    canonical: list[tuple[FusedKernel, dict[str, str]] | Extern]
    target: GpuTarget
    sizes: Mapping[str, int]

    def kernels(self) -> ModelKernels:
        """The different kernels, for a search."""
        found = _different(self.partition.parts, self.canonical)
        named = [part for part in self.canonical if not isinstance(part, Extern)]
        uses = Counter(fused.kernel for fused, _ in named)
        names = {fused.kernel: names for fused, names in reversed(named)}
        steps = {loop.symbol: 0 for loop, _, _ in self.partition.loops}
        known = {**self.sizes, **steps}
        return ModelKernels(
            kernels=tuple(fused for fused, _ in found),
            calls=tuple(uses[fused.kernel] for fused, _ in found),
            target=self.target,
            threads=1,
            operators=tuple(_operators(origins) for _, origins in found),
            sizes=tuple(
                {
                    s.name: known[names[fused.kernel][s.name]]
                    for s in fused.kernel.symbols
                    if names[fused.kernel][s.name] in known
                }
                for fused, _ in found
            ),
            precisions=tuple(_precision(self.target, origins) for _, origins in found),
        )


def prepare_model_for_gpu(imported: ImportedModel, target: GpuTarget) -> PreparedForGpu:
    """Run the passes, and cut the Program into kernels."""
    passes = prepare_for_gpu(imported.program, target)
    partition = partition_for_gpu(
        passes.main, l2_bytes=target.l2_bytes, processors=target.processors
    )
    canonical = [p if isinstance(p, Extern) else canonicalize_kernel(p) for p in partition.parts]
    return PreparedForGpu(
        passes=passes,
        partition=partition,
        canonical=canonical,
        target=target,
        sizes=imported.sizes,
    )


def compile_for_gpu(
    prepared: PreparedForGpu,
    *,
    strict: bool = False,
    chosen: Mapping[Program, Schedule] | None = None,
    join: bool = True,
) -> GpuProgram:
    """Kernels and their Triton code for a model.

    Args: chosen: schedules of kernels that are better known than the default. join: start calls
        of one kernel as one.
    Raises: ``Unsupported`` if a kernel has no code or, in ``strict`` mode, an operator no lowering.
    """
    partition, canonical = prepared.partition, prepared.canonical
    if strict:
        refuse_externs([p for p in partition.parts if isinstance(p, Extern)])
    program = GpuProgram(
        main=partition.main,
        weight_program=prepared.passes.weight_program,
        loops=tuple((first, last, loop.extent) for loop, first, last in partition.loops),
        refused_fusions=partition.refused,
    )
    for number, (fused, origins) in enumerate(_different(partition.parts, canonical)):
        key = program.key_of[fused.kernel] = canonical_hash(fused.kernel)
        own = (chosen or {}).get(fused.kernel)
        program.kernels[key] = _kernel(fused, origins, prepared.target, own, number)
    plan_calls(
        program,
        partition.parts,
        canonical,
        lambda kernel, key: kernel_arguments(kernel, program.kernels[key].schedule),
    )
    if join:
        join_siblings(program)
    return program


def _operators(origins: Sequence[str]) -> str:
    """``linear+relu``: what a kernel's statements come from."""
    names = (o.removeprefix("aten.").split(".")[0] for o in origins)
    return "+".join(dict.fromkeys(names))


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


def _precision(target: GpuTarget, origins: Sequence[str]) -> str:
    """How a kernel's products of float32 are made."""
    return target.precision(is_convolution=all("conv" in o for o in origins))


def _kernel(
    fused: FusedKernel,
    origins: Sequence[str],
    target: GpuTarget,
    chosen: Schedule | None,
    number: int,
) -> GpuKernel:
    """A kernel with the schedule that was chosen; if that is refused, with the default."""
    clock = time.perf_counter()
    job = GpuKernelJob(
        kernel=fused.kernel,
        schedule=chosen if chosen is not None else gpu_schedule(fused),
        target=target,
        precision=_precision(target, origins),
        summary=", ".join(dict.fromkeys(origins)),
    )
    try:
        nest = job.proved()
        triton = job.source(nest)
    except (UserError, LegalityUnknown, Unsupported):
        if chosen is None:
            raise
        job = replace(job, schedule=gpu_schedule(fused))
        nest = job.proved()
        triton = job.source(nest)
    seconds = time.perf_counter() - clock
    return GpuKernel(job=job, nest=nest, triton=triton, seconds=seconds, number=number)
