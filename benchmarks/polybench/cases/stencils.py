"""Stencils: sizes, initial data, costs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from benchmarks.polybench.case import Case, Real, Value, grid, share


def adi(s: SimpleNamespace, real: Real) -> dict[str, Value]:
    """A slope across the diagonal."""
    i, j = grid(s.N, s.N)
    return {
        "TSTEPS": s.TSTEPS,
        "u": share(i + s.N - j, s.N, real),
        "v": np.zeros((s.N, s.N), real),
        "p": np.zeros((s.N, s.N), real),
        "q": np.zeros((s.N, s.N), real),
    }


def fdtd_2d(s: SimpleNamespace, real: Real) -> dict[str, Value]:
    """Multiplication tables; the source grows by one each step."""
    i, j = grid(s.NX, s.NY)
    return {
        "ex": share(i * (j + 1), s.NX, real),
        "ey": share(i * (j + 2), s.NY, real),
        "hz": share(i * (j + 3), s.NX, real),
        "fict": np.arange(s.TMAX).astype(real),
    }


def heat_3d(s: SimpleNamespace, real: Real) -> dict[str, Value]:
    """The same slope in both arrays."""
    i, j, k = grid(s.N, s.N, s.N)
    slope = np.ascontiguousarray((i + j + (s.N - k)).astype(real) * real(10) / real(s.N))
    return {"TSTEPS": s.TSTEPS, "A": slope, "B": slope.copy()}


def jacobi_1d(s: SimpleNamespace, real: Real) -> dict[str, Value]:
    """Ramps."""
    n = np.arange(s.N)
    return {"TSTEPS": s.TSTEPS, "A": share(n + 2, s.N, real), "B": share(n + 3, s.N, real)}


def jacobi_2d(s: SimpleNamespace, real: Real) -> dict[str, Value]:
    """Multiplication tables."""
    i, j = grid(s.N, s.N)
    return {
        "TSTEPS": s.TSTEPS,
        "A": share(i * (j + 2) + 2, s.N, real),
        "B": share(i * (j + 3) + 3, s.N, real),
    }


def seidel_2d(s: SimpleNamespace, real: Real) -> dict[str, Value]:
    """A multiplication table."""
    i, j = grid(s.N, s.N)
    return {"TSTEPS": s.TSTEPS, "A": share(i * (j + 2) + 2, s.N, real)}


CASES = (
    Case(
        name="adi",
        function="adi",
        parameters=("TSTEPS", "N"),
        sizes=((20, 20), (40, 60), (100, 200), (500, 1000), (1000, 2000)),
        fill=adi,
        outputs=("u",),
        operations=lambda s: 26 * s.TSTEPS * (s.N - 2) ** 2,
        elements=lambda s: 5 * s.N**2,
    ),
    Case(
        name="fdtd-2d",
        function="fdtd_2d",
        parameters=("TMAX", "NX", "NY"),
        sizes=(
            (20, 20, 30),
            (40, 60, 80),
            (100, 200, 240),
            (500, 1000, 1200),
            (1000, 2000, 2600),
        ),
        fill=fdtd_2d,
        outputs=("ex", "ey", "hz"),
        operations=lambda s: (
            s.TMAX * (3 * (s.NX - 1) * s.NY + 3 * s.NX * (s.NY - 1) + 5 * (s.NX - 1) * (s.NY - 1))
        ),
        elements=lambda s: 6 * s.NX * s.NY + s.TMAX,
    ),
    Case(
        name="heat-3d",
        function="heat_3d",
        parameters=("TSTEPS", "N"),
        sizes=((20, 10), (40, 20), (100, 40), (500, 120), (1000, 200)),
        fill=heat_3d,
        outputs=("A",),
        operations=lambda s: 26 * s.TSTEPS * (s.N - 2) ** 3,
        elements=lambda s: 4 * s.N**3,
    ),
    Case(
        name="jacobi-1d",
        function="jacobi_1d",
        parameters=("TSTEPS", "N"),
        sizes=((20, 30), (40, 120), (100, 400), (500, 2000), (1000, 4000)),
        fill=jacobi_1d,
        outputs=("A",),
        operations=lambda s: 6 * s.TSTEPS * (s.N - 2),
        elements=lambda s: 4 * s.N,
    ),
    Case(
        name="jacobi-2d",
        function="jacobi_2d",
        parameters=("TSTEPS", "N"),
        sizes=((20, 30), (40, 90), (100, 250), (500, 1300), (1000, 2800)),
        fill=jacobi_2d,
        outputs=("A",),
        operations=lambda s: 10 * s.TSTEPS * (s.N - 2) ** 2,
        elements=lambda s: 4 * s.N**2,
    ),
    Case(
        name="seidel-2d",
        function="seidel_2d",
        parameters=("TSTEPS", "N"),
        sizes=((20, 40), (40, 120), (100, 400), (500, 2000), (1000, 4000)),
        fill=seidel_2d,
        outputs=("A",),
        operations=lambda s: 9 * s.TSTEPS * (s.N - 2) ** 2,
        elements=lambda s: 2 * s.N**2,
    ),
)
