"""How long an iteration waits for the one before."""
# ruff: noqa: F821, UP037

from __future__ import annotations

import math

import pytest

import nestor
from nestor.ir.program import Program
from nestor.passes.affine_access import statement_views
from nestor.passes.affine_latency import (
    DIVIDE_CYCLES,
    FLOAT_CYCLES,
    FUNCTION_CYCLES,
    carried_cycles,
)
from nestor.passes.polyhedral.order_tree import program_tree


@nestor.kernel
def scaled(a: nestor.f64["N"], p: nestor.f64["N"]):
    for j in range(1, N):
        a[j] = (p[j] / p[j - 1] + p[j]) + a[j - 1] * p[j - 1]


@nestor.kernel
def divided(a: nestor.f64["N"], p: nestor.f64["N"]):
    for j in range(1, N):
        a[j] = p[j] / (a[j - 1] + p[j - 1])


@nestor.kernel
def rooted(a: nestor.f64["N"]):
    for j in range(1, N):
        a[j] = math.sqrt(a[j - 1])


@nestor.kernel
def further(a: nestor.f64["N"]):
    for j in range(2, N):
        a[j] = a[j - 2] + 1.0


def waiting(program: Program) -> float | None:
    tree = program_tree(program)
    (view,) = statement_views(program, tree).values()
    return carried_cycles(view, view.rows[-1][0])


@pytest.mark.parametrize(
    "kernel, expected",
    [
        (scaled, FLOAT_CYCLES),  # the quotient does not wait, and the product is fused
        (divided, FLOAT_CYCLES + DIVIDE_CYCLES),
        (rooted, FUNCTION_CYCLES),
        (further, None),
    ],
)
def test_only_what_the_carried_value_goes_through_counts(kernel, expected):
    assert waiting(kernel.program) == expected
