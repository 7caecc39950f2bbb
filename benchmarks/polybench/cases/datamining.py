"""Data mining: sizes, initial data, costs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from benchmarks.polybench.case import Case, Real, Value, grid, share

SIZES = ((28, 32), (80, 100), (240, 260), (1200, 1400), (2600, 3000))


def correlation(s: SimpleNamespace, real: Real) -> dict[str, Value]:
    """Rows that grow with their number, at a slope that the column sets."""
    i, j = grid(s.N, s.M)
    return {
        "float_n": real(s.N),
        "data": share(i * j, s.M, real) + i.astype(real),
        "corr": np.zeros((s.M, s.M), real),
        "mean": np.zeros(s.M, real),
        "stddev": np.zeros(s.M, real),
    }


def covariance(s: SimpleNamespace, real: Real) -> dict[str, Value]:
    """A multiplication table."""
    i, j = grid(s.N, s.M)
    return {
        "float_n": real(s.N),
        "data": share(i * j, s.M, real),
        "cov": np.zeros((s.M, s.M), real),
        "mean": np.zeros(s.M, real),
    }


CASES = (
    Case(
        name="correlation",
        function="correlation",
        parameters=("M", "N"),
        sizes=SIZES,
        fill=correlation,
        outputs=("corr",),
        operations=lambda s: s.M * (s.M - 1) * s.N + 6 * s.N * s.M + 5 * s.M,
        elements=lambda s: 2 * s.N * s.M + s.M**2 + 2 * s.M,
    ),
    Case(
        name="covariance",
        function="covariance",
        parameters=("M", "N"),
        sizes=SIZES,
        fill=covariance,
        outputs=("cov",),
        operations=lambda s: s.M * (s.M + 1) // 2 * (2 * s.N + 1) + 2 * s.N * s.M + s.M,
        elements=lambda s: 2 * s.N * s.M + s.M**2 + s.M,
    ),
)
