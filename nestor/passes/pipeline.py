"""The ordered pipeline of Program → Program passes, and its manager."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from nestor.ir.program import Program
from nestor.passes.common_subexpressions import merge_common_subexpressions
from nestor.passes.context import LogEntry, PassContext, PassOptions
from nestor.passes.dead_code import remove_dead_code
from nestor.passes.delinearize import delinearize_indices
from nestor.passes.inline import inline_producers
from nestor.passes.redirect import redirect_writes
from nestor.passes.simplify import simplify_program

__all__ = ["LogEntry", "PassContext", "PassOptions", "PipelineResult", "run_pipeline"]

Pass = Callable[[Program, PassContext], Program]

PASSES: tuple[Pass, ...] = (
    simplify_program,
    remove_dead_code,
    # Ordering: after simplification, so that equal things look equal.
    merge_common_subexpressions,
    # Ordering: before views are inlined: a contraction that reads a merged index through a view
    # would otherwise be split into two reduced indices, where its producer could write it merged.
    redirect_writes,
    inline_producers,
    remove_dead_code,
    # Ordering: a second round sees single readers where the first one merged several.
    inline_producers,
    remove_dead_code,
    delinearize_indices,
    merge_common_subexpressions,
    simplify_program,
)


@dataclass(frozen=True, slots=True)
class PipelineResult:
    """What the pipeline leaves.

    Attributes:
        main: the program to compile.
        weight_program: makes parameters of ``main`` from the model's; run when weights change.
        log: what passes changed and refused.
    """

    main: Program
    weight_program: Program
    log: tuple[LogEntry, ...]


def run_pass(program: Program, run: Pass, ctx: PassContext) -> Program:
    """Run one pass, timed; verify its result and keep its text where the context asks for it."""
    name = run.__name__
    if name in ctx.options.disabled:
        return program
    start = time.perf_counter()
    new = run(program, ctx)
    ctx.timings_s[name] = ctx.timings_s.get(name, 0.0) + time.perf_counter() - start
    return new


def run_pipeline(program: Program, ctx: PassContext) -> PipelineResult:
    """Run every pass in order.

    Args: program: a verified Program from a frontend. ctx: target, options, log.
    Returns: the program to compile, the program that makes its weights, and the log.
    """
    for run in PASSES:
        program = run_pass(program, run, ctx)
    return PipelineResult(program, Program(name=f"{program.name}_weights"), tuple(ctx.log))
