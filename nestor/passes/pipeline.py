"""The ordered pipeline of Program → Program passes, and its manager."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from nestor.errors import InternalError, IRError
from nestor.ir.printer import print_program
from nestor.ir.program import Program
from nestor.ir.verifier import verify_program
from nestor.passes.common_subexpressions import merge_common_subexpressions
from nestor.passes.context import LogEntry, PassContext, PassOptions
from nestor.passes.cut_reductions import cut_reductions
from nestor.passes.dead_code import remove_dead_code
from nestor.passes.delinearize import delinearize_indices
from nestor.passes.fold_constants import hoist_weight_program, outline_weight_expressions
from nestor.passes.fold_scales import fold_scales
from nestor.passes.grouped_rows import group_rows
from nestor.passes.inline import inline_producers
from nestor.passes.layout_choice import assign_layouts
from nestor.passes.layouts import stage_outputs
from nestor.passes.linearize import merge_summed_dimensions
from nestor.passes.masked_terms import skip_masked_terms
from nestor.passes.materialize import pad_operands
from nestor.passes.moments import split_moments
from nestor.passes.phases import split_phases
from nestor.passes.read_parts import read_parts
from nestor.passes.redirect import redirect_writes
from nestor.passes.relayout import relayout_operands
from nestor.passes.row_elements import keep_row_elements
from nestor.passes.scaled_operands import move_scales
from nestor.passes.simplify import simplify_program
from nestor.passes.softmax import defer_divisions, share_expensive_elements
from nestor.passes.split_reductions import split_reductions
from nestor.passes.split_softmax import split_softmax
from nestor.passes.trim_windows import trim_windows
from nestor.passes.weight_copies import plain_weights
from nestor.passes.winograd import transform_windows

__all__ = ["LogEntry", "PassContext", "PassOptions", "PipelineResult", "run_pipeline"]

Pass = Callable[[Program, PassContext], Program]
Split = Callable[[Program, PassContext], tuple[Program, Program]]

PASSES: tuple[Pass | Split, ...] = (
    simplify_program,
    remove_dead_code,
    split_moments,
    # Ordering: after simplification, so that equal things look equal.
    merge_common_subexpressions,
    # Ordering: before views are inlined: a contraction that reads a merged index through a view
    # would otherwise be split into two reduced indices, where its producer could write it merged.
    redirect_writes,
    inline_producers,
    remove_dead_code,
    # Ordering: after the first round, when contractions read concatenations themselves; before the
    # second, which takes the loads of parts to where they come from.
    read_parts,
    # Ordering: a second round sees single readers where the first one merged several.
    inline_producers,
    remove_dead_code,
    delinearize_indices,
    # Ordering: after that, which cuts the indices of the contractions alone.
    group_rows,
    # Ordering: after the last round of inlining, which would undo it; the division first, which
    # leaves the bare exponential that two statements then share.
    defer_divisions,
    share_expensive_elements,
    # Ordering: after that, which needs no new temp.
    keep_row_elements,
    # Ordering: after views are inlined, which shows what a contraction sums over.
    merge_summed_dimensions,
    # Ordering: after inlining, when one pointwise statement holds all that follows a contraction.
    fold_scales,
    # Ordering: after that, which gives weights their last scale known at compile time.
    move_scales,
    simplify_program,
    # Ordering: after scales are folded, which needs one writer.
    split_phases,
    # Ordering: after scales are folded and phases split, which show plain windows; before the
    # weight program is split off, which takes the weights' transforms in.
    transform_windows,
    # Ordering: after inlining and sharing, when a softmax has the statements that will run.
    skip_masked_terms,
    # Ordering: after that, whose constraints follow into the blocks.
    split_softmax,
    # Ordering: after that, which takes softmaxes between products.
    split_reductions,
    # Ordering: after all that looks for products and sums as they were written.
    cut_reductions,
    # Ordering: before the weight program is split off, which takes the copies in.
    plain_weights,
    # Ordering: after scales are folded, so that what is left of a scale's offset is outlined too.
    outline_weight_expressions,
    merge_common_subexpressions,
    # Ordering: after everything that makes work on weights alone, before layouts: the results are
    # parameters of the main program, which schedules pack.
    hoist_weight_program,
    # Ordering: before layouts, so that padded temps take part in the assignment.
    pad_operands,
    stage_outputs,
    assign_layouts,
    # Ordering: after layouts, which say where channels are lanes.
    trim_windows,
    # Ordering: after layouts, which say which operands have unit stride.
    relayout_operands,
    merge_common_subexpressions,
    remove_dead_code,
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
    """Run one pass and verify what it made.

    Raises: ``InternalError`` if the result breaks a rule of the verifier.
    """
    result = _run(program, run, ctx)[0]
    if result is not program:
        _check(result, run.__name__)
    return result


def _run(program: Program, run: Pass | Split, ctx: PassContext) -> tuple[Program, Program | None]:
    """Run one pass, timed; keep its result's text where the context asks for it."""
    name = run.__name__
    if name in ctx.options.disabled:
        return program, None
    start = time.perf_counter()
    result = run(program, ctx)
    ctx.timings_s[name] = ctx.timings_s.get(name, 0.0) + time.perf_counter() - start
    new, extra = result if isinstance(result, tuple) else (result, None)
    if ctx.debug and new is not program:
        ctx.dumps.append((name, print_program(new)))
    return new, extra


def _check(program: Program, pass_name: str) -> None:
    try:
        verify_program(program)
    except IRError as error:
        raise InternalError(f"the pass '{pass_name}' made an invalid program: {error}") from error


def run_pipeline(program: Program, ctx: PassContext) -> PipelineResult:
    """Run every pass in order, and verify the result.

    Args: program: a verified Program from a frontend. ctx: target, options, log.
    Returns: the program to compile, the program that makes its weights, and the log.
    Raises: ``InternalError`` naming the pass that made an invalid program.
    """
    main, weights = program, Program(name=f"{program.name}_weights")
    for run in PASSES:
        main, extra = _run(main, run, ctx)
        weights = weights if extra is None else extra
    start = time.perf_counter()
    try:
        verify_program(main)
        verify_program(weights)
    except IRError as error:
        _blame(program)
        raise InternalError(f"the passes made an invalid program: {error}") from error
    ctx.timings_s["verify_program"] = time.perf_counter() - start
    return PipelineResult(main, weights, tuple(ctx.log))


def _blame(program: Program) -> None:
    """Run the pipeline again, verifying after each pass: finds the first that went wrong.

    A healthy pipeline verifies once at its end; after each pass it would take as long as all
    passes together.
    """
    ctx = PassContext()
    for run in PASSES:
        program, extra = _run(program, run, ctx)
        for made in (program, extra):
            if made is not None:
                _check(made, run.__name__)
