"""Exact simplification: each rule, and what it must not touch."""

from __future__ import annotations

import math

import pytest

from nestor.ir.affine import affine
from nestor.ir.expr import Cast, Const, Expr, Index, Load, Select, const
from nestor.ir.program import Domain, IndexRange, Program, Symbol, box
from nestor.ir.types import DType
from nestor.passes.context import PassContext
from nestor.passes.simplify import simplify_program
from nestor.passes.simplify_expr import is_lossless, simplify_expr
from tests.helpers.ir_programs import fn, load, op, program, statement, tensor, write
from tests.helpers.pass_checks import run_checked

f32, f64, i64, i32 = DType.f32, DType.f64, DType.i64, DType.i32
X = load("X", "i")
FLAG = load("B", "i", dtype=DType.bool)
RANGES = {"i": (0, 7), "j": (0, 3), "N": (1, None)}


def c(value: float, dtype: DType = f32) -> Const:
    return const(value, dtype)


def simplified(node: Expr) -> Expr:
    return simplify_expr(node, RANGES, {})


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (op("mul", X, c(1)), X),
        (op("mul", c(1), X), X),
        (op("div", X, c(1)), X),
        (op("add", X, c(-0.0)), X),
        (op("sub", X, c(0.0)), X),
        (op("mul", X, c(-1)), fn("neg", X)),
        (op("div", X, c(8)), op("mul", X, c(0.125))),
        (op("pow", X, c(2)), op("mul", X, X)),
        (fn("neg", fn("neg", X)), X),
        (fn("abs", fn("neg", X)), fn("abs", X)),
        (op("add", c(2), c(3)), c(5)),
        (fn("sqrt", c(16)), c(4)),
        (Cast(x=Cast(x=X, dtype=f64), dtype=f32), X),
        (Cast(x=c(2), dtype=f64), c(2, f64)),
        (Select(condition=const(True, DType.bool), a=X, b=c(0)), X),
        (fn("not", op("eq", X, c(0))), op("ne", X, c(0))),
        (op("eq", FLAG, const(True, DType.bool)), FLAG),
        (op("ne", FLAG, const(False, DType.bool)), FLAG),
        (op("eq", FLAG, const(False, DType.bool)), fn("not", FLAG)),
        (op("xor", FLAG, const(True, DType.bool)), fn("not", FLAG)),
        (op("and", FLAG, const(False, DType.bool)), const(False, DType.bool)),
        (op("or", FLAG, const(False, DType.bool)), FLAG),
        (op("add", c(2), X), op("add", X, c(2))),
        (op("lt", c(2), X), op("gt", X, c(2))),
    ],
)
def test_rule(before: Expr, after: Expr) -> None:
    assert simplified(before) == after


@pytest.mark.parametrize(
    "node",
    [
        op("add", X, c(0.0)),  # -0 + 0 is +0
        op("sub", X, c(-0.0)),
        op("mul", X, c(0.0)),  # inf * 0 is nan
        op("sub", X, X),
        op("div", X, X),
        op("div", X, c(3)),
        op("pow", X, c(0.5)),  # sqrt(-inf) is nan, pow is inf
        op("eq", X, X),  # false for nan
        fn("not", op("lt", X, c(0))),  # nan
        Cast(x=Cast(x=X, dtype=DType.f16), dtype=f32),
        Cast(x=Cast(x=load("I", "i", dtype=i64), dtype=i32), dtype=i64),
        op("mul", op("mul", X, c(3)), c(5)),
    ],
)
def test_left_alone(node: Expr) -> None:
    assert simplified(node) is node


def test_index_arithmetic_becomes_affine() -> None:
    i, j = Index(value=affine("i")), Index(value=affine("j"))
    node = op("add", op("mul", i, c(4, i64)), j)
    assert simplified(node) == Index(value=affine("i") * 4 + "j")
    assert simplified(op("floordiv", node, c(4, i64))) == i
    assert simplified(op("mod", node, c(4, i64))) == j


@pytest.mark.parametrize(
    ("condition", "truth"),
    [
        (op("lt", Index(value=affine("j")), c(4, i64)), True),
        (op("ge", Index(value=affine("j")), c(4, i64)), False),
        (op("ne", Index(value=affine("i")), c(-1, i64)), True),
        (op("gt", Index(value=affine("N")), c(0, i64)), True),
    ],
)
def test_comparison_decided_by_ranges(condition: Expr, truth: bool) -> None:
    assert simplified(condition) == const(truth, DType.bool)


def test_comparison_not_decided() -> None:
    node = op("lt", Index(value=affine("i")), c(4, i64))
    assert simplified(node) is node


def test_predicate_implied_and_impossible() -> None:
    held = load("X", "i", predicate=(affine("i"), affine(8) - "i"), other=c(0))
    assert simplified(held) == X
    partly = load("X", "i", predicate=(affine("i"), affine(5) - "i"), other=c(0))
    assert simplified(partly) == load("X", "i", predicate=(affine(5) - "i",), other=c(0))
    never = load("X", "i", predicate=(affine("i") - 8,), other=c(7))
    assert simplified(never) == c(7)


def test_unit_dimensions_are_read_at_zero() -> None:
    node = Load(tensor="T", indices=(affine("i"), affine("j")), dtype=f32)
    shapes = {"T": (affine(1), affine(4))}
    assert simplify_expr(node, RANGES, shapes) == load("T", 0, "j")


def test_lossless_casts() -> None:
    assert is_lossless(DType.f16, f32) and is_lossless(DType.bf16, f32) and is_lossless(f32, f64)
    assert is_lossless(DType.i8, DType.f16) and is_lossless(i32, f64)
    assert is_lossless(DType.u8, DType.i16) and is_lossless(DType.bool, DType.bf16)
    assert not is_lossless(i32, f32) and not is_lossless(i64, f64)
    assert not is_lossless(DType.bf16, DType.f16) and not is_lossless(DType.f16, DType.bf16)
    assert not is_lossless(DType.i8, DType.u8) and not is_lossless(f32, i64)


def _pointwise(element: Expr, domain: Domain | None = None) -> Program:
    return program(
        "p",
        [tensor("X", 8), tensor("Y", 8, role="output")],
        statement("S", domain or box(i=8), write("Y", "i"), element),
    )


@pytest.mark.parametrize(
    "element",
    [
        op("add", op("mul", X, c(1)), c(-0.0)),
        op("sub", op("div", X, c(-4)), fn("neg", X)),
        op("pow", fn("neg", fn("abs", fn("neg", X))), c(2)),
        Select(condition=fn("not", op("ne", X, c(1))), a=X, b=op("add", X, c(0.0))),
        op("min", op("max", X, X), c(math.inf)),
        Cast(x=Cast(x=X, dtype=f64), dtype=f32),
        load("X", (affine("i") * 4 + 3) // 4, predicate=(affine("i"), 6 - affine("i")), other=c(2)),
    ],
)
def test_results_are_equal_bit_by_bit(element: Expr) -> None:
    run_checked(simplify_program, _pointwise(element), special=True)


def test_cube_is_two_products() -> None:
    run_checked(simplify_program, _pointwise(op("pow", X, c(3))), tolerance=2e-7)


def test_domain_constraints_implied_by_ranges_go() -> None:
    domain = Domain(ranges=box(i=8).ranges, constraints=(affine("i") + 1,))
    after = run_checked(simplify_program, _pointwise(X, domain))
    assert after.statements[0].domain.constraints == ()


def test_empty_domain_is_left_alone() -> None:
    empty = Domain(ranges=(IndexRange(name="i", lower=affine(0), upper=affine(0)),))
    before = _pointwise(op("mul", X, c(1)), empty)
    assert simplify_program(before, PassContext()) is before


def test_symbols_have_ranges() -> None:
    before = program(
        "p",
        [tensor("X", "N"), tensor("Y", "N", role="output")],
        statement(
            "S",
            box(i="N"),
            write("Y", "i"),
            load("X", "i", predicate=(affine("N") - 1,), other=c(0)),
        ),
        symbols=(Symbol(name="N"),),
    )
    after = run_checked(simplify_program, before, symbols={"N": 5})
    assert after.statements[0].elements[0] == X
