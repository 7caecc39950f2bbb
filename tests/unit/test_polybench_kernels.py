"""The kernels of PolyBench, run as plain Python, against formulas of linear algebra.

What a kernel computes is written here a second time and differently: as products of matrices,
NumPy's own functions, or array slices.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.polybench.case import SIZES
from benchmarks.polybench.compare import determined_columns, relative_error
from benchmarks.polybench.registry import CASES, GROUPS
from tests.helpers.polybench_plain import definition, run_plain

Before = SimpleNamespace
"""Arguments as they were before the call."""


def correlation(b: Before) -> dict[str, np.ndarray]:
    return {"corr": np.corrcoef(b.data, rowvar=False)}


def covariance(b: Before) -> dict[str, np.ndarray]:
    return {"cov": np.cov(b.data, rowvar=False)}


def gemm(b: Before) -> dict[str, np.ndarray]:
    return {"C": b.alpha * b.A @ b.B + b.beta * b.C}


def gemver(b: Before) -> dict[str, np.ndarray]:
    a = b.A + np.outer(b.u1, b.v1) + np.outer(b.u2, b.v2)
    x = b.x + b.beta * a.T @ b.y + b.z
    return {"A": a, "x": x, "w": b.w + b.alpha * a @ x}


def gesummv(b: Before) -> dict[str, np.ndarray]:
    return {"y": b.alpha * b.A @ b.x + b.beta * b.B @ b.x}


def symm(b: Before) -> dict[str, np.ndarray]:
    full = np.tril(b.A) + np.tril(b.A, -1).T
    return {"C": b.alpha * full @ b.B + b.beta * b.C}


def syr2k(b: Before) -> dict[str, np.ndarray]:
    whole = b.alpha * (b.A @ b.B.T + b.B @ b.A.T) + b.beta * b.C
    return {"C": np.tril(whole) + np.triu(b.C, 1)}


def syrk(b: Before) -> dict[str, np.ndarray]:
    return {"C": np.tril(b.alpha * b.A @ b.A.T + b.beta * b.C) + np.triu(b.C, 1)}


def trmm(b: Before) -> dict[str, np.ndarray]:
    return {"B": b.alpha * (np.tril(b.A, -1) + np.eye(len(b.A))).T @ b.B}


def mm2(b: Before) -> dict[str, np.ndarray]:
    return {"D": b.alpha * b.A @ b.B @ b.C + b.beta * b.D}


def mm3(b: Before) -> dict[str, np.ndarray]:
    return {"G": (b.A @ b.B) @ (b.C @ b.D)}


def atax(b: Before) -> dict[str, np.ndarray]:
    return {"y": b.A.T @ (b.A @ b.x)}


def bicg(b: Before) -> dict[str, np.ndarray]:
    return {"s": b.A.T @ b.r, "q": b.A @ b.p}


def doitgen(b: Before) -> dict[str, np.ndarray]:
    return {"A": b.A @ b.C4}


def mvt(b: Before) -> dict[str, np.ndarray]:
    return {"x1": b.x1 + b.A @ b.y1, "x2": b.x2 + b.A.T @ b.y2}


def cholesky(b: Before) -> dict[str, np.ndarray]:
    return {"A": np.linalg.cholesky(b.A) + np.triu(b.A, 1)}


def durbin(b: Before) -> dict[str, np.ndarray]:
    """The Yule-Walker system: a Toeplitz matrix of 1, r[0], …, r[N-2] times y is -r."""
    n = len(b.r)
    column = np.concatenate(([1.0], b.r[:-1]))
    toeplitz = column[np.abs(np.subtract.outer(np.arange(n), np.arange(n)))]
    return {"y": np.linalg.solve(toeplitz, -b.r)}


def ludcmp(b: Before) -> dict[str, np.ndarray]:
    return {"x": np.linalg.solve(b.A, b.b)}


def trisolv(b: Before) -> dict[str, np.ndarray]:
    return {"x": np.linalg.solve(b.L, b.b)}


def adi(b: Before) -> dict[str, np.ndarray]:
    """Each sweep solves (1 + 2r) w - r (left + right) = right-hand side, ends fixed to 1."""
    n, u = len(b.u), b.u.copy()
    mul1, mul2 = 2.0 * n * n / b.TSTEPS, 1.0 * n * n / b.TSTEPS

    def sweep(field: np.ndarray, mul: float, other: float) -> np.ndarray:
        """New columns: implicit along them by ``mul``, explicit across by ``other``."""
        matrix = (1 + mul) * np.eye(n) - mul / 2 * (np.eye(n, k=1) + np.eye(n, k=-1))
        matrix[0], matrix[-1] = np.eye(n)[0], np.eye(n)[-1]
        inner = field[:, 1:-1]
        right = inner + other / 2 * (field[:, :-2] - 2 * inner + field[:, 2:])
        right[0], right[-1] = 1, 1
        return np.linalg.solve(matrix, right)

    v = b.v.copy()
    for _ in range(b.TSTEPS):
        v[:, 1:-1] = sweep(u, mul1, mul2)
        u[1:-1, :] = sweep(v.T, mul2, mul1).T
    return {"u": u}


def fdtd_2d(b: Before) -> dict[str, np.ndarray]:
    ex, ey, hz = b.ex.copy(), b.ey.copy(), b.hz.copy()
    for source in b.fict:
        ey[0] = source
        ey[1:] -= 0.5 * np.diff(hz, axis=0)
        ex[:, 1:] -= 0.5 * np.diff(hz, axis=1)
        hz[:-1, :-1] -= 0.7 * (np.diff(ex, axis=1)[:-1] + np.diff(ey, axis=0)[:, :-1])
    return {"ex": ex, "ey": ey, "hz": hz}


def _relax(b: Before, step: Callable[[np.ndarray], np.ndarray]) -> dict[str, np.ndarray]:
    first, second = b.A.copy(), b.B.copy()
    inner = (slice(1, -1),) * first.ndim
    for _ in range(b.TSTEPS):
        second[inner] = step(first)[inner]
        first[inner] = step(second)[inner]
    return {"A": first, "B": second}


def _neighbours(x: np.ndarray) -> np.ndarray:
    """Sum of the two neighbours along each axis (rolling over the border, which is not used)."""
    return sum(np.roll(x, d, axis) for axis in range(x.ndim) for d in (-1, 1))


def heat_3d(b: Before) -> dict[str, np.ndarray]:
    return _relax(b, lambda x: x + 0.125 * (_neighbours(x) - 6 * x))


def jacobi_1d(b: Before) -> dict[str, np.ndarray]:
    return _relax(b, lambda x: 0.33333 * (x + _neighbours(x)))


def jacobi_2d(b: Before) -> dict[str, np.ndarray]:
    return _relax(b, lambda x: 0.2 * (x + _neighbours(x)))


def seidel_2d(b: Before) -> dict[str, np.ndarray]:
    a = b.A.copy()
    for _ in range(b.TSTEPS):
        for i in range(1, len(a) - 1):
            for j in range(1, len(a) - 1):
                a[i, j] = a[i - 1 : i + 2, j - 1 : j + 2].mean()
    return {"A": a}


def deriche(b: Before) -> dict[str, np.ndarray]:
    """Each pass as a dense matrix: the response to a unit impulse, shifted."""
    fade = np.exp(-b.alpha)
    k = (1 - fade) ** 2 / (1 + 2 * b.alpha * fade - np.exp(2 * b.alpha))
    b1, b2 = 2.0**-b.alpha, -(fade**2)

    def filters(n: int) -> np.ndarray:
        shift = np.eye(n, k=-1)
        recursive = np.linalg.inv(np.eye(n) - b1 * shift - b2 * shift @ shift)
        causal = recursive @ (k * np.eye(n) + k * fade * (b.alpha - 1) * shift)
        ahead = k * fade * (b.alpha + 1) * shift - k * fade**2 * shift @ shift
        return causal + (recursive @ ahead).T

    w, h = b.img_in.shape
    return {"img_out": filters(w) @ b.img_in @ filters(h).T}


def floyd_warshall(b: Before) -> dict[str, np.ndarray]:
    """Bellman: paths of at most twice as many roads, until nothing changes."""
    path = b.path.copy()
    while True:
        longer = np.minimum(path, (path[:, :, None] + path[None, :, :]).min(axis=1))
        if np.array_equal(longer, path):
            return {"path": path}
        path = longer


def nussinov(b: Before) -> dict[str, np.ndarray]:
    """By length of the piece, from the recurrence's definition."""
    n = len(b.seq)
    best = np.zeros((n, n), np.int32)
    for length in range(1, n):
        for i in range(n - length):
            j = i + length
            pair = int(int(b.seq[i]) + int(b.seq[j]) == 3 and length > 1)
            inside = best[i + 1, j - 1] if i + 1 <= j - 1 else 0
            split = max(best[i, m] + best[m + 1, j] for m in range(i, j))
            best[i, j] = max(split, inside + pair)
    return {"table": best}


FORMULAS = {name: globals()[case.function] for name, case in CASES.items()
            if case.function in globals()}  # fmt: skip


def _run(name: str, dtype: str) -> tuple[Before, dict[str, Any]]:
    case = CASES[name]
    inputs = case.make_inputs("MINI", dtype)
    before = SimpleNamespace(**copy.deepcopy(inputs))
    run_plain(name, inputs, case.symbols("MINI"))
    return before, inputs


@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_kernel_computes_its_formula(name: str) -> None:
    before, after = _run(name, "float64")
    for output, expected in FORMULAS[name](before).items():
        scale = np.abs(expected).max()
        np.testing.assert_allclose(after[output], expected, rtol=1e-9, atol=1e-11 * scale)


def test_lu_factors_multiply_to_the_matrix() -> None:
    before, after = _run("lu", "float64")
    lower = np.tril(after["A"], -1) + np.eye(len(before.A))
    np.testing.assert_allclose(lower @ np.triu(after["A"]), before.A, rtol=1e-10)


def test_gramschmidt_factors_multiply_to_the_matrix() -> None:
    """Q·R is A whatever the rank; columns of Q past the rank are rounding noise, normalised."""
    before, after = _run("gramschmidt", "float64")
    np.testing.assert_allclose(after["Q"] @ after["R"], before.A, rtol=1e-10)
    count = determined_columns(after["R"])
    assert 10 <= count <= np.linalg.matrix_rank(before.A)
    q, r = np.linalg.qr(before.A)
    sign = np.sign(np.diag(r))
    np.testing.assert_allclose(after["Q"][:, :count], (q * sign)[:, :count], atol=1e-12)
    np.testing.assert_allclose(after["R"][:count], (r.T * sign).T[:count], atol=1e-9)


def test_errors_are_seen() -> None:
    right = {"C": np.array([[1.0, -4.0], [np.nan, np.inf]])}
    assert relative_error("gemm", right, right) == 0
    for place, value, error in ((0, 3.0, 0.5), (2, 0.0, np.inf), (3, -np.inf, np.inf)):
        wrong = right["C"].copy()
        wrong.ravel()[place] = value
        assert relative_error("gemm", {"C": wrong}, right) == error
    _, after = _run("gramschmidt", "float64")
    other = {"Q": after["Q"].copy(), "R": after["R"]}
    other["Q"][0, 3] += 0.01
    assert relative_error("gramschmidt", other, after) > 1e-3


def test_every_kernel_has_a_formula() -> None:
    assert sorted(CASES) == sorted({*FORMULAS, "lu", "gramschmidt"})
    assert len(CASES) == 30
    assert [len(g) for g in GROUPS.values()] == [2, 7, 6, 6, 6, 3]


@pytest.mark.parametrize("name", CASES)
def test_inputs_fit_the_signature(name: str) -> None:
    case = CASES[name]
    arguments = definition(name).args.args
    for size in SIZES[:3]:
        symbols = case.symbols(size)
        inputs = case.make_inputs(size, "float32")
        assert list(inputs) == [a.arg for a in arguments]
        assert set(case.outputs) <= set(inputs)
        for argument in arguments:
            given, annotation = inputs[argument.arg], argument.annotation
            if isinstance(given, np.ndarray):
                dims = annotation.slice
                names = dims.elts if hasattr(dims, "elts") else [dims]
                assert given.shape == tuple(symbols[n.value] for n in names)
                assert given.flags.c_contiguous
                assert given.dtype in (np.float32, np.int32, np.int8)
        assert case.work(size) > 0
        assert case.floor_bytes(size) > 0
    assert all(len(values) == len(case.parameters) for values in case.sizes)
    assert len(case.sizes) == len(SIZES)


class Counted(float):
    """A float that counts the operations it takes part in."""

    count = 0


def _counting(op: str) -> Callable[..., Counted]:
    plain = getattr(float, op)

    def method(self: float, *other: float) -> Counted:
        Counted.count += 1
        return Counted(plain(float(self), *(float(o) for o in other)))

    return method


for _op in "add sub mul truediv radd rsub rmul rtruediv".split():
    setattr(Counted, f"__{_op}__", _counting(f"__{_op}__"))


@pytest.mark.parametrize("name", ["gemm", "cholesky", "lu", "trisolv", "3mm", "jacobi-2d",
                                  "seidel-2d", "fdtd-2d", "syrk", "trmm"])  # fmt: skip
def test_operations_are_counted_right(name: str) -> None:
    """What Python executes; fewer where a product is loop-invariant, by at most half."""
    case = CASES[name]
    inputs = {}
    for key, value in case.make_inputs("MINI").items():
        if isinstance(value, np.ndarray):
            wrapped = np.empty(value.shape, object)
            wrapped.ravel()[:] = [Counted(v) for v in value.ravel()]
            inputs[key] = wrapped
        else:
            inputs[key] = Counted(value) if isinstance(value, np.floating) else value
    Counted.count = 0
    run_plain(name, inputs, case.symbols("MINI"))
    counted, stated = Counted.count, case.work("MINI")
    if name == "cholesky":
        counted += case.symbols("MINI")["N"]  # square roots
    if name in ("gemm", "syrk"):  # alpha * A[i, k] is computed for each j
        assert stated <= counted <= 1.5 * stated
    else:
        assert stated == counted
