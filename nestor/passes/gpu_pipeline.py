"""From a frontend's Program to kernels for a GPU: the passes of every target but those that are for
the caches, vectors and cores of a CPU."""

from __future__ import annotations

from dataclasses import replace

from nestor.ir.program import Extern, Program
from nestor.passes.canonical import canonicalize_kernel
from nestor.passes.context import PassContext, PassOptions
from nestor.passes.epilogues import absorb_epilogues
from nestor.passes.fusion import FusedKernel
from nestor.passes.gpu_fusion import partition_for_gpu
from nestor.passes.online_attention import merge_attention
from nestor.passes.pipeline import PipelineResult, run_pass, run_pipeline
from nestor.target.gpu import GpuTarget

NOT_FOR_GPUS = frozenset(
    {
        "pad_operands",  # a masked load costs nothing
        "trim_windows",
        "relayout_operands",  # tensor cores take operands either way
        "transform_windows",
        "split_softmax",
        "skip_masked_terms",
        "split_reductions",
        "cut_reductions",
        "group_rows",
    }
)
"""Passes that are left out."""


def prepare_for_gpu(program: Program) -> PipelineResult:
    """Run the passes."""
    ctx = PassContext(options=PassOptions(disabled=NOT_FOR_GPUS))
    result = run_pipeline(program, ctx)
    main = run_pass(result.main, merge_attention, ctx)
    return replace(result, main=run_pass(main, absorb_epilogues, ctx))


def gpu_kernels(main: Program, target: GpuTarget) -> list[FusedKernel | Extern]:
    """The kernels of a prepared Program, in running order and in canonical names."""
    partition = partition_for_gpu(main, l2_bytes=target.l2_bytes, processors=target.processors)
    return [p if isinstance(p, Extern) else canonicalize_kernel(p)[0] for p in partition.parts]
