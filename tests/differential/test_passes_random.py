"""Random Programs mean the same before and after each pass and the whole pipeline."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from nestor.ir.program import Program
from nestor.passes.common_subexpressions import merge_common_subexpressions
from nestor.passes.context import PassContext
from nestor.passes.dead_code import remove_dead_code
from nestor.passes.delinearize import delinearize_indices
from nestor.passes.fold_constants import outline_weight_expressions
from nestor.passes.fold_scales import fold_scales
from nestor.passes.inline import inline_producers
from nestor.passes.layout_choice import assign_layouts
from nestor.passes.layouts import stage_outputs
from nestor.passes.linearize import merge_summed_dimensions
from nestor.passes.materialize import pad_operands
from nestor.passes.pipeline import Pass, run_pipeline
from nestor.passes.read_parts import read_parts
from nestor.passes.redirect import redirect_writes
from nestor.passes.relayout import relayout_operands
from nestor.passes.simplify import simplify_program
from nestor.passes.softmax import defer_divisions, share_expensive_elements
from nestor.passes.weight_copies import plain_weights
from tests.helpers import ir_programs
from tests.helpers.pass_checks import assert_same_pipeline, assert_same_results
from tests.helpers.pass_programs import programs

PASSES = [
    defer_divisions,
    share_expensive_elements,
    merge_summed_dimensions,
    fold_scales,
    plain_weights,
    outline_weight_expressions,
    pad_operands,
    stage_outputs,
    assign_layouts,
    relayout_operands,
    simplify_program,
    remove_dead_code,
    merge_common_subexpressions,
    delinearize_indices,
    redirect_writes,
    read_parts,
    inline_producers,
]
relaxed = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.parametrize("run", PASSES, ids=lambda f: f.__name__)
@relaxed
@given(program=programs())
def test_pass(run: Pass, program: Program) -> None:
    after = run(program, PassContext())
    # Sums may be taken in another order, and scales reassociated.
    assert_same_results(program, after, seeds=1, tolerance=5e-5)


@settings(relaxed, max_examples=200)
@given(program=programs())
def test_whole_pipeline(program: Program) -> None:
    result = run_pipeline(program, PassContext())
    assert_same_pipeline(program, result, seeds=1, tolerance=1e-4)


@pytest.mark.parametrize("name", sorted(ir_programs.ALL))
def test_whole_pipeline_on_known_programs(name: str) -> None:
    program = ir_programs.ALL[name]()
    result = run_pipeline(program, PassContext())
    assert_same_pipeline(program, result, tolerance=1e-5)
