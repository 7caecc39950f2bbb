"""Contractions that stream a concatenation: cut at its seams, parts read where they are."""

from __future__ import annotations

import numpy as np
import pytest

from nestor.ir.interpreter import run_program
from nestor.ir.parser import parse_program
from nestor.ir.printer import print_program
from nestor.ir.program import Program
from nestor.ir.verifier import verify_program
from nestor.passes.context import PassContext
from nestor.passes.dead_code import remove_dead_code
from nestor.passes.inline import inline_producers
from nestor.passes.read_parts import read_parts
from nestor.passes.simplify import simplify_program

DECODE = """
program decode {
  input A: f32[2, LONG, 4]
  input B: f32[2, SHORT, 4]
  input Q: f32[2, QUERIES, 4]
  input W: f32[2, QUERIES, TOTAL]
  temp T: f32[2, TOTAL, 4]
  output S: f32[2, QUERIES, TOTAL]
  output R: f32[2, QUERIES, 4]

  statement P over { 0 <= i < 2, 0 <= j < LONG, 0 <= d < 4 }
    T[i, j, d] = A[i, j, d]
  statement N over { 0 <= i < 2, 0 <= j < SHORT, 0 <= d < 4 }
    T[i, j + LONG, d] = NEW
  statement Scores over { 0 <= i < 2, 0 <= q < QUERIES, 0 <= j < TOTAL, 0 <= d < 4 }
    reduce sum(f32) over d
    s0 <- Q[i, q, d] * T[i, j, d]
    S[i, q, j] = s0 * 0.5:f32
  statement Mix over { 0 <= i < 2, 0 <= q < QUERIES, 0 <= d < 4, 0 <= j < TOTAL }
    reduce sum(f32) over j
    s0 <- W[i, q, j] * T[i, j, d]
    R[i, q, d] = abs(s0) + s0
}
"""


def decode(long: int = 9, short: int = 1, queries: int = 1, new: str = "B[i, j, d]") -> Program:
    values = {"LONG": long, "SHORT": short, "QUERIES": queries, "TOTAL": long + short, "NEW": new}
    text = DECODE
    for name, value in values.items():
        text = text.replace(name, str(value))
    return parse_program(text)


def parts(program: Program) -> Program:
    """The program after the pass, and after those that take its loads to where parts are."""
    result = program
    for run in (simplify_program, read_parts, inline_producers, remove_dead_code):
        result = run(result, PassContext())
        verify_program(result)
    return result


def check(program: Program, result: Program) -> None:
    """Both give the same numbers."""
    rng = np.random.default_rng(0)
    inputs = {
        t.name: rng.standard_normal([e.const for e in t.shape]).astype(np.float32)
        for t in program.by_role("input")
    }
    wanted, got = run_program(program, inputs), run_program(result, inputs)
    for name, value in wanted.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("long", "short"), [(9, 1), (5, 4), (1, 6), (7, 7)])
@pytest.mark.parametrize("queries", [1, 3, 8])
def test_nothing_is_copied(long: int, short: int, queries: int) -> None:
    program = decode(long, short, queries)
    result = parts(program)
    assert "T" not in {t.name for t in result.tensors}
    check(program, result)


def test_a_single_term_is_added_where_the_sum_is_stored() -> None:
    result = parts(decode())
    assert "s0 + W[i, 0, 9] * B[i, 0, d]" in print_program(result)
    assert len(result.statements) == 3


def test_a_computed_part_has_a_tensor_of_its_own() -> None:
    program = decode(new="B[i, j, d] * B[i, j, d]")
    result = parts(program)
    shapes = {t.name: tuple(e.const for e in t.shape) for t in result.by_role("temp")}
    assert shapes == {"T_part": (2, 1, 4)}
    check(program, result)


def test_who_reads_a_single_part_reads_it_there() -> None:
    text = print_program(decode(new="B[i, j, d] * B[i, j, d]"))
    text = text.replace("  output R:", "  output O: f32[2, 4]\n  output R:")
    reader = "  statement Out over { 0 <= i < 2, 0 <= d < 4 }\n    O[i, d] = T[i, 9, d]\n"
    program = parse_program(text[: text.rindex("}")] + reader + "}\n")
    result = parts(program)
    assert "T" not in {t.name for t in result.tensors}
    check(program, result)


def changed(before: str, after: str) -> Program:
    text = print_program(decode())
    assert before in text
    return parse_program(text.replace(before, after))


@pytest.mark.parametrize(
    "program",
    [
        decode(queries=9),  # the keys are read often
        decode(long=1, short=1),  # nothing but single terms
        decode(long=2, short=7, new="B[i, j, d] * B[i, j, d]"),  # most of it is computed
        changed("temp T", "output T"),
        # Beside a reader that reads all of it.
        parse_program(
            print_program(decode())
            .replace("output R", "output M: f32[2, 10, 4]\n  output R")
            .replace(
                "  statement Mix",
                "  statement All over { 0 <= i < 2, 0 <= j < 10, 0 <= d < 4 }\n"
                "    M[i, j, d] = abs(T[i, j, d])\n  statement Mix",
            )
        ),
        changed("W[i, q, j] * T[i, j, d]", "W[i, q, j] * T[i, 9 - j, d]"),
        changed("W[i, q, j] * T[i, j, d]", "W[i, q, j] * T[i, j, d] * T[i, 9 - j, d]"),
    ],
)
def test_others_stay(program: Program) -> None:
    assert read_parts(program, PassContext()) is program


def test_parts_that_do_not_join_stay() -> None:
    text = print_program(decode())
    # Two statements that fill the same places: the later one wins.
    overlapping = text.replace("0 <= j < 9, 0 <= d", "0 <= j < 10, 0 <= d").replace(
        "A: f32[2, 9, 4]", "A: f32[2, 10, 4]"
    )
    program = parse_program(overlapping)
    assert read_parts(program, PassContext()) is program


def test_three_parts() -> None:
    text = print_program(decode())
    text = text.replace("input Q", "input C: f32[2, 3, 4]\n  input Q")
    text = text.replace("[2, 10, 4]", "[2, 13, 4]").replace("[2, 1, 10]", "[2, 1, 13]")
    text = text.replace("0 <= j < 10", "0 <= j < 13")
    third = (
        "  statement Third over { 0 <= i < 2, 0 <= j < 3, 0 <= d < 4 }\n"
        "    T[i, j + 10, d] = C[i, j, d]\n  statement Scores"
    )
    program = parse_program(text.replace("  statement Scores", third))
    result = parts(program)
    assert "T" not in {t.name for t in result.tensors}
    check(program, result)
