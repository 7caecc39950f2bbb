"""BLAS: sizes, initial data, costs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from benchmarks.polybench.case import Case, Real, Value, grid, share

RECTANGLE = ((20, 30), (60, 80), (200, 240), (1000, 1200), (2000, 2600))


def gemm(s: SimpleNamespace, real: Real) -> dict[str, Value]:
    """Fractions in [0, 1)."""
    (ci, cj), (ai, aj), (bi, bj) = grid(s.NI, s.NJ), grid(s.NI, s.NK), grid(s.NK, s.NJ)
    return {
        "alpha": real(1.5),
        "beta": real(1.2),
        "C": share((ci * cj + 1) % s.NI, s.NI, real),
        "A": share(ai * (aj + 1) % s.NK, s.NK, real),
        "B": share(bi * (bj + 2) % s.NJ, s.NJ, real),
    }


def gemver(s: SimpleNamespace, real: Real) -> dict[str, Value]:
    """Vectors that grow linearly."""
    i, j = grid(s.N, s.N)
    (n,) = grid(s.N)
    ramp = share(n + 1, s.N, real)
    return {
        "alpha": real(1.5),
        "beta": real(1.2),
        "A": share(i * j % s.N, s.N, real),
        "u1": n.astype(real),
        "v1": ramp / real(4),
        "u2": ramp / real(2),
        "v2": ramp / real(6),
        "w": np.zeros(s.N, real),
        "x": np.zeros(s.N, real),
        "y": ramp / real(8),
        "z": ramp / real(9),
    }


def gesummv(s: SimpleNamespace, real: Real) -> dict[str, Value]:
    """Fractions in [0, 1)."""
    i, j = grid(s.N, s.N)
    return {
        "alpha": real(1.5),
        "beta": real(1.2),
        "A": share((i * j + 1) % s.N, s.N, real),
        "B": share((i * j + 2) % s.N, s.N, real),
        "tmp": np.zeros(s.N, real),
        "x": share(np.arange(s.N), s.N, real),
        "y": np.zeros(s.N, real),
    }


def symm(s: SimpleNamespace, real: Real) -> dict[str, Value]:
    """The upper triangle of A, which nothing reads, is -999."""
    i, j = grid(s.M, s.N)
    ai, aj = grid(s.M, s.M)
    return {
        "alpha": real(1.5),
        "beta": real(1.2),
        "C": share((i + j) % 100, s.M, real),
        "A": np.where(aj <= ai, share((ai + aj) % 100, s.M, real), real(-999)),
        # Never negative, so that C's remainder is Python's.
        "B": share((s.N + i - j) % 100, s.M, real),
    }


def syr2k(s: SimpleNamespace, real: Real) -> dict[str, Value]:
    """Fractions; C is divided by M as in PolyBench."""
    (i, j), (ci, cj) = grid(s.N, s.M), grid(s.N, s.N)
    return {
        "alpha": real(1.5),
        "beta": real(1.2),
        "C": share((ci * cj + 3) % s.N, s.M, real),
        "A": share((i * j + 1) % s.N, s.N, real),
        "B": share((i * j + 2) % s.M, s.M, real),
    }


def syrk(s: SimpleNamespace, real: Real) -> dict[str, Value]:
    """Fractions in [0, 1)."""
    (i, j), (ci, cj) = grid(s.N, s.M), grid(s.N, s.N)
    return {
        "alpha": real(1.5),
        "beta": real(1.2),
        "C": share((ci * cj + 2) % s.M, s.M, real),
        "A": share((i * j + 1) % s.N, s.N, real),
    }


def trmm(s: SimpleNamespace, real: Real) -> dict[str, Value]:
    """A unit lower triangle."""
    (ai, aj), (i, j) = grid(s.M, s.M), grid(s.M, s.N)
    lower = np.where(aj < ai, share((ai + aj) % s.M, s.M, real), real(0))
    np.fill_diagonal(lower, 1)
    return {"alpha": real(1.5), "A": lower, "B": share((s.N + i - j) % s.N, s.N, real)}


CASES = (
    Case(
        name="gemm",
        function="gemm",
        parameters=("NI", "NJ", "NK"),
        sizes=((20, 25, 30), (60, 70, 80), (200, 220, 240), (1000, 1100, 1200), (2000, 2300, 2600)),
        fill=gemm,
        outputs=("C",),
        operations=lambda s: 2 * s.NI * s.NJ * s.NK + s.NI * s.NJ + s.NI * s.NK,
        elements=lambda s: s.NI * s.NK + s.NK * s.NJ + 2 * s.NI * s.NJ,
    ),
    Case(
        name="gemver",
        function="gemver",
        parameters=("N",),
        sizes=((40,), (120,), (400,), (2000,), (4000,)),
        fill=gemver,
        outputs=("w",),
        operations=lambda s: 8 * s.N**2 + 3 * s.N,
        elements=lambda s: 2 * s.N**2 + 10 * s.N,
    ),
    Case(
        name="gesummv",
        function="gesummv",
        parameters=("N",),
        sizes=((30,), (90,), (250,), (1300,), (2800,)),
        fill=gesummv,
        outputs=("y",),
        operations=lambda s: 4 * s.N**2 + 3 * s.N,
        elements=lambda s: 2 * s.N**2 + 3 * s.N,
    ),
    Case(
        name="symm",
        function="symm",
        parameters=("M", "N"),
        sizes=RECTANGLE,
        fill=symm,
        outputs=("C",),
        operations=lambda s: 2 * s.M * (s.M - 1) * s.N + 6 * s.M * s.N,
        elements=lambda s: 3 * s.M * s.N + s.M * (s.M + 1) // 2,
    ),
    Case(
        name="syr2k",
        function="syr2k",
        parameters=("M", "N"),
        sizes=RECTANGLE,
        fill=syr2k,
        outputs=("C",),
        operations=lambda s: s.N * (s.N + 1) // 2 * (4 * s.M + 1) + 2 * s.N * s.M,
        elements=lambda s: s.N * (s.N + 1) + 2 * s.N * s.M,
    ),
    Case(
        name="syrk",
        function="syrk",
        parameters=("M", "N"),
        sizes=RECTANGLE,
        fill=syrk,
        outputs=("C",),
        operations=lambda s: s.N * (s.N + 1) // 2 * (2 * s.M + 1) + s.N * s.M,
        elements=lambda s: s.N * (s.N + 1) + s.N * s.M,
    ),
    Case(
        name="trmm",
        function="trmm",
        parameters=("M", "N"),
        sizes=RECTANGLE,
        fill=trmm,
        outputs=("B",),
        operations=lambda s: s.M * (s.M - 1) * s.N + s.M * s.N,
        elements=lambda s: s.M * (s.M - 1) // 2 + 2 * s.M * s.N,
    ),
)
