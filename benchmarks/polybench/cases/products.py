"""Chains of products: sizes, initial data, costs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from benchmarks.polybench.case import Case, Real, Value, grid, share


def mm2(s: SimpleNamespace, real: Real) -> dict[str, Value]:
    """Fractions in [0, 1)."""
    (ai, aj), (bi, bj) = grid(s.NI, s.NK), grid(s.NK, s.NJ)
    (ci, cj), (di, dj) = grid(s.NJ, s.NL), grid(s.NI, s.NL)
    return {
        "alpha": real(1.5),
        "beta": real(1.2),
        "tmp": np.zeros((s.NI, s.NJ), real),
        "A": share((ai * aj + 1) % s.NI, s.NI, real),
        "B": share(bi * (bj + 1) % s.NJ, s.NJ, real),
        "C": share((ci * (cj + 3) + 1) % s.NL, s.NL, real),
        "D": share(di * (dj + 2) % s.NK, s.NK, real),
    }


def mm3(s: SimpleNamespace, real: Real) -> dict[str, Value]:
    """Fractions in [0, 0.2)."""
    (ai, aj), (bi, bj) = grid(s.NI, s.NK), grid(s.NK, s.NJ)
    (ci, cj), (di, dj) = grid(s.NJ, s.NM), grid(s.NM, s.NL)
    return {
        "E": np.zeros((s.NI, s.NJ), real),
        "A": share((ai * aj + 1) % s.NI, 5 * s.NI, real),
        "B": share((bi * (bj + 1) + 2) % s.NJ, 5 * s.NJ, real),
        "F": np.zeros((s.NJ, s.NL), real),
        "C": share(ci * (cj + 3) % s.NL, 5 * s.NL, real),
        "D": share((di * (dj + 2) + 2) % s.NK, 5 * s.NK, real),
        "G": np.zeros((s.NI, s.NL), real),
    }


def atax(s: SimpleNamespace, real: Real) -> dict[str, Value]:
    """A vector from 1 to 2."""
    i, j = grid(s.M, s.N)
    return {
        "A": share((i + j) % s.N, 5 * s.M, real),
        "x": real(1) + share(np.arange(s.N), s.N, real),
        "y": np.zeros(s.N, real),
        "tmp": np.zeros(s.M, real),
    }


def bicg(s: SimpleNamespace, real: Real) -> dict[str, Value]:
    """Fractions in [0, 1)."""
    i, j = grid(s.N, s.M)
    return {
        "A": share(i * (j + 1) % s.N, s.N, real),
        "s": np.zeros(s.M, real),
        "q": np.zeros(s.N, real),
        "p": share(np.arange(s.M), s.M, real),
        "r": share(np.arange(s.N), s.N, real),
    }


def doitgen(s: SimpleNamespace, real: Real) -> dict[str, Value]:
    """Fractions in [0, 1)."""
    (r, q, p), (i, j) = grid(s.NR, s.NQ, s.NP), grid(s.NP, s.NP)
    return {
        "A": share((r * q + p) % s.NP, s.NP, real),
        "C4": share(i * j % s.NP, s.NP, real),
        "sum": np.zeros(s.NP, real),
    }


def mvt(s: SimpleNamespace, real: Real) -> dict[str, Value]:
    """Fractions in [0, 1)."""
    i, j = grid(s.N, s.N)
    n = np.arange(s.N)
    return {
        "x1": share(n, s.N, real),
        "x2": share((n + 1) % s.N, s.N, real),
        "y1": share((n + 3) % s.N, s.N, real),
        "y2": share((n + 4) % s.N, s.N, real),
        "A": share(i * j % s.N, s.N, real),
    }


CASES = (
    Case(
        name="2mm",
        function="mm2",
        parameters=("NI", "NJ", "NK", "NL"),
        sizes=(
            (16, 18, 22, 24),
            (40, 50, 70, 80),
            (180, 190, 210, 220),
            (800, 900, 1100, 1200),
            (1600, 1800, 2200, 2400),
        ),
        fill=mm2,
        outputs=("D",),
        operations=lambda s: 2 * s.NI * s.NJ * (s.NK + s.NL) + s.NI * s.NL + s.NI * s.NK,
        elements=lambda s: s.NI * s.NK + s.NK * s.NJ + s.NI * s.NJ + s.NJ * s.NL + 2 * s.NI * s.NL,
    ),
    Case(
        name="3mm",
        function="mm3",
        parameters=("NI", "NJ", "NK", "NL", "NM"),
        sizes=(
            (16, 18, 20, 22, 24),
            (40, 50, 60, 70, 80),
            (180, 190, 200, 210, 220),
            (800, 900, 1000, 1100, 1200),
            (1600, 1800, 2000, 2200, 2400),
        ),
        fill=mm3,
        outputs=("G",),
        operations=lambda s: 2 * s.NJ * (s.NI * s.NK + s.NL * s.NM + s.NI * s.NL),
        elements=lambda s: (
            s.NI * s.NK
            + s.NK * s.NJ
            + s.NJ * s.NM
            + s.NM * s.NL
            + s.NI * s.NJ
            + s.NJ * s.NL
            + s.NI * s.NL
        ),
    ),
    Case(
        name="atax",
        function="atax",
        parameters=("M", "N"),
        sizes=((38, 42), (116, 124), (390, 410), (1900, 2100), (1800, 2200)),
        fill=atax,
        outputs=("y",),
        operations=lambda s: 4 * s.M * s.N,
        elements=lambda s: s.M * s.N + 2 * s.N + s.M,
    ),
    Case(
        name="bicg",
        function="bicg",
        parameters=("M", "N"),
        sizes=((38, 42), (116, 124), (390, 410), (1900, 2100), (1800, 2200)),
        fill=bicg,
        outputs=("s", "q"),
        operations=lambda s: 4 * s.M * s.N,
        elements=lambda s: s.M * s.N + 2 * (s.M + s.N),
    ),
    Case(
        name="doitgen",
        function="doitgen",
        parameters=("NQ", "NR", "NP"),
        sizes=((8, 10, 12), (20, 25, 30), (40, 50, 60), (140, 150, 160), (220, 250, 270)),
        fill=doitgen,
        outputs=("A",),
        operations=lambda s: 2 * s.NR * s.NQ * s.NP**2,
        elements=lambda s: 2 * s.NR * s.NQ * s.NP + s.NP**2 + s.NP,
    ),
    Case(
        name="mvt",
        function="mvt",
        parameters=("N",),
        sizes=((40,), (120,), (400,), (2000,), (4000,)),
        fill=mvt,
        outputs=("x1", "x2"),
        operations=lambda s: 4 * s.N**2,
        elements=lambda s: s.N**2 + 6 * s.N,
    ),
)
