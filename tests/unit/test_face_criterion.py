"""The criterion of correctness can fail, and fails where it should."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.criterion import LEAST_ELEMENTS, inputs_per_sample, judge, stack_outputs

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


def test_a_sample_of_single_numbers_takes_several_inputs() -> None:
    number = np.zeros((1, 1), np.float32)
    assert inputs_per_sample([number, EAGER]) == LEAST_ELEMENTS
    assert inputs_per_sample([np.zeros(LEAST_ELEMENTS // 3, np.float32)]) == 4
    assert inputs_per_sample([EAGER]) == 1
    # Whole numbers are compared exactly, so one input says enough.
    assert inputs_per_sample([np.zeros(1, np.int64), np.zeros((0, 3), np.float32)]) == 1


def test_both_sides_are_judged_over_the_same_inputs() -> None:
    """Where eager is right by luck at one input, its error elsewhere counts, and so does ours."""
    exact = [[np.array([x]), EXACT] for x in (0.3, 0.4)]
    eager = [[np.array([x], np.float32), EAGER] for x in (0.3, 0.4 + 1e-6)]
    sample, reference = stack_outputs(eager), stack_outputs(exact)
    assert [a.shape for a in sample] == [(2, 1), (2, 101)]
    for first, second, correct in ((3e-6, 0.0, True), (0.0, 3e-6, True), (5e-6, 0.0, False)):
        got = [[np.array([x], np.float32), EAGER] for x in (0.3 + first, 0.4 + second)]
        assert judge(stack_outputs(got), sample, reference).correct == correct
    assert not judge([np.array([0.3 + 3e-6], np.float32), EAGER], eager[0], exact[0]).correct


def test_outputs_of_different_shapes_are_no_sample() -> None:
    with pytest.raises(ValueError, match="shape"):
        stack_outputs([[EAGER], [EAGER[:-1]]])
    with pytest.raises(ValueError, match="zip"):
        stack_outputs([[EAGER], [EAGER, EAGER]])
