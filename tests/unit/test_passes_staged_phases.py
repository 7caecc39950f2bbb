"""Several statements that fill one output: its staging, and the undoing of it."""

from __future__ import annotations

from dataclasses import replace

from nestor.ir.parser import parse_program
from nestor.ir.program import Program
from nestor.passes.context import PassContext
from nestor.passes.layout_choice import assign_layouts, write_outputs_directly
from nestor.passes.layouts import stage_outputs
from tests.helpers.pass_checks import run_checked

PHASES = """program phases {
  input X: f32[1, 9, 7, 7]
  parameter W: f32[10, 9, 2]
  parameter V: f32[10, 9, 2]
  output Y: f32[1, 10, 7, 12]
  output Z: f32[1, 10, 7]

  at 0: statement even over { 0 <= o < 10, 0 <= y < 7, 0 <= x < 6, 0 <= c < 9, 0 <= q < 2 }
    reduce sum(f32) over c, q
    s0 <- X[0, c, y, q + x] * W[o, c, q]
    Y[0, o, y, 2*x] = s0
  at FIRST: statement seen over { 0 <= o < 10, 0 <= y < 7 }
    Z[0, o, y] = Y[0, o, y, 0] * 2.0:f32
  at SECOND: statement odd over { 0 <= o < 10, 0 <= y < 7, 0 <= x < 6, 0 <= c < 9, 0 <= q < 2 }
    reduce sum(f32) over c, q
    s0 <- X[0, c, y, q + x] * V[o, c, q]
    Y[0, o, y, 2*x + 1] = s0
}
"""


def phases(*, seen_between: bool) -> Program:
    first, second = ("1", "2") if seen_between else ("2", "1")
    return parse_program(PHASES.replace("FIRST", first).replace("SECOND", second))


def test_phases_of_an_output_are_staged_together() -> None:
    staged = run_checked(stage_outputs, phases(seen_between=False), tolerance=1e-5)
    names = [s.name for s in sorted(staged.statements, key=lambda s: s.order)]
    assert names == ["even", "odd", "Y_copy", "seen"]
    layout = run_checked(assign_layouts, staged, tolerance=1e-5).tensor("Y_staged").layout
    assert layout is not None and str(layout.physical[-1]) == "d1"


def test_an_output_that_is_read_before_it_is_whole_stays() -> None:
    before = phases(seen_between=True)
    assert stage_outputs(before, PassContext()) is before


def test_a_temp_of_several_writers_in_the_output_s_layout_goes() -> None:
    before = phases(seen_between=False)
    kept = [s for s in before.statements if s.name != "seen"]
    alone = replace(
        before,
        statements=tuple(kept),
        tensors=tuple(t for t in before.tensors if t.name != "Z"),
    )
    after = run_checked(write_outputs_directly, stage_outputs(alone, PassContext()), tolerance=1e-5)
    assert sorted(s.name for s in after.statements) == ["even", "odd"]
    assert {w.tensor for s in after.statements for w in s.writes} == {"Y"}
