"""Deferred divisions and shared exponentials: when and when not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nestor.ir.expr import Expr, Select, binary, const, unary
from nestor.ir.monoid import sum_of
from nestor.ir.program import Program, Statement, Symbol, box
from nestor.ir.types import DType
from nestor.passes.context import PassContext
from nestor.passes.softmax import defer_divisions, share_expensive_elements
from tests.helpers.ir_programs import fn, load, op, program, reduce, statement, tensor, write
from tests.helpers.pass_checks import run_checked

f32 = DType.f32
S = load("S", "q", "t")
L = load("L", "q")


def weighted(
    element: Expr, *, rows: int | str = 4, square: bool = False, reads: Expr | None = None
) -> Program:
    """``P[q,t] = element; O[q,d] = Σ_t P·V``; ``L`` is positive, with one zero."""
    operand = reads or load("P", "q", "t")
    return program(
        "weighted",
        [
            tensor("S", rows, 6),
            tensor("L", rows),
            tensor("M", rows),
            tensor("K", 6),
            tensor("V", 6, 5),
            tensor("P", rows, 6, role="temp"),
            tensor("O", rows, 5, role="output"),
        ],
        statement("weights", box(q=rows, t=6), write("P", "q", "t"), element, order=(0,)),
        statement(
            "mix",
            box(q=rows, d=5, t=6),
            write("O", "q", "d"),
            op("mul", operand, operand if square else load("V", "t", "d")),
            reduction=reduce(sum_of(f32), "t"),
            order=(1,),
        ),
        symbols=(Symbol(name=rows),) if isinstance(rows, str) else (),
    )


def guarded(numerator: Expr, divisor: Expr, *, reciprocal: bool = False) -> Select:
    zero = const(0, f32)
    quotient = binary("div", numerator, divisor)
    if reciprocal:
        quotient = binary("mul", numerator, unary("reciprocal", divisor))
    return Select(condition=binary("eq", divisor, zero), a=zero, b=quotient)


@pytest.mark.parametrize("rows", [4, "N"])
@pytest.mark.parametrize(
    "element",
    [
        op("div", fn("exp", S), L),
        guarded(fn("exp", S), L),
        op("div", S, L),
        guarded(fn("exp", S), L, reciprocal=True),
    ],
)
def test_division_moves(element: Expr, rows: int | str) -> None:
    symbols = {"N": 3} if rows == "N" else None
    before = weighted(element, rows=rows)
    after = run_checked(defer_divisions, before, tolerance=1e-5, symbols=symbols)
    assert after is not before


@pytest.mark.parametrize(
    "element",
    [
        op("div", S, load("K", "t")),  # the divisor varies over the sum
        op("div", const(1, f32), L),  # nothing varies over the sum
        op("mul", S, L),
        op("mul", fn("reciprocal", L), S),  # the other factor is the divisor's
        op("mul", S, fn("reciprocal", load("K", "t"))),
        Select(condition=binary("eq", L, const(1, f32)), a=const(0, f32), b=binary("div", S, L)),
        Select(condition=binary("eq", L, const(0, f32)), a=const(1, f32), b=binary("div", S, L)),
        Select(
            condition=binary("eq", L, const(0, f32)),
            a=const(0, f32),
            b=binary("div", S, load("K", "t")),
        ),
    ],
)
def test_division_stays(element: Expr) -> None:
    before = weighted(element)
    assert run_checked(defer_divisions, before, tolerance=1e-5) is before


def test_guard_on_another_divisor_is_no_guard() -> None:
    zero = const(0, f32)
    quotient = binary("div", S, load("M", "q"))
    before = weighted(Select(condition=binary("eq", L, zero), a=zero, b=quotient))
    assert run_checked(defer_divisions, before, tolerance=1e-5) is before


def test_product_of_two_rows_is_left_alone() -> None:
    """Each factor carries its own division."""
    before = program(
        "gram",
        [
            tensor("S", 4, 6),
            tensor("L", 4),
            tensor("P", 4, 6, role="temp"),
            tensor("O", 4, 4, role="output"),
        ],
        statement("weights", box(q=4, t=6), write("P", "q", "t"), op("div", S, L), order=(0,)),
        statement(
            "gram",
            box(q=4, r=4, t=6),
            write("O", "q", "r"),
            op("mul", load("P", "q", "t"), load("P", "r", "t")),
            reduction=reduce(sum_of(f32), "t"),
            order=(1,),
        ),
    )
    assert run_checked(defer_divisions, before, tolerance=1e-5) is before


def test_square_of_the_quotient_is_left_alone() -> None:
    before = weighted(op("div", S, L), square=True)
    assert run_checked(defer_divisions, before, tolerance=1e-5) is before


def test_second_reader_keeps_the_division() -> None:
    before = weighted(op("div", S, L))
    other = statement("other", box(q=4, t=6), write("Z", "q", "t"), load("P", "q", "t"), order=(2,))
    before = replace(
        before,
        statements=(*before.statements, other),
        tensors=(*before.tensors, tensor("Z", 4, 6, role="output")),
    )
    assert run_checked(defer_divisions, before) is before


def softmax_sums(second: Expr, *, columns: int = 6) -> Program:
    """``l[q] = Σ_t exp(S - m); P[q,t] = second``."""
    exponential = fn("exp", op("sub", load("S", "q", "k"), load("m", "q")))
    return program(
        "sums",
        [
            tensor("S", 4, 6),
            tensor("m", 4),
            tensor("l", 4, role="output"),
            tensor("P", 4, columns, role="temp"),
            tensor("Y", 4, columns, role="output"),
        ],
        statement(
            "sum",
            box(q=4, k=6),
            write("l", "q"),
            exponential,
            reduction=reduce(sum_of(f32), "k"),
            order=(0,),
        ),
        statement("P", box(q=4, t=columns), write("P", "q", "t"), second, order=(1,)),
        statement(
            "Y",
            box(q=4, t=columns),
            write("Y", "q", "t"),
            op("mul", load("P", "q", "t"), const(2, f32)),
            order=(2,),
        ),
    )


def test_exponential_is_shared() -> None:
    before = softmax_sums(fn("exp", op("sub", S, load("m", "q"))))
    after = run_checked(share_expensive_elements, before, tolerance=1e-6)
    assert [x.name for x in after.statements] == ["P", "sum", "Y"]
    total = after.statements[1]
    assert isinstance(total, Statement) and total.elements[0] == load("P", "q", "k")


@pytest.mark.parametrize(
    ("second", "columns"),
    [
        (fn("exp", op("sub", load("m", "q"), S)), 6),
        (fn("exp", op("sub", S, load("m", "q"))), 5),  # not the same domain
        (op("sub", S, load("m", "q")), 6),  # cheap
    ],
)
def test_other_elements_are_not_shared(second: Expr, columns: int) -> None:
    before = softmax_sums(second, columns=columns)
    assert run_checked(share_expensive_elements, before) is before


def test_element_that_needs_the_sum_is_not_moved_before_it() -> None:
    """``P`` reads ``l``, which the sum makes."""
    element = fn("exp", op("sub", load("S", "q", "k"), load("c", "q")))
    before = program(
        "p",
        [
            tensor("S", 4, 6),
            tensor("c", 4, role="inout"),
            tensor("l", 4, role="output"),
            tensor("P", 4, 6, role="temp"),
            tensor("Y", 4, 6, role="output"),
        ],
        statement(
            "sum",
            box(q=4, k=6),
            write("l", "q"),
            element,
            reduction=reduce(sum_of(f32), "k"),
            order=(0,),
        ),
        statement("W", box(q=4), write("c", "q"), const(1, f32), order=(1,)),
        statement("P", box(q=4, k=6), write("P", "q", "k"), element, order=(2,)),
        statement("Y", box(q=4, k=6), write("Y", "q", "k"), load("P", "q", "k"), order=(3,)),
    )
    assert share_expensive_elements(before, PassContext()) is before
