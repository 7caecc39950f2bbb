"""The criterion of correctness can fail, and fails where it should."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.criterion import FEW_ELEMENTS, eager_errors, judge

EXACT = np.linspace(-1.0, 1.0, 101)
EAGER = (EXACT + 1e-6).astype(np.float32)


def test_eager_itself_is_correct() -> None:
    verdict = judge([EAGER], [EAGER], [EXACT])
    assert verdict.correct
    assert verdict.error == verdict.eager_error > 0


@pytest.mark.parametrize(("error", "correct"), [(3.5e-6, True), (4.5e-6, False)])
def test_four_times_eagers_error_is_the_limit(error: float, correct: bool) -> None:
    got = EXACT.astype(np.float32)
    got[7] += np.float32(error)
    verdict = judge(got, EAGER, EXACT)
    assert verdict.correct == correct
    assert bool(verdict.reason) != correct


def test_four_units_in_the_last_place_pass_where_eager_is_exact() -> None:
    exact = EXACT.astype(np.float32).astype(np.float64)
    ulp = float(np.spacing(np.float32(1.0)))
    for factor, correct in ((3.9, True), (6.0, False)):
        got = exact.astype(np.float32)
        got[50] += np.float32(factor * ulp)
        assert judge(got, exact.astype(np.float32), exact).correct == correct


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_stray_special_value_is_wrong(value: float) -> None:
    got = EAGER.copy()
    got[3] = value
    assert not judge(got, EAGER, EXACT).correct


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_special_values_must_be_the_references(value: float) -> None:
    exact, eager = EXACT.copy(), EAGER.copy()
    exact[3] = eager[3] = value
    assert judge(eager, eager, exact).correct
    wrong = eager.copy()
    wrong[3] = 1.0
    assert not judge(wrong, eager, exact).correct
    if np.isinf(value):
        wrong[3] = -value
        assert not judge(wrong, eager, exact).correct


@pytest.mark.parametrize(
    ("got", "reason"),
    [
        ([EAGER, EAGER], "2 outputs, eager has 1"),
        ([EAGER[:-1]], "output 0: shape"),
        ([EAGER.astype(np.float64)], "output 0: dtype float64, eager has float32"),
    ],
)
def test_structure_shape_and_dtype_are_eagers(got: list[np.ndarray], reason: str) -> None:
    verdict = judge(got, [EAGER], [EXACT])
    assert not verdict.correct
    assert reason in verdict.reason


def test_integers_must_be_equal() -> None:
    numbers = torch.arange(5)
    assert judge(numbers, numbers, numbers).correct
    verdict = judge(torch.tensor([0, 1, 2, 3, 5]), numbers, numbers)
    assert "1 of 5 elements differ" in verdict.reason


def test_nested_outputs_and_empty_ones() -> None:
    nested = (EAGER, {"h": (np.zeros((0, 3), np.float32), EAGER)})
    exact = (EXACT, {"h": (np.zeros((0, 3)), EXACT)})
    assert judge(nested, nested, exact).correct


def test_a_single_number_is_judged_by_eagers_error_at_several_inputs() -> None:
    exact = [np.array([0.3]), EXACT]
    lucky = [np.array([0.3], dtype=np.float32), EAGER]
    other = [np.array([0.3 + 1e-6], dtype=np.float32), EAGER]
    got = [np.array([0.3 + 3e-6], dtype=np.float32), EAGER]
    usual = eager_errors([(lucky, exact), (other, exact)])
    assert usual[0] == pytest.approx(1e-6, rel=0.1)
    assert not judge(got, lucky, exact).correct
    assert judge(got, lucky, exact, usual_errors=usual).correct
    got[0] += np.float32(2e-6)
    assert not judge(got, lucky, exact, usual_errors=usual).correct


def test_a_long_output_is_judged_by_its_own_error_alone() -> None:
    assert EXACT.size >= FEW_ELEMENTS
    got = (EXACT + 9e-6).astype(np.float32)
    assert not judge(got, EAGER, EXACT, usual_errors=[1.0]).correct
