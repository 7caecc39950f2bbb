"""Rules from Program to Program: the interpreter computes the same before and after.

Each rule is tried where it applies and on the nearest nests where it must not, for sizes of 0 and
1 too, and on NaN, infinities and both zeros.
"""
# ruff: noqa: F821, UP037

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

import nestor
from nestor.ir import parse_program, print_program, run_program, verify_program
from nestor.ir.affine import variable
from nestor.ir.expr import map_affines
from nestor.ir.numeric import numpy_dtype
from nestor.ir.program import Program, Statement
from nestor.passes.accumulations import recognize_accumulations
from nestor.passes.affine_pipeline import is_empty
from nestor.passes.polyhedral.expansion import expand_arrays
from nestor.passes.reassociation import shorten_recurrences
from nestor.passes.self_copies import drop_self_copies
from nestor.passes.separate_sums import separate_sums
from nestor.passes.split_statements import split_at_own_reads

f32, f64, i32, u8 = nestor.f32, nestor.f64, nestor.i32, nestor.u8
Arrays = dict[str, np.ndarray]
SIZES = (0, 1, 2, 5)
SPECIAL = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 3.0)


def split(program: Program) -> Program:
    """The rule with the pipeline's test for emptiness."""
    return split_at_own_reads(program, is_empty)


def make_inputs(program: Program, symbols: dict[str, int], kind: str) -> Arrays:
    """Whole numbers, on which sums are exact, ordinary ones, or special values."""
    rng = np.random.default_rng(7)
    found: Arrays = {}
    for t in program.tensors:
        if t.role not in ("input", "inout"):
            continue
        shape = tuple(int(d.evaluate(symbols)) for d in t.shape)
        values = rng.integers(1, 4, shape).astype(np.float64)
        if t.dtype.is_float and kind == "ordinary":
            values = rng.standard_normal(shape)
        elif t.dtype.is_float and kind == "special":
            values = rng.choice(SPECIAL, shape)
        found[t.name] = values.astype(numpy_dtype(t.dtype))
    return found


def run(program: Program, inputs: Arrays, symbols: dict[str, int]) -> Arrays:
    copies = {n: a.copy() for n, a in inputs.items()}
    with np.errstate(all="ignore"):
        return run_program(program, copies, symbols, exact=True)


def assert_rule_holds(
    rule: Callable[[Program], Program],
    program: Program,
    *,
    applies: bool,
    kinds: tuple[str, ...] = ("ordinary", "special"),
    rtol: float = 0.0,
) -> Program:
    """Before and after agree, at all combinations of sizes. Returns: what the rule makes."""
    made = rule(program)
    assert (made != program) == applies
    verify_program(made)
    names = [s.name for s in program.symbols]
    for values, kind in product(product(SIZES, repeat=len(names)), kinds):
        symbols = dict(zip(names, values))
        inputs = make_inputs(program, symbols, kind)
        want, got = (run(p, inputs, symbols) for p in (program, made))
        assert want.keys() == got.keys()
        for name in want:
            np.testing.assert_allclose(
                got[name], want[name], rtol=rtol, atol=rtol, err_msg=f"{name}, {symbols}, {kind}"
            )
    return made


# ------------------------------------------------------------------------------- split statements


@nestor.kernel
def paths(p: f64["N", "N"]):
    for k in range(N):
        for i in range(N):
            for j in range(N):
                p[i, j] = min(p[i, j], p[i, k] + p[k, j])


@nestor.kernel
def backwards(x: f64["M", "N + 1"]):
    for t in range(M):
        for j in range(N + 1):
            x[t, N - j] = x[t, 0] + 1.0


@nestor.kernel
def moves_inside(p: f64["N", "N"], q: f64["N"]):
    for t in range(N):
        for j in range(N):
            for k in range(N):
                p[t, j] = p[t, k] * 0.5 + q[j] * q[k]


@nestor.kernel
def in_company(x: f64["M", "N"], y: f64["M", "N"]):
    for t in range(M):
        for j in range(N):
            x[t, j] = x[t, 0] + y[t, j]
            y[t, j] = x[t, j]


@nestor.kernel
def two_at_once(x: f64["M", "N"], y: f64["M", "N"]):
    for t in range(M):
        for j in range(N):
            x[t, j] = x[t, 0] * 0.5 + y[t, j]
        for j in range(N):
            y[t, j] = y[t, N - 1] + x[t, j]
        for j in range(N):
            x[t, j] = x[t, j] + y[t, 0]


@pytest.mark.parametrize("kernel", [paths, backwards, two_at_once], ids=lambda k: k.name)
def test_splitting(kernel: nestor.Kernel) -> None:
    assert_rule_holds(split, kernel.program, applies=True)


@pytest.mark.parametrize("kernel", [moves_inside, in_company], ids=lambda k: k.name)
def test_no_splitting(kernel: nestor.Kernel) -> None:
    """A cut that moves with the loops inside would change the order; so would company."""
    assert_rule_holds(split, kernel.program, applies=False)


def test_splitting_leaves_names_that_are_taken() -> None:
    program = two_at_once.program
    text = print_program(program).replace("S2", "S0_after")
    made = assert_rule_holds(split, parse_program(text), applies=True)
    names = [s.name for s in made.statements]
    assert len(names) == len(set(names)) and "S0" in names


# --------------------------------------------------------------------------------- separate sums


@nestor.kernel
def product_rows(C: f64["N", "N"], A: f64["N", "M"]):
    for i in range(N):
        for k in range(M):
            for j in range(i + 1):
                C[i, j] += A[i, k] * A[j, k]


@nestor.kernel
def two_sums(y: f64["N"], z: f64["M"], A: f64["N", "M"]):
    for i in range(N):
        for j in range(M):
            y[i] += A[i, j]
            z[j] = z[j] * 0.5 + A[i, j]


@nestor.kernel
def antidiagonals(x: f64["N"], A: f64["N", "N"]):
    for k in range(N):
        for a in range(N):
            for b in range(N - a):
                x[a + b] = x[a + b] * 0.5 + A[k, a]


@nestor.kernel
def feeds(y: f64["N"], z: f64["N"], A: f64["N", "M"]):
    for i in range(N):
        for j in range(M):
            y[i] += A[i, j]
            z[i] = z[i] + y[i]


@pytest.mark.parametrize("kernel", [product_rows, two_sums], ids=lambda k: k.name)
def test_separate_sums(kernel: nestor.Kernel) -> None:
    assert_rule_holds(separate_sums, kernel.program, applies=True)


@pytest.mark.parametrize("kernel", [antidiagonals, feeds], ids=lambda k: k.name)
def test_no_separate_sums(kernel: nestor.Kernel) -> None:
    """Iterations that share a target keep their order, and so does what a neighbour reads."""
    assert_rule_holds(separate_sums, kernel.program, applies=False)


# --------------------------------------------------------------------------------- accumulations


@nestor.kernel
def sums(x: f64["N"], y: f64["N"], A: f64["N", "M"]):
    for i in range(N):
        for j in range(M):
            x[i] = A[i, j] + x[i] - 2.0
        for j in range(i, M):
            y[i] -= A[i, j]


@nestor.kernel
def extremes(x: f32["N"], y: f32["N"], A: f32["N", "M"]):
    for i in range(N):
        for j in range(M):
            x[i] = min(x[i], A[i, j])
        for j in range(M):
            y[i] = max(A[i, j], y[i])


@nestor.kernel
def bytes_wrap(x: u8["N"], y: i32["N"], A: u8["N", "M"], B: i32["N", "M"]):
    for i in range(N):
        for j in range(M):
            x[i] = x[i] - A[i, j]
        for j in range(M):
            y[i] = (y[i] * B[i, j]) * 65537


@nestor.kernel
def triangle(x: f64["N"], A: f64["M"]):
    for i in range(N):
        for k in range(M):
            if i + k < N:
                x[i] += A[k]


@nestor.kernel
def beyond(x: f64["N"], A: f64["M"]):
    for i in range(N + 5):
        for k in range(M):
            if i + k < N:
                x[i] += A[k]


@nestor.kernel
def beyond_by_range(x: f64["N"], A: f64["N"]):
    for i in range(N + 5):
        for k in range(i, N):
            x[i] += A[k]


@nestor.kernel
def reads_itself(x: f64["N"], A: f64["N", "N"]):
    for i in range(N):
        for j in range(N):
            x[i] += A[i, j] * x[j]


@nestor.kernel
def earlier_ones(x: f64["N"], A: f64["N", "N"]):
    for i in range(N):
        for j in range(i):
            x[i] -= A[i, j] * x[j]


@pytest.mark.parametrize("kernel", [sums, triangle, earlier_ones], ids=lambda k: k.name)
def test_accumulations(kernel: nestor.Kernel) -> None:
    program = kernel.program
    assert_rule_holds(recognize_accumulations, program, applies=True, rtol=1e-12)


@pytest.mark.parametrize("kernel", [extremes, bytes_wrap], ids=lambda k: k.name)
def test_accumulations_that_are_exact(kernel: nestor.Kernel) -> None:
    assert_rule_holds(recognize_accumulations, kernel.program, applies=True)


@pytest.mark.parametrize("kernel", [beyond, beyond_by_range, reads_itself], ids=lambda k: k.name)
def test_no_accumulations(kernel: nestor.Kernel) -> None:
    """A result exists without terms, so its target must; terms may not be partial results."""
    assert_rule_holds(recognize_accumulations, kernel.program, applies=False)


# ---------------------------------------------------------------------------------- reassociation


@nestor.kernel
def seidel(a: f64["M", "N"], p: f64["N"]):
    for t in range(M):
        for j in range(1, N):
            a[t, j] = (p[j] + a[t, j - 1] - a[t, j] + p[j - 1]) / 8.0


@nestor.kernel
def falling(a: f32["M", "N"], p: f32["N"]):
    for t in range(M):
        for j in range(1, N):
            a[t, j] = -p[j] - a[t, j - 1] - a[t, j]


@nestor.kernel
def whole_numbers(a: i32["N"], p: i32["N"]):
    for j in range(1, N):
        a[j] = (p[j] + a[j - 1] + a[j]) // 8


@nestor.kernel
def extreme_divisors(a: f64["N"]):
    for j in range(N):
        a[j] = a[j] / 1e300 + a[j] / 0.0


@nestor.kernel
def large_factor(a: f64["N"], p: f64["N"]):
    for j in range(1, N):
        a[j] = (p[j] - a[j - 1] + a[j]) * 1e300


@pytest.mark.parametrize("kernel", [seidel, falling], ids=lambda k: k.name)
def test_shorter_recurrences(kernel: nestor.Kernel) -> None:
    """Division by a power of two is exact, and so are these sums."""
    rule = shorten_recurrences
    assert_rule_holds(rule, kernel.program, applies=True, kinds=("whole", "special"))
    assert_rule_holds(rule, kernel.program, applies=True, kinds=("ordinary",), rtol=1e-5)


@pytest.mark.parametrize(
    "kernel", [whole_numbers, extreme_divisors, large_factor], ids=lambda k: k.name
)
def test_no_shorter_recurrences(kernel: nestor.Kernel) -> None:
    assert_rule_holds(shorten_recurrences, kernel.program, applies=False)


def test_a_factor_is_not_multiplied_into_an_overflow() -> None:
    """The sum is small though its terms are large: the product of each alone overflows."""
    inputs = {"a": np.array([1e10, 0.0]), "p": np.array([0.0, 1e10])}
    made = shorten_recurrences(large_factor.program)
    assert run(made, inputs, {"N": 2})["a"][1] == 0.0


# -------------------------------------------------------------------------------------- expansion


@nestor.kernel
def scratch(x: f64["N"], A: f64["M", "N"], B: f64["M", "N"]):
    for i in range(M):
        for j in range(N):
            x[j] = A[i, j] * 2.0
        for j in range(N):
            B[i, j] = B[i, j] + x[N - 1 - j]


@nestor.kernel
def scratch_d0(x: f64["d0"], A: f64["M", "d0"], B: f64["M", "d0"]):
    for i in range(M):
        for j in range(d0):
            x[j] = A[i, j] * 2.0
        for j in range(d0):
            B[i, j] = B[i, j] + x[d0 - 1 - j]


@nestor.kernel
def scratch_partly(x: f64["N"], A: f64["M", "N"], B: f64["M", "N"]):
    for i in range(M):
        for j in range(1, N):
            x[j] = A[i, j] * 2.0
        for j in range(1, N):
            B[i, j] = B[i, j] + x[j]


@nestor.kernel
def carried(x: f64["N"], A: f64["M", "N"], B: f64["M", "N"]):
    for i in range(M):
        for j in range(N):
            B[i, j] = B[i, j] + x[j]
        for j in range(N):
            x[j] = A[i, j] * 2.0


@nestor.kernel
def sometimes(x: f64["N"], A: f64["M", "N"], B: f64["M", "N"]):
    for i in range(M):
        for j in range(N):
            if i > 0:
                x[j] = A[i, j] * 2.0
        for j in range(N):
            if i > 0:
                B[i, j] = B[i, j] + x[j]


@pytest.mark.parametrize("kernel", [scratch, scratch_d0], ids=lambda k: k.name)
def test_expansion(kernel: nestor.Kernel) -> None:
    """The last iteration's values are seen outside; without iterations the old ones."""
    assert_rule_holds(expand_arrays, kernel.program, applies=True)


@pytest.mark.parametrize("kernel", [scratch_partly, carried, sometimes], ids=lambda k: k.name)
def test_no_expansion(kernel: nestor.Kernel) -> None:
    assert_rule_holds(expand_arrays, kernel.program, applies=False)


# ------------------------------------------------------------------------------------ self-copies


@nestor.kernel
def copies(x: f64["N"], y: f64["N"]):
    for i in range(N):
        x[i] = x[i]
        y[i] = x[N - 1 - i]


@nestor.kernel
def only_copies(x: f64["N"]):
    for i in range(N):
        x[i] = x[i]


@pytest.mark.parametrize("kernel", [copies, only_copies], ids=lambda k: k.name)
def test_self_copies(kernel: nestor.Kernel) -> None:
    made = assert_rule_holds(drop_self_copies, kernel.program, applies=True)
    assert len(made.statements) == len(kernel.program.statements) - 1


def test_a_kernel_of_self_copies_runs() -> None:
    x = np.array([np.nan, -0.0, 1.0])
    expected = x.copy()
    only_copies(x)
    np.testing.assert_array_equal(x.view(np.int64), expected.view(np.int64))


# --------------------------------------------------------------------------- loops without a name


@nestor.kernel
def partial_sums(x: f64["N", "N"], y: f64["N", "N"]):
    for t in range(N):
        for i in range(N):
            for j in range(N):
                x[t, i] += y[t, j]
                y[t, i] = x[t, i] + y[t, 0]


def renamed(program: Program, statement: str) -> Program:
    """``statement`` calls its indices otherwise than those that it shares loops with."""
    (old,) = (s for s in program.statements if s.name == statement)
    assert isinstance(old, Statement)
    names = {n: f"{n}_own" for n in old.domain.names}
    new = {n: variable(m) for n, m in names.items()}
    ranges = tuple(
        replace(
            r,
            name=names[r.name],
            lower=r.lower.substitute(new),
            upper=r.upper.substitute(new),
        )
        for r in old.domain.ranges
    )
    changed = replace(
        old,
        domain=replace(old.domain, ranges=ranges),
        order=tuple(names[x] if isinstance(x, str) else x for x in old.order),
        writes=tuple(
            replace(w, indices=tuple(i.substitute(new) for i in w.indices)) for w in old.writes
        ),
        elements=tuple(map_affines(e, lambda a: a.substitute(new)) for e in old.elements),
    )
    statements = tuple(changed if s is old else s for s in program.statements)
    return replace(program, statements=statements)


@pytest.mark.parametrize("rule", [recognize_accumulations, separate_sums, split])
@pytest.mark.parametrize("kernel", [partial_sums, in_company, feeds], ids=lambda k: k.name)
def test_shared_loops_by_other_names(
    rule: Callable[[Program], Program], kernel: nestor.Kernel
) -> None:
    """Statements share a loop by their positions, whatever each calls its index."""
    assert_rule_holds(rule, kernel.program, applies=False)
    program = renamed(kernel.program, "S1")
    verify_program(program)
    assert_rule_holds(rule, program, applies=False)
