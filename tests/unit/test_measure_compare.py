"""What counts as wrong: mistakes are found, other orders of summation are not."""

from __future__ import annotations

import numpy as np
import pytest

from nestor.autotune.kernel_inputs import Draw, draw_inputs
from nestor.autotune.measure_buffers import (
    CANARY,
    Fenced,
    fetch,
    physical_bytes,
    spoil,
    store,
    to_memory,
)
from nestor.autotune.measure_compare import (
    PERTURBED_RUNS,
    SAFETY,
    Judgement,
    compare_results,
    make_judgement,
    perturb_inputs,
    reduction_terms,
    worst_error,
)
from nestor.ir.affine import affine
from nestor.ir.interpreter import run_program
from nestor.ir.narrow_floats import MEMORY
from nestor.ir.program import Layout, Program
from nestor.ir.types import DType
from nestor.passes.packing import pack_array
from tests.helpers.ir_programs import argmax, half_relu, matmul, softmax, tensor

Arrays = dict[str, np.ndarray]


def judge(made: Program, seed: int = 0) -> tuple[Judgement, Arrays, Arrays]:
    """A judgement with the interpreter as the reference, the inputs and the results."""
    inputs = draw_inputs(made, {}, Draw(seed=seed))
    plain = run_program(made, inputs)
    terms = reduction_terms(made, {})
    moved = [
        run_program(made, perturb_inputs(made, inputs, terms, k)) for k in range(PERTURBED_RUNS)
    ]
    results = made.by_role("output", "inout", "state")
    return make_judgement(results, plain, plain, moved), inputs, plain


def product(a: np.ndarray, b: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Summed one after the other in float32, in the given order."""
    total = np.zeros((a.shape[0], b.shape[1]), np.float32)
    for k in order:
        total = total + np.outer(a[:, k], b[k, :])
    return total


@pytest.mark.parametrize("terms", [7, 300, 3000])
def test_other_orders_of_a_sum_are_right_and_a_missing_term_is_not(terms: int) -> None:
    made = matmul(24, 40, terms)
    judgement, inputs, _ = judge(made)
    a, b = inputs["A"], inputs["B"]
    rng = np.random.default_rng(0)
    orders = [np.arange(terms), np.arange(terms)[::-1], rng.permutation(terms)]
    for order in orders:
        assert compare_results(judgement, {"C": product(a, b, order)}) == ""
    wrong = compare_results(judgement, {"C": product(a, b, np.arange(terms - 1))})
    assert "elements of 'C' are wrong" in wrong


def test_one_wrong_element_is_found_and_named() -> None:
    judgement, _, plain = judge(matmul(24, 40, 30))
    found = plain["C"].copy()
    found[5, 17] *= 1.001
    wrong = compare_results(judgement, {"C": found})
    assert wrong.startswith("1 of 960 elements of 'C' are wrong; first C[5, 17] = ")


def test_an_element_that_nobody_wrote_is_found() -> None:
    judgement, _, plain = judge(matmul(4, 4, 4))
    found = plain["C"].copy()
    found[3, 3] = np.nan
    assert "C[3, 3] = nan" in compare_results(judgement, {"C": found})


def test_nan_and_infinity_agree_with_their_like_only() -> None:
    t = tensor("C", 4, role="output")
    expected = np.array([np.nan, np.inf, -np.inf, 1.0], np.float32)
    judgement = make_judgement((t,), {"C": expected}, {"C": expected}, [{"C": expected}] * 3)
    assert compare_results(judgement, {"C": expected.copy()}) == ""
    for position, value in [(0, 1.0), (1, -np.inf), (2, np.nan), (1, 3e38), (3, np.inf)]:
        found = expected.copy()
        found[position] = value
        assert f"first C[{position}]" in compare_results(judgement, {"C": found})


def test_large_results_are_compared_to_the_last_element() -> None:
    """They are looked at piece by piece."""
    n, m = 3, 33_001
    rng = np.random.default_rng(0)
    expected = rng.standard_normal((n, m)).astype(np.float32)
    moved = [expected * np.float32(1 + 2e-7), expected]
    t = tensor("C", n, m, role="output")
    judgement = make_judgement((t,), {"C": expected}, {"C": expected}, [{"C": x} for x in moved])
    assert judgement.allowed["C"].shape == (n, m)
    whole = np.abs(moved[0].astype(np.float64) - expected)
    usual = np.sqrt(np.mean(whole**2)) / 2
    least = SAFETY * (np.maximum(whole, usual) + 2.0**-23 * np.abs(expected))
    np.testing.assert_allclose(judgement.allowed["C"], least, rtol=1e-9)
    assert compare_results(judgement, {"C": moved[0]}) == ""
    assert worst_error(judgement, {"C": expected}) == 0 < worst_error(judgement, {"C": moved[0]})
    for at in ((0, 0), (1, 0), (2, m - 1)):
        found = expected.copy()
        found[at] += 1
        assert f"1 of {n * m}" in compare_results(judgement, {"C": found})
        assert f"first C[{at[0]}, {at[1]}]" in compare_results(judgement, {"C": found})
        assert worst_error(judgement, {"C": found}) > 1
        # NaN agrees with nothing but NaN.
        judgement.expected["C"][at] = np.nan
        assert compare_results(judgement, {"C": found})
        found[at] = np.nan
        assert compare_results(judgement, {"C": found}) == ""
        judgement.expected["C"][at] = expected[at]


def test_what_does_not_depend_on_rounding_is_exact() -> None:
    t = tensor("C", 3, role="output", dtype=DType.i32)
    expected = np.array([1, 2, 3], np.int32)
    judgement = make_judgement((t,), {"C": expected}, {"C": expected}, [{"C": expected}])
    assert compare_results(judgement, {"C": expected.copy()}) == ""
    assert "1 of 3" in compare_results(judgement, {"C": np.array([1, 2, 4], np.int32)})


def test_softmax_and_narrow_types_forgive_rounding_only() -> None:
    judgement, _, plain = judge(softmax(16, 200))
    name = next(iter(judgement.expected))
    wide = plain[name].astype(np.float64)
    rounded = (
        wide * (1 + 3e-7 * np.sign(np.sin(np.arange(wide.size)).reshape(wide.shape)))
    ).astype(np.float32)
    assert compare_results(judgement, {name: rounded}) == ""
    assert compare_results(judgement, {name: (wide * 1.001).astype(np.float32)})

    made = half_relu(2000)
    judgement, _, plain = judge(made)
    (name,) = judgement.expected
    shifted = np.roll(plain[name], 1)
    assert compare_results(judgement, {name: shifted})


def test_positions_of_maxima_may_differ_where_they_are_close_only() -> None:
    judgement, _, plain = judge(argmax(50, 20))
    names = list(judgement.strays)
    assert names
    found = {n: v.copy() for n, v in plain.items()}
    found[names[0]][:] = (found[names[0]] + 1) % 20
    assert "are wrong" in compare_results(judgement, found)


# ------------------------------------------------------------------------------- buffers


BLOCKED = Layout(
    physical=(affine("d0") // 4, affine("d1"), affine("d0") % 4),
    shape=(affine(4), affine(9), affine(4)),
)


@pytest.mark.parametrize("dtype", list(DType))
def test_layouts_are_those_of_the_packing_pass(dtype: DType) -> None:
    from dataclasses import replace

    t = replace(tensor("W", 14, 9, dtype=dtype), layout=BLOCKED)
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2, (14, 9)).astype(np.float32)
    logical = values if dtype in MEMORY else to_memory(values, dtype)
    view = np.full(physical_bytes(t, {}), 0xEE, np.uint8)
    store(view, t, logical, {})
    packed = pack_array(to_memory(logical, dtype), BLOCKED)
    assert np.array_equal(view, packed.reshape(-1).view(np.uint8))
    assert np.array_equal(fetch(view, t, {}), logical)


@pytest.mark.parametrize("side", ["start", "end"])
@pytest.mark.parametrize("size", [0, 1, 63, 64, 4000, 4096, 10001])
def test_fences_show_every_byte_that_changes(side: str, size: int) -> None:
    fence = Fenced(size, side)  # type: ignore[arg-type]
    assert fence.address % 64 == 0
    fence.view[...] = 1
    assert fence.damage() == ""
    fence._before[-1:] = 0
    assert side == "start" or "bytes -1 to -1 before its start" in fence.damage()
    fence._before[-1:] = CANARY
    if fence._after.size >= 4:
        fence._after[2:4] = 0
        assert fence.damage() == "bytes 2 to 3 past its end"


def test_spoilt_memory_is_no_number() -> None:
    for dtype in (DType.f32, DType.bf16, DType.f16, DType.f64):
        t = tensor("Y", 5, dtype=dtype, role="output")
        view = np.zeros(physical_bytes(t, {}), np.uint8)
        spoil(view, t)
        assert np.isnan(fetch(view, t, {})).all()
