"""Tiles of columns, transposed tiles, scans in turns: proved, and as the interpreter has them."""

from __future__ import annotations

import pytest

from nestor.codegen.llvm import emit_kernel
from nestor.ir.parser import parse_program
from nestor.ir.program import Program
from nestor.ir.schedule import Schedule, Unroll, Vectorize
from nestor.passes.default_schedule import default_schedule
from nestor.passes.fusion import FusedKernel, partition_program
from nestor.passes.nest import apply_schedule
from nestor.passes.polyhedral import check_nest
from nestor.passes.register_tile import VectorUnit
from nestor.target.cpu import parse_target
from tests.helpers.nests import LEVELS, check_nest_native

SUM = """
program total {SYMBOLS}{
  input x: TYPE[{A}, {B}, {C}]
  output y: TYPE[{KEPT}]

  statement S over { 0 <= i < {A}, 0 <= j < {B}, 0 <= k < {C} }
    reduce MONOID(TYPE) over AXIS
    s0 <- x[i, j, k]
    y[AT] = s0
}
"""
SCAN = """
program running {SYMBOLS}{
  input x: TYPE[{A}, {B}]
  output y: TYPE[{A}, {B}]

  statement S over { 0 <= i < {A}, 0 <= j < {B} }
    scan sum(TYPE) over AXIS
    s0 <- x[i, j]
    y[i, j] = s0
}
"""
SCAN_OF_VALUES = """
program running {SYMBOLS}{
  input x: f32[{A}, {B}]
  input z: f64[{A}, {B}]
  output y: f32[{A}, {B}]

  statement S over { 0 <= i < {A}, 0 <= j < {B} }
    scan max(f64) over j
    s0 <- f64(x[i, j]) * z[i, j]
    y[i, j] = f32(s0) + 1.0:f32
}
"""
TURN = """
program turn {SYMBOLS}{
  input x: TYPE[{A}, {B}, {C}]
  output y: TYPE[{A}, {C}, {B}]

  statement S over { 0 <= i < {A}, 0 <= j < {B}, 0 <= k < {C} }
    y[i, k, j] = x[i, j, k] + x[i, j, k]
}
"""

POINTS = """
program points {SYMBOLS}{
  input x: f32[{A}]
  input z: f32[{A}]
  output y: f32[{A}]

  statement S over { 0 <= i < {A} }
    y[i] = x[i] + exp(z[i])
}
"""


def fill(text: str, sizes: str, **words: str) -> Program:
    """``sizes``: extents of A, B, …; a letter is a symbol."""
    values = dict(zip("ABC", sizes.split(), strict=False))
    for name, value in values.items():
        text = text.replace("{" + name + "}", value)
    for name, value in words.items():
        text = text.replace(name, value)
    symbols = [v for v in values.values() if v.isalpha()]
    listed = f"({', '.join(f'{s}: 1..' for s in symbols)}) " if symbols else ""
    return parse_program(text.replace("{SYMBOLS}", listed))


def total(axis: str, sizes: str, dtype: str = "f32", monoid: str = "sum") -> Program:
    kept = [n for n in "ijk" if n != axis]
    extents = dict(zip("ijk", sizes.split(), strict=True))
    text = SUM.replace("{KEPT}", ", ".join(extents[n] for n in kept))
    return fill(text, sizes, MONOID=monoid, AXIS=axis, AT=", ".join(kept), TYPE=dtype)


PROGRAMS = {
    "sum over rows": total("i", "40 3 70"),
    "sum over rows of any number": total("i", "N 3 70"),
    "sum over rows, few columns": total("i", "40 1 5"),
    "sum over rows, whole tiles": total("i", "20 8 256"),
    "sum over rows, wide": total("i", "17 2 1100"),
    "sum over rows, f64": total("i", "33 2 70", "f64"),
    "largest over rows": total("i", "40 3 70", monoid="max"),
    "sum between": total("j", "3 50 37"),
    "sum between, any number outside": total("j", "N 50 37"),
    "sum along rows": total("k", "3 5 300"),
    "largest along rows": total("k", "3 5 131", monoid="max"),
    "long sum over rows": total("i", "3000 1 20"),
    "scan along rows": fill(SCAN, "7 50", AXIS="j", TYPE="f32"),
    "scan along rows, few steps": fill(SCAN, "9 5", AXIS="j", TYPE="f32"),
    "scan along rows of any number": fill(SCAN, "N 50", AXIS="j", TYPE="f32"),
    "scan along rows of any length": fill(SCAN, "9 N", AXIS="j", TYPE="f32"),
    "scan, rows as lanes": fill(SCAN, "37 54", AXIS="j", TYPE="f32"),
    "scan, rows as lanes, f64": fill(SCAN, "19 33", AXIS="j", TYPE="f64"),
    "scan, rows as lanes, whole tiles": fill(SCAN, "32 64", AXIS="j", TYPE="f32"),
    "scan, one row more": fill(SCAN, "17 16", AXIS="j", TYPE="f32"),
    "scan of what is computed": fill(SCAN_OF_VALUES, "21 40"),
    "scan over rows": fill(SCAN, "40 70", AXIS="i", TYPE="f32"),
    "scan over rows of any number": fill(SCAN, "N 70", AXIS="i", TYPE="f64"),
    "transpose": fill(TURN, "2 32 48", TYPE="f32"),
    "transpose with edges": fill(TURN, "2 35 21", TYPE="f32"),
    "transpose of few rows": fill(TURN, "3 4 50", TYPE="f32"),
    "transpose, f64": fill(TURN, "2 19 37", TYPE="f64"),
    "transpose, outside any number": fill(TURN, "N 19 37", TYPE="f32"),
    "points of any number": fill(POINTS, "N"),
    "transpose, rows and columns of any number": fill(TURN, "2 N M", TYPE="f32"),
    "sum over rows of any length": total("i", "5 1 N"),
    "transpose, rows of any number": fill(TURN, "2 N 37", TYPE="f32"),
}


def scheduled(program: Program, level: str) -> tuple[FusedKernel, Schedule]:
    (part,) = partition_program(program, l2_bytes=1 << 20).parts
    assert isinstance(part, FusedKernel)
    target = parse_target(level)
    return part, default_schedule(part, VectorUnit(target.vector_bits, target.vector_registers))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_schedules_are_proved_and_right(name: str, level: str) -> None:
    part, schedule = scheduled(PROGRAMS[name], level)
    nest = apply_schedule(part.kernel, schedule)
    check_nest(part.kernel, nest)
    for size in (1, 6, 37) if nest.symbols else (0,):
        symbols = {s.name: size for s in nest.symbols}
        check_nest_native(nest, parse_target(level), symbols=symbols, rtol=3e-5, atol=2e-5)


def test_points_of_any_number_run_in_vectors() -> None:
    _, schedule = scheduled(PROGRAMS["points of any number"], LEVELS[0])
    assert any(isinstance(step, Vectorize) for step in schedule)


@pytest.mark.parametrize("name", ["scan, rows as lanes", "scan of what is computed"])
def test_rows_of_a_scan_are_lanes(name: str) -> None:
    part, schedule = scheduled(PROGRAMS[name], LEVELS[0])
    assert any(isinstance(step, Vectorize) and step.loop == "S.i.i" for step in schedule)
    nest = apply_schedule(part.kernel, schedule)
    text = emit_kernel(nest, parse_target(LEVELS[0]), function_name="kernel")
    assert "gather" not in text and "scatter" not in text


@pytest.mark.parametrize("name", ["transpose", "scan along rows"])
def test_the_rule_applies(name: str) -> None:
    _, schedule = scheduled(PROGRAMS[name], LEVELS[0])
    assert any(isinstance(step, Unroll) for step in schedule)
