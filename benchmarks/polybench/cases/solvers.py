"""Solvers: sizes, initial data, costs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from benchmarks.polybench.case import Case, Real, Value, grid, share

SQUARE = ((40,), (120,), (400,), (2000,), (4000,))


def positive(n: int, real: Real) -> np.ndarray:
    """A positive definite matrix: a unit lower triangle times its transpose.

    PolyBench sums the products one after the other; no term is negative, so that NumPy's order
    gives the same matrix but for rounding.
    """
    i, j = grid(n, n)
    lower = np.where(j < i, real(1) - share(j, n, real), real(0))
    np.fill_diagonal(lower, 1)
    return np.ascontiguousarray(lower @ lower.T)


def cholesky(s: SimpleNamespace, real: Real) -> dict[str, Value]:
    """A positive definite matrix; lu has the same."""
    return {"A": positive(s.N, real)}


def durbin(s: SimpleNamespace, real: Real) -> dict[str, Value]:
    """A falling ramp."""
    return {
        "r": (s.N + 1 - np.arange(s.N)).astype(real),
        "y": np.zeros(s.N, real),
        "z": np.zeros(s.N, real),
    }


def gramschmidt(s: SimpleNamespace, real: Real) -> dict[str, Value]:
    """Numbers in [10, 110); of less than full rank, so some columns of Q are rounding noise."""
    i, j = grid(s.M, s.N)
    return {
        "A": share(i * j % s.M, s.M, real) * real(100) + real(10),
        "R": np.zeros((s.N, s.N), real),
        "Q": np.zeros((s.M, s.N), real),
    }


def ludcmp(s: SimpleNamespace, real: Real) -> dict[str, Value]:
    """A positive definite matrix, a right-hand side from 4 to 4.5."""
    return {
        "A": positive(s.N, real),
        "b": share(np.arange(s.N) + 1, s.N, real) / real(2) + real(4),
        "x": np.zeros(s.N, real),
        "y": np.zeros(s.N, real),
    }


def trisolv(s: SimpleNamespace, real: Real) -> dict[str, Value]:
    """A lower triangle with 2 (N + 1) / N on its diagonal."""
    i, j = grid(s.N, s.N)
    full = (s.N + i - j + 1).astype(real) * real(2) / real(s.N)
    return {
        "L": np.where(j <= i, full, real(0)),
        "x": np.full(s.N, -999, real),
        "b": np.arange(s.N).astype(real),
    }


def lu_operations(s: SimpleNamespace) -> float:
    """Multiplications, subtractions and divisions of an elimination."""
    return s.N**2 * (s.N - 1) - (s.N - 1) * s.N * (2 * s.N - 1) / 6


CASES = (
    Case(
        name="cholesky",
        function="cholesky",
        parameters=("N",),
        sizes=SQUARE,
        fill=cholesky,
        outputs=("A",),
        operations=lambda s: s.N * (s.N + 1) * (2 * s.N + 1) / 6,
        elements=lambda s: s.N * (s.N + 1),
    ),
    Case(
        name="durbin",
        function="durbin",
        parameters=("N",),
        sizes=SQUARE,
        fill=durbin,
        outputs=("y",),
        operations=lambda s: 2 * s.N * (s.N - 1) + 6 * (s.N - 1),
        elements=lambda s: 3 * s.N,
    ),
    Case(
        name="gramschmidt",
        function="gramschmidt",
        parameters=("M", "N"),
        sizes=((20, 30), (60, 80), (200, 240), (1000, 1200), (2000, 2600)),
        fill=gramschmidt,
        outputs=("R", "Q"),
        operations=lambda s: s.N * (3 * s.M + 1) + 2 * s.M * s.N * (s.N - 1),
        elements=lambda s: 3 * s.M * s.N + s.N * (s.N + 1) // 2,
    ),
    Case(
        name="lu",
        function="lu",
        parameters=("N",),
        sizes=SQUARE,
        fill=cholesky,
        outputs=("A",),
        operations=lu_operations,
        elements=lambda s: 2 * s.N**2,
    ),
    Case(
        name="ludcmp",
        function="ludcmp",
        parameters=("N",),
        sizes=SQUARE,
        fill=ludcmp,
        outputs=("x",),
        operations=lambda s: lu_operations(s) + 2 * s.N * (s.N - 1) + s.N,
        elements=lambda s: 2 * s.N**2 + 3 * s.N,
    ),
    Case(
        name="trisolv",
        function="trisolv",
        parameters=("N",),
        sizes=SQUARE,
        fill=trisolv,
        outputs=("x",),
        operations=lambda s: s.N**2,
        elements=lambda s: s.N * (s.N + 1) // 2 + 2 * s.N,
    ),
)
