"""Expensive elements that two statements of a row share: computed once, where that is legal."""

from __future__ import annotations

import numpy as np
import pytest

from nestor.ir.interpreter import run_program
from nestor.ir.parser import parse_program
from nestor.ir.printer import print_program
from nestor.ir.program import Program
from nestor.ir.verifier import verify_program
from nestor.passes.context import PassContext
from nestor.passes.row_elements import keep_row_elements

SOFTMAX = """
program softmax {
  input X: f32[6, COLUMNS]
  temp m: f32[6]
  temp l: f32[6]
  output Y: f32[6, COLUMNS]

  statement M over { 0 <= i < 6, 0 <= j < COLUMNS }
    reduce max(f32) over j
    s0 <- X[i, j]
    m[i] = s0
  statement L over { 0 <= i < 6, 0 <= j < COLUMNS }
    reduce sum(f32) over j
    s0 <- exp(X[i, j] - m[i])
    l[i] = s0
  statement N over { 0 <= p < 6, 0 <= q < COLUMNS }
    Y[p, q] = exp(X[p, READ] - m[p]) / l[p]
}
"""
ALONG_COLUMNS = """
program softmax {
  input X: f32[9, 6]
  temp l: f32[6]
  output Y: f32[9, 6]

  statement L over { 0 <= i < 9, 0 <= j < 6 }
    reduce sum(f32) over i
    s0 <- exp(X[i, j])
    l[j] = s0
  statement N over { 0 <= i < 9, 0 <= j < 6 }
    Y[i, j] = exp(X[i, j]) / l[j]
}
"""


def softmax(columns: int = 9, read: str = "q") -> Program:
    return parse_program(SOFTMAX.replace("COLUMNS", str(columns)).replace("READ", read))


@pytest.mark.parametrize("program", [softmax(), parse_program(ALONG_COLUMNS)])
def test_both_statements_read_the_kept_elements(program: Program) -> None:
    result = keep_row_elements(program, PassContext())
    verify_program(result)
    assert print_program(program).count("exp(") == 2
    assert print_program(result).count("exp(") == 1
    x = np.random.default_rng(0).standard_normal([e.const for e in program.tensors[0].shape])
    arrays = {"X": x.astype(np.float32)}
    want = run_program(program, dict(arrays), {})["Y"]
    got = run_program(result, dict(arrays), {})["Y"]
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    "program",
    [
        softmax(read="-q + 8"),  # another element of the row
        softmax(columns=20000),  # a row that would not stay near
    ],
)
def test_other_elements_and_long_rows_are_left(program: Program) -> None:
    assert keep_row_elements(program, PassContext()) is program
