"""The Program interpreter where order counts: seq regions, scatters, folds, extern calls."""

from __future__ import annotations

import numpy as np
import pytest

from nestor.errors import Unsupported
from nestor.ir.affine import affine
from nestor.ir.expr import Index, const
from nestor.ir.interpreter import run_program
from nestor.ir.monoid import sum_of, welford_of
from nestor.ir.parser import parse_program
from nestor.ir.program import Extern, box
from nestor.ir.types import DType
from nestor.ir.verifier import verify_program
from tests.helpers import ir_programs as P

f32, i64 = DType.f32, DType.i64
MODES = pytest.mark.parametrize("exact", [False, True], ids=["vectorised", "exact"])


def rand(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed + sum(shape)).standard_normal(shape).astype(np.float32)


@MODES
def test_a_tuple_state_goes_on_from_its_targets(exact: bool) -> None:
    """A running Welford state over two batches is the state over both."""
    program = P.program(
        "welford_into",
        [
            P.tensor("X", 2, 5),
            *(P.tensor(n, 2, role="inout") for n in ("mean", "m2", "count")),
        ],
        P.statement(
            "S",
            box(i=2, j=5),
            tuple(P.write(n, "i") for n in ("mean", "m2", "count")),
            P.load("X", "i", "j"),
            const(0, f32),
            const(1, f32),
            reduction=P.reduce(welford_of(f32), "j", into=True),
        ),
    )
    x = rand(2, 10)
    first, second = x[:, :5], x[:, 5:]
    state = {n: np.zeros(2, np.float32) for n in ("mean", "m2", "count")}
    for part in (first, second):
        state = run_program(program, {"X": np.ascontiguousarray(part), **state}, exact=exact)
    np.testing.assert_allclose(state["mean"], x.mean(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state["m2"], x.var(1) * 10, rtol=1e-4)
    np.testing.assert_array_equal(state["count"], [10, 10])


@MODES
def test_a_scatter_combines_by_any_monoid_in_order(exact: bool) -> None:
    """Targets chosen by data, a monoid that does not commute: the order of instances shows."""
    a0, b0 = (P.Var(name=n, dtype=i64) for n in ("a0", "b0"))
    ten = const(10, i64)
    digits = P.Monoid(
        name="digits",
        identity=(const(0, i64), const(1, i64)),
        combine=(
            P.op("add", P.op("mul", a0, P.Var(name="b1", dtype=i64)), b0),
            P.op("mul", P.Var(name="a1", dtype=i64), P.Var(name="b1", dtype=i64)),
        ),
        commutative=False,
    )
    target = P.load("T", "i", dtype=i64)
    program = P.program(
        "append",
        [
            P.tensor("T", 6, dtype=i64),
            P.tensor("V", 3, dtype=i64, role="inout"),
            P.tensor("W", 3, dtype=i64, role="inout"),
        ],
        P.statement(
            "S",
            box(i=6),
            (P.write("V", target), P.write("W", target)),
            Index(value=affine("i") + 1),
            ten,
            reduction=P.reduce(digits, "i", into=True),
        ),
    )
    t = np.array([0, 2, 0, 0, 2, 1])
    zero, one = np.zeros(3, np.int64), np.ones(3, np.int64)
    out = run_program(program, {"T": t, "V": zero, "W": one}, exact=exact)
    assert out["V"].tolist() == [134, 6, 25]
    assert out["W"].tolist() == [1000, 10, 100]


@MODES
def test_col2im_combines_at_affine_targets(exact: bool) -> None:
    program = P.program(
        "fold",
        [P.tensor("X", 4, 3), P.tensor("Y", 9, role="inout")],
        P.statement(
            "S",
            box(p=4, k=3),
            P.write("Y", affine("p") * 2 + "k"),
            P.load("X", "p", "k"),
            reduction=P.reduce(sum_of(f32), "p", "k", into=True),
        ),
    )
    x = rand(4, 3)
    want = np.zeros(9)
    for p in range(4):
        want[2 * p : 2 * p + 3] += x[p]
    out = run_program(program, {"X": x, "Y": np.zeros(9, np.float32)}, exact=exact)["Y"]
    np.testing.assert_allclose(out, want, rtol=1e-6)


@MODES
def test_a_reduced_index_in_a_seq_region_accumulates(exact: bool) -> None:
    """``for t: y += x[t]; z[t] = y`` interleaves a reduction with its reader."""
    program = P.program(
        "running",
        [
            P.tensor("X", 5),
            P.tensor("y", role="inout"),
            P.tensor("Z", 5, role="output"),
        ],
        P.statement(
            "add",
            box(t=5),
            P.write("y"),
            P.load("X", "t"),
            reduction=P.reduce(sum_of(f32), "t", into=True),
            order=(0, "t", 0),
        ),
        P.statement("copy", box(t=5), P.write("Z", "t"), P.load("y"), order=(0, "t", 1)),
    )
    verify_program(program)
    x = rand(5)
    out = run_program(program, {"X": x, "y": np.array(2, np.float32)}, exact=exact)
    np.testing.assert_allclose(out["Z"], 2 + np.cumsum(x), rtol=1e-5)
    assert out["y"].shape == ()


@MODES
def test_a_stencil_in_time(exact: bool) -> None:
    """Jacobi on two arrays; the space loops are unordered, time is ``seq``."""
    third = const(1 / 3, f32)

    def relax(name: str, source: str, target: str, position: int) -> P.Statement:
        i = affine("i")
        total = P.op(
            "add", P.op("add", P.load(source, i), P.load(source, i + 1)), P.load(source, i + 2)
        )
        return P.statement(
            name,
            box(t=4, i=6),
            P.write(target, i + 1),
            P.op("mul", third, total),
            order=(0, "t", position),
        )

    program = P.program(
        "jacobi",
        [P.tensor("A", 8, role="inout"), P.tensor("B", 8, role="inout")],
        relax("S", "A", "B", 0),
        relax("R", "B", "A", 1),
    )
    verify_program(program)
    a, b = rand(8), rand(8)
    out = run_program(program, {"A": a, "B": b}, exact=exact)
    x, y = a.astype(np.float64), b.astype(np.float64)
    for _ in range(4):
        y[1:-1] = (x[:-2] + x[1:-1] + x[2:]) / 3
        x[1:-1] = (y[:-2] + y[1:-1] + y[2:]) / 3
    np.testing.assert_allclose(out["A"], x, rtol=1e-4, atol=1e-5)


@MODES
def test_an_extern_runs_where_its_order_says(exact: bool) -> None:
    program = parse_program(
        """
program sorted {
  input X: f32[4]
  temp Y: f32[4]
  output Z: f32[4]
  extern E = "aten.sort"(%X) reads [X] writes [Y]
  statement S over { 0 <= i < 4 }
    Z[i] = Y[i] * 2.0:f32
}"""
    )
    x = rand(4)

    def sort(statement: Extern, arrays: dict[str, np.ndarray]) -> None:
        arrays[statement.outputs[0]][...] = np.sort(arrays[statement.inputs[0]])

    out = run_program(program, {"X": x}, exact=exact, run_extern=sort)
    np.testing.assert_array_equal(out["Z"], np.sort(x) * 2)
    with pytest.raises(Unsupported, match=r"E: the interpreter has nothing to run aten\.sort with"):
        run_program(program, {"X": x}, exact=exact)


@MODES
def test_seq_statements_interleave_by_value(exact: bool) -> None:
    """Two loops of unlike extent at one position run in lockstep; the longer one goes on."""
    program = P.program(
        "interleave",
        [P.tensor("Y", 6, dtype=i64, role="inout")],
        P.statement(
            "A",
            box(t=5),
            P.write("Y", affine("t") + 1),
            P.op("add", P.load("Y", "t", dtype=i64), const(1, i64)),
            order=(0, "t", 0),
        ),
        P.statement(
            "B",
            box(u=2),
            P.write("Y", affine("u") + 1),
            P.op("mul", P.load("Y", affine("u") + 1, dtype=i64), const(10, i64)),
            order=(0, "u", 1),
        ),
    )
    out = run_program(program, {"Y": np.zeros(6, np.int64)}, exact=exact)["Y"]
    assert out.tolist() == [0, 10, 110, 111, 112, 113]


@MODES
def test_fold_along_two_axes_keeps_lexicographic_order(exact: bool) -> None:
    """A non-commutative monoid: affine maps x → a0·x + a1 under composition."""
    a0, a1, b0, b1 = (P.Var(name=n, dtype=f32) for n in ("a0", "a1", "b0", "b1"))
    compose = P.Monoid(
        name="compose",
        identity=(const(1, f32), const(0, f32)),
        combine=(P.op("mul", a0, b0), P.op("add", P.op("mul", b0, a1), b1)),
        commutative=False,
    )
    program = P.program(
        "horner",
        [P.tensor("A", 2, 3, 5), P.tensor("B", 2, 3, 5), P.tensor("Y", 2, role="output")],
        P.statement(
            "S",
            box(i=2, k=3, j=5),
            P.write("Y", "i"),
            P.load("A", "i", "k", "j"),
            P.load("B", "i", "k", "j"),
            reduction=P.reduce(compose, "k", "j", final=(P.s(1),)),
        ),
    )
    a, b = rand(2, 3, 5), rand(2, 3, 5, seed=1)
    want = np.zeros(2)
    for k in range(3):
        for j in range(5):
            want = want * a[:, k, j] + b[:, k, j]
    out = run_program(program, {"A": a, "B": b}, exact=exact)["Y"]
    np.testing.assert_allclose(out, want, rtol=1e-4, atol=1e-5)
