"""From a frontend's Program to kernels for a GPU: the passes of every target but those that are for
the caches, vectors and cores of a CPU, and then a GPU's own."""

from __future__ import annotations

from dataclasses import replace

from nestor.ir.program import Extern, Program, Statement
from nestor.passes.analysis import contraction_roles
from nestor.passes.canonical import canonicalize_kernel
from nestor.passes.context import PassContext, PassOptions
from nestor.passes.cut_keys import cut_keys
from nestor.passes.cut_reductions import Work, cut_where
from nestor.passes.epilogues import absorb_epilogues
from nestor.passes.fusion import FusedKernel
from nestor.passes.gpu_fusion import partition_for_gpu
from nestor.passes.online_attention import merge_attention
from nestor.passes.paged_keys import count_keys_as_one, read_pages_in_place
from nestor.passes.pipeline import PipelineResult, run_pass, run_pipeline
from nestor.target.gpu import GpuTarget

NOT_FOR_GPUS = frozenset(
    {
        "pad_operands",  # a masked load costs nothing
        "trim_windows",
        "relayout_operands",  # tensor cores take operands either way
        "transform_windows",
        "split_softmax",
        "split_reductions",
        "cut_reductions",
    }
)
"""Passes that are left out."""

ATTENTION = (64, 64)
"""Queries and keys of an attention's tile; of tiles that are masked as a whole nothing is done."""

LEAST_WORK = 1 << 18
"""Fewest terms of all results for which a reduction is cut: less takes no longer than a second
kernel takes to start."""

LEAST_DEPTH = 512
"""Fewest terms of each result in a part."""

RESULTS = 1024
"""Results that a program makes of a reduction that is no product."""

SIDE = 64
"""About the rows, and the columns, of a product's tile."""


def prepare_for_gpu(program: Program, target: GpuTarget) -> PipelineResult:
    """Run the passes."""
    options = PassOptions(disabled=NOT_FOR_GPUS, mask_tile=ATTENTION)
    result = run_pipeline(program, PassContext(options=options))
    main, ctx = result.main, PassContext(target=target)
    own_passes = (
        count_keys_as_one, merge_attention, cut_for_programs, absorb_epilogues, cut_keys,
        read_pages_in_place,
    )  # fmt: skip
    for own in own_passes:
        main = run_pass(main, own, ctx)
    return replace(result, main=main)


def cut_for_programs(program: Program, ctx: PassContext) -> Program:
    """Cut long reductions of few results into parts, so that all processors have work.

    Rewrite and legality: as ``cut_reductions``.
    """
    target = ctx.target
    assert isinstance(target, GpuTarget)
    return cut_where(program, ctx, lambda s, work: _parts(s, work, target.processors))


def _parts(s: Statement, work: Work, processors: int) -> int:
    """Parts that give every processor about two programs."""
    assert s.reduction is not None
    if work.results * work.terms < LEAST_WORK:
        return 1
    programs = -(-work.results // RESULTS)
    roles = contraction_roles(s)
    if roles is not None:
        free = [work.extents[n] for n in s.domain.names if n not in s.reduction.indices]
        columns = max(free, default=1)
        programs = -(-columns // SIDE) * -(-(work.results // columns) // SIDE)
    elif work.results > 1:
        # A row is a program's, or several rows are.
        programs = max(programs, min(work.results, work.results * work.terms // RESULTS))
    return min(2 * processors // max(1, programs), work.terms // LEAST_DEPTH)


def gpu_kernels(main: Program, target: GpuTarget) -> list[FusedKernel | Extern]:
    """The kernels of a prepared Program, in running order and in canonical names."""
    partition = partition_for_gpu(main, l2_bytes=target.l2_bytes, processors=target.processors)
    return [p if isinstance(p, Extern) else canonicalize_kernel(p)[0] for p in partition.parts]
