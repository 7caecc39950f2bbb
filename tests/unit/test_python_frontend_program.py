"""What Python kernels become: orders, domains, temporaries, roles, sizes."""
# ruff: noqa: F821, UP037

from __future__ import annotations

import math

import numpy as np

import nestor
from nestor.ir import Load, Select, Statement, print_program
from nestor.passes.accumulations import recognize_accumulations
from nestor.passes.polyhedral.size_conditions import find_size_conditions, restrict_program

LIMIT = 4


def statements(kernel: nestor.Kernel) -> list[Statement]:
    return [s for s in kernel.program.statements if isinstance(s, Statement)]


def domains(kernel: nestor.Kernel) -> list[str]:
    """``index: lower..upper`` of each range, and the constraints."""
    out = []
    for s in statements(kernel):
        parts = [f"{r.name}: {r.lower}..{r.upper}" for r in s.domain.ranges]
        out.append(", ".join([*parts, *(f"{c} >= 0" for c in s.domain.constraints)]))
    return out


@nestor.kernel
def nested(A: nestor.f64["N", "M"], B: nestor.f64["M"]):
    for i in range(N):
        for j in range(i + 1):
            A[i, j] = B[j]
        A[i, 0] += 1.0
        for j in range(M - 1, 0, -2):
            A[i, j] = B[j - 1]


def test_orders_are_full_and_domains_are_those_of_the_loops() -> None:
    assert [s.order for s in statements(nested)] == [
        (0, "i", 0, "j", 0),
        (0, "i", 1),
        (0, "i", 2, "j", 0),
    ]
    assert domains(nested) == ["i: 0..N, j: 0..i + 1", "i: 0..N", "i: 0..N, j: 0..M//2"]
    assert str(statements(nested)[2].writes[0].indices[1]) == "M - 2*j - 1"


def test_roles_symbols_and_origins() -> None:
    program = nested.program
    assert [(t.name, t.role) for t in program.tensors] == [("A", "inout"), ("B", "input")]
    assert [(s.name, s.lower, s.upper) for s in program.symbols] == [("N", 0, None), ("M", 0, None)]
    origin = statements(nested)[1].origin
    assert origin is not None
    assert origin.op == "A[i, 0] += 1.0" and origin.file == "test_python_frontend_program.py"


@nestor.kernel
def conditions(A: nestor.f64["N"], h: int):
    for i in range(max(1, h), min(N, 9)):
        if i < 3 or i == N - 1:
            A[i] = 1.0
        else:
            A[i] = 2.0


def test_disjunctions_become_statements_that_exclude_each_other() -> None:
    found = domains(conditions)
    assert len(found) == 3  # i < 3; i = N-1 ≥ 3; 3 ≤ i < N-1; what cannot hold is left out
    assert found[0] == "i: 1..9, -h + i >= 0, N - i - 1 >= 0, -i + 2 >= 0"
    for n in range(12):
        hits = [0] * n
        for s in statements(conditions):
            for i in range(1, 9):
                env = {"N": n, "h": 0, "i": i}
                if all(c.evaluate(env) >= 0 for c in s.domain.constraints):
                    hits[i] += 1
        assert hits == [int(1 <= i < min(n, 9)) for i in range(n)]


@nestor.kernel
def scalars(A: nestor.f64["N", "M"], x: nestor.f64["N"], T: int):
    c = math.sqrt(2.0) + LIMIT
    for _t in range(T):
        for i in range(N):
            j = i + 1
            s = 0.0
            for k in range(M):
                s += A[i, k] * c
            y = x[i] * 2.0
            x[i] = s + y + j
    for i in range(N):
        s = x[i]
        x[i] = s * s


def test_scalars_are_substituted_or_stored_in_as_few_dimensions_as_help() -> None:
    temps = scalars.program.by_role("temp")
    # Not over the time loop, by which nothing is indexed; the second s, y, j and c are substituted.
    assert [(t.name, t.shape) for t in temps] == [("s", (temps[0].shape[0],))]
    assert str(temps[0].shape[0]) == "N"
    assert len(statements(scalars)) == 4
    assert f"{math.sqrt(2.0) + 4!r}" in print_program(scalars.program)


@nestor.kernel
def overwritten(A: nestor.f64["N"], B: nestor.f64["N"]):
    for i in range(N):
        old = A[i]
        A[i] = B[i]
        B[i] = old


def test_a_value_that_is_overwritten_meanwhile_is_kept() -> None:
    assert [t.name for t in overwritten.program.by_role("temp")] == ["old"]
    a, b = np.arange(3.0), np.arange(3.0) + 7
    overwritten.interpret(a, b)
    assert a.tolist() == [7, 8, 9] and b.tolist() == [0, 1, 2]


@nestor.kernel
def guarded(A: nestor.f64["N"], B: nestor.f64["N"]):
    for i in range(N):
        A[i] = B[i - 1] if i > 0 else B[i]


def test_a_load_is_guarded_only_where_it_may_leave_its_array() -> None:
    value = statements(guarded)[0].elements[0]
    assert isinstance(value, Select)
    assert isinstance(value.a, Load) and [str(p) for p in value.a.predicate] == ["i - 1"]
    assert isinstance(value.b, Load) and value.b.predicate == ()


@nestor.kernel
def sizes(n: int, A: nestor.f64["N"], B: nestor.f64["2*N + 1"]):
    for i in range(n):
        A[i] = B[2 * i + 2]
    A[0] = 0.0


def test_conditions_on_sizes() -> None:
    found = find_size_conditions(sizes.program)
    assert {(o.tensor, str(o.index)) for o in found.outside} == {
        ("A", "i"),
        ("B", "2*i + 2"),
        ("A", "0"),
    }
    assert not any(o.certain for o in found.outside)
    (piece,) = found.pieces
    for n in range(6):
        for size in range(6):
            env = {"n": n, "N": size}
            inside = n <= size and size >= 1
            assert inside == all(c.evaluate(env) >= 0 for c in piece)
            bad = any(
                all(c.evaluate(env) >= 0 for c in case) for o in found.outside for case in o.when
            )
            assert bad != inside
    restricted = restrict_program(sizes.program, piece, frozenset({"S0"}), 0)
    assert {s.name: s.lower for s in restricted.symbols} == {"n": 0, "N": 1}
    assert restricted.statements[0].domain.constraints
    assert not restricted.statements[1].domain.constraints


@nestor.kernel
def sums(A: nestor.f64["N", "N"], x: nestor.f64["N"], y: nestor.f64["N"]):
    for i in range(N):
        for k in range(i):
            A[i, i] -= A[i, k] * A[k, i]
        for k in range(N):
            x[i] = y[k] + x[i] - A[i, k] * y[k]
        for k in range(N):
            y[i] = max(A[i, k], y[i])
        for k in range(1, N):
            x[i] += x[k]
        for k in range(N):
            x[i] = x[i] * 0.5 + y[k]
        for _k in range(N):
            x[i] += 1.0
            y[i] += 1.0


def test_accumulations_become_reductions_where_nothing_else_is_in_the_way() -> None:
    program = recognize_accumulations(sums.program)
    found = [s.reduction for s in program.statements if isinstance(s, Statement)]
    names = [None if r is None else (r.monoid.name, r.indices, r.into) for r in found]
    assert names[:3] == [
        ("sum", ("k",), True),
        ("sum", ("k",), True),
        ("max", ("k",), True),
    ]
    # x[i] += x[k] may read its own target; a scaled sum is none; the last loop has two statements.
    assert names[3:] == [None, None, None, None]
    assert program.statements[0].order == (0, "i", 0)
    from nestor.ir import verify_program

    verify_program(program)
    assert recognize_accumulations(program) is program


@nestor.kernel
def solve(L: nestor.f64["N", "N"], b: nestor.f64["N"], x: nestor.f64["N"], z: nestor.f64[1]):
    for i in range(N):
        w = b[i]
        for j in range(i):
            w -= L[i, j] * x[j]
        x[i] = w / L[i, i]
    for i in range(N):
        w = b[i]
        for j in range(i + 1):
            w -= L[i, j] * x[j]
        x[i] = w
    for i in range(N):
        w = b[i]
        for j in range(N):
            w += L[i, j]
        z[0] = w
        b[i] = 0.0


def test_a_scalar_that_ends_in_an_element_lives_there() -> None:
    # Not where that element is read meanwhile (the second loop, at j = i), and not where it is the
    # same for all iterations of a loop whose temporaries are apart.
    assert [t.name for t in solve.program.by_role("temp")] == ["w", "w_2"]
    assert "x[i] = x[i] - L[i, j] * x[j]" in print_program(solve.program)
    assert "x[i] = x[i] / L[i, i]" in print_program(solve.program)
