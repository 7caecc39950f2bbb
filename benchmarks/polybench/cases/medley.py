"""Medley: sizes, initial data, costs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from benchmarks.polybench.case import Case, Real, Value, grid


def deriche(s: SimpleNamespace, real: Real) -> dict[str, Value]:
    """Grey values in [0, 1]."""
    i, j = grid(s.W, s.H)
    image = ((313 * i + 991 * j) % 65536).astype(real) / real(65535)
    zero = np.zeros((s.W, s.H), real)
    return {
        "alpha": real(0.25),
        "img_in": np.ascontiguousarray(image),
        "img_out": zero,
        "y1": zero.copy(),
        "y2": zero.copy(),
    }


def floyd_warshall(s: SimpleNamespace, real: Real) -> dict[str, Value]:
    """Short distances, with 999 for no road; the element type is int32 always."""
    i, j = grid(s.N, s.N)
    none = ((i + j) % 13 == 0) | ((i + j) % 7 == 0) | ((i + j) % 11 == 0)
    return {"path": np.where(none, 999, i * j % 7 + 1).astype(np.int32)}


def nussinov(s: SimpleNamespace, real: Real) -> dict[str, Value]:
    """The four bases in turn; the element types are int8 and int32 always."""
    return {
        "seq": ((np.arange(s.N) + 1) % 4).astype(np.int8),
        "table": np.zeros((s.N, s.N), np.int32),
    }


CASES = (
    Case(
        name="deriche",
        function="deriche",
        parameters=("W", "H"),
        sizes=((64, 64), (192, 128), (720, 480), (4096, 2160), (7680, 4320)),
        fill=deriche,
        outputs=("img_out",),
        operations=lambda s: 30 * s.W * s.H,
        elements=lambda s: 4 * s.W * s.H,
    ),
    Case(
        name="floyd-warshall",
        function="floyd_warshall",
        parameters=("N",),
        sizes=((60,), (180,), (500,), (2800,), (5600,)),
        fill=floyd_warshall,
        outputs=("path",),
        operations=lambda s: 2 * s.N**3,
        elements=lambda s: 2 * s.N**2,
        integer=True,
    ),
    Case(
        name="nussinov",
        function="nussinov",
        parameters=("N",),
        sizes=((60,), (180,), (500,), (2500,), (5500,)),
        fill=nussinov,
        outputs=("table",),
        # A sum and a maximum for each split, and six for each pair of ends.
        operations=lambda s: s.N * (s.N - 1) * (s.N - 2) / 3 + 3 * s.N * (s.N - 1),
        elements=lambda s: s.N * (s.N - 1) + s.N / 4,
        integer=True,
    ),
)
