"""Drawn points of the spaces of memory-bound kernels: proved, run natively, compared."""

from __future__ import annotations

import random

import pytest

from nestor.autotune.space import Space, distinct
from nestor.ir.parser import parse_program
from nestor.ir.program import Extern
from nestor.passes.canonical import canonicalize_kernel
from nestor.passes.fusion import partition_program
from nestor.passes.nest import apply_schedule
from nestor.passes.polyhedral import check_nest
from nestor.target.cpu import parse_target
from tests.helpers.nests import LEVELS, check_nest_native

DRAWN = 8

TEXTS: dict[str, tuple[str, str, str]] = {
    "stencil": (
        "input A: f32[15, 75]\n output B: f32[13, 73]",
        """S over { 0 <= i < 13, 0 <= j < 73 }
        B[i, j] = A[i, j + 1] + A[i + 1, j] + A[i + 1, j + 2] + A[i + 2, j + 1]""",
        "S0.tile S0.block S0.whole",
    ),
    "pooling": (
        "input A: f32[3, 11, 75]\n output B: f32[3, 9, 73]",
        """S over { 0 <= c < 3, 0 <= y < 9, 0 <= x < 73, 0 <= r < 3, 0 <= t < 3 }
        reduce max(f32) over r, t
        s0 <- A[c, y + r, x + t]
        B[c, y, x] = s0""",
        "S0.tile S0.order S0.sums S0.taps",
    ),
    "strided pooling": (
        "input A: f32[3, 18, 80]\n output B: f32[3, 9, 40]",
        """S over { 0 <= c < 3, 0 <= y < 9, 0 <= x < 40, 0 <= r < 2, 0 <= t < 2 }
        reduce sum(f32) over r, t
        s0 <- A[c, 2*y + r, 2*x + t]
        B[c, y, x] = s0 * 0.25:f32""",
        "S0.tile S0.order S0.taps",
    ),
    "sums of short rows": (
        "input A: f32[5, 37, 18]\n output B: f32[5, 37]",
        """S over { 0 <= i < 5, 0 <= j < 37, 0 <= k < 18 }
        reduce sum(f32) over k
        s0 <- A[i, j, k]
        B[i, j] = s0""",
        "S0.tile S0.vector",
    ),
    "sums of rows": (
        "input A: f32[7, 163]\n output B: f32[7]",
        """S over { 0 <= i < 7, 0 <= k < 163 }
        reduce sum(f32) over k
        s0 <- A[i, k] * A[i, k]
        B[i] = s0""",
        "S0.tile S0.chains",
    ),
    "sums of columns": (
        "input A: f32[160, 75]\n output B: f32[75]",
        """S over { 0 <= k < 160, 0 <= j < 75 }
        reduce sum(f32) over k
        s0 <- A[k, j]
        B[j] = s0""",
        "S0.columns S0.vectors S0.beside",
    ),
    "softmax": (
        "input X: f32[7, 77]\n temp m: f32[7]\n temp t: f32[7]\n output Y: f32[7, 77]",
        """M over { 0 <= i < 7, 0 <= j < 77 }
        reduce max(f32) over j
        s0 <- X[i, j]
        m[i] = s0
        statement T over { 0 <= i < 7, 0 <= j < 77 }
        reduce sum(f32) over j
        s0 <- exp(X[i, j] - m[i])
        t[i] = s0
        statement Y over { 0 <= i < 7, 0 <= j < 77 }
        Y[i, j] = exp(X[i, j] - m[i]) / t[i]""",
        "rows S0.chains S2.vectors",
    ),
    "transpose": (
        "input A: f32[5, 37, 70]\n output B: f32[5, 70, 37]",
        """S over { 0 <= b < 5, 0 <= j < 70, 0 <= i < 37 }
        B[b, j, i] = A[b, i, j]""",
        "S0.across S0.order S0.whole",
    ),
    "gather": (
        "input I: i64[40]\n parameter E: f32[50, 130]\n output Y: f32[40, 130]",
        """S over { 0 <= i < 40, 0 <= j < 130 }
        Y[i, j] = E[I[i], j]""",
        "S0.rows S0.vectors",
    ),
    "running sums": (
        "input A: f32[19, 70]\n output B: f32[19, 70]",
        """S over { 0 <= i < 19, 0 <= j < 70 }
        scan sum(f32) over j
        s0 <- A[i, j]
        B[i, j] = s0""",
        "S0.rows S0.tile",
    ),
}


def spaces(name: str, level: str) -> list[Space]:
    tensors, statements, _ = TEXTS[name]
    made = parse_program(f"program p {{\n {tensors}\n statement {statements}\n}}")
    parts = partition_program(made, l2_bytes=1 << 20).parts
    return [
        Space(canonicalize_kernel(p)[0], parse_target(level))
        for p in parts
        if not isinstance(p, Extern)
    ]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", sorted(TEXTS))
def test_drawn_points_compute_the_same(name: str, level: str) -> None:
    rng = random.Random(level)
    for space in spaces(name, level):
        drawn = distinct([space.default(), *(space.sample(rng) for _ in range(DRAWN))])
        for candidate in drawn:
            nest = apply_schedule(space.fused.kernel, candidate.schedule)
            check_nest(space.fused.kernel, nest)
            check_nest_native(nest, parse_target(level), symbols={}, rtol=3e-5, atol=3e-6)


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_the_decisions_that_a_search_wants_are_open(name: str) -> None:
    asked = {k.name for space in spaces(name, "avx2") for k in space.knobs()}
    assert set(TEXTS[name][2].split()) <= asked
