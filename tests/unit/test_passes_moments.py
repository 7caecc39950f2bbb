"""Welford reductions become two sums: when and when not."""

from __future__ import annotations

import numpy as np
import pytest

from nestor.ir.expr import const
from nestor.ir.interpreter import run_program
from nestor.ir.monoid import welford_of
from nestor.ir.program import Program, Symbol, box
from nestor.ir.types import DType
from nestor.passes.moments import split_moments
from tests.helpers.ir_programs import (
    fn,
    layer_norm,
    load,
    op,
    program,
    reduce,
    s,
    statement,
    tensor,
    write,
)
from tests.helpers.pass_checks import run_checked

f32 = DType.f32


def variance(cols: int | str, *finals, weight=None, scan: bool = False) -> Program:  # type: ignore[no-untyped-def]
    names = [f"Y{k}" for k in range(len(finals))]
    symbols = (Symbol(name=cols),) if isinstance(cols, str) else ()
    lead = ("i", "j") if scan else ("i",)
    shape = (3, cols) if scan else (3,)
    return program(
        "variance",
        [tensor("X", 3, cols), *(tensor(n, *shape, role="output") for n in names)],
        statement(
            "S",
            box(i=3, j=cols),
            tuple(write(n, *lead) for n in names),
            load("X", "i", "j"),
            const(0, f32),
            const(1, f32) if weight is None else weight,
            reduction=reduce(welford_of(f32), "j", final=finals, scan=scan),
        ),
        symbols=symbols,
    )


def test_layer_norm() -> None:
    after = run_checked(split_moments, layer_norm(), tolerance=1e-5)
    assert len(after.statements) == 3
    assert "mean_mean" not in {t.name for t in after.tensors}


@pytest.mark.parametrize(
    "finals",
    [
        (s(0),),
        (s(1),),
        (op("div", s(1), s(2)),),
        (op("add", s(0), s(1)), s(0)),
        (fn("neg", s(0)), op("div", s(1), s(2)), s(2)),
    ],
)
@pytest.mark.parametrize("cols", [1, 7, "N"])
def test_finals(finals, cols: int | str) -> None:  # type: ignore[no-untyped-def]
    before = variance(cols, *finals)
    symbols = {"N": 5} if cols == "N" else None
    after = run_checked(split_moments, before, tolerance=1e-5, symbols=symbols)
    assert after is not before


def test_large_offset_is_accurate() -> None:
    """Deviations from the mean: no cancellation, unlike sums of squares."""
    before = variance(64, op("div", s(1), s(2)))
    after = run_checked(split_moments, before, tolerance=1e-5)
    x = (np.random.default_rng(0).standard_normal((3, 64)) + 1000).astype(np.float32)
    got = run_program(after, {"X": x})["Y0"]
    np.testing.assert_allclose(got, x.astype(np.float64).var(axis=1), rtol=1e-4)


def test_other_weights_and_scans_are_left_alone() -> None:
    weighted = variance(7, s(0), weight=fn("abs", load("X", "i", "j")))
    assert run_checked(split_moments, weighted) is weighted
    running = variance(7, s(0), scan=True)
    assert run_checked(split_moments, running) is running


def test_empty_reduction_is_left_alone() -> None:
    empty = variance(0, s(0))
    assert run_checked(split_moments, empty) is empty
