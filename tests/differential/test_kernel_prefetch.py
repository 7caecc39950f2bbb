"""Rows ahead of a sum are asked for: where, how far, and that nothing else changes."""
# ruff: noqa: F821, UP037

from __future__ import annotations

import re

import numpy as np
import pytest

import nestor
from nestor.codegen.llvm import emit_kernel, prefetch
from nestor.ir.expr import unary
from nestor.ir.monoid import max_of
from nestor.ir.program import Program
from nestor.passes.affine_pipeline import prepare_affine
from nestor.passes.affine_schedule import choose_schedule
from nestor.passes.nest import apply_schedule
from nestor.target.cpu import CpuTarget, parse_target
from tests.helpers.nests import F32, compute, load, point, v

TARGET = parse_target("x86-64-v3")


@nestor.kernel(reassociate=True)
def solve(a: nestor.f64["N", "N"], x: nestor.f64["N"], b: nestor.f64["N"]):
    for i in range(N):
        x[i] = b[i]
        for j in range(i):
            x[i] -= a[i, j] * x[j]
        x[i] = x[i] / a[i, i]


@nestor.kernel(reassociate=True)
def dot(out: nestor.f64["K"], x: nestor.f64["N"], y: nestor.f64["N"]):
    for j in range(N):
        out[0] += x[j] * y[j]


@nestor.kernel(reassociate=True)
def fixed_rows(a: nestor.f64[64, 4096], x: nestor.f64[64], b: nestor.f64[64]):
    for i in range(64):
        x[i] = b[i]
        for j in range(i):
            x[i] -= a[i, j] * x[j]
        x[i] = x[i] / a[i, i]


def code(program: Program, target: CpuTarget = TARGET) -> str:
    prepared = prepare_affine(program, reassociate=True)
    nest = apply_schedule(prepared, choose_schedule(prepared, target, reassociate=True))
    return str(emit_kernel(nest, target, function_name="kernel"))


def calls(text: str) -> int:
    return text.count("call void @llvm.prefetch")


def test_rows_of_a_matrix_are_asked_for() -> None:
    text = code(solve.program)
    assert calls(text) > 0
    # Rows that are too long for the cache: a place further on in the same one.
    assert re.search(r"select i1 \S+ i64 \S+ i64 256\b", text)


def test_rows_of_known_length() -> None:
    text = code(fixed_rows.program)
    assert calls(text) > 0
    assert f"i64 {4096 * prefetch.ROWS_AHEAD}" in text


def test_vectors_have_no_next_row() -> None:
    assert calls(code(dot.program)) == 0


def test_the_expensive_reader_asks() -> None:
    """A row's maximum waits for memory alone; its exponentials leave time to ask for the next."""
    x, y = load("x", v("i"), dtype=F32), load("x", v("i"), dtype=F32)
    small = compute("update", {"m": []}, x, monoid=max_of(F32))
    large = point("z", [v("i")], unary("exp", y))
    asking = prefetch.asking_computes([small, large])
    assert asking == {"x": prefetch.compute_cost(large)}
    assert prefetch.asking_computes([small, point("z", [v("i")], y)]) == {}
    assert prefetch.asking_computes([large]) == {}


@pytest.mark.parametrize("n", [1, 7, 16, 33, 130])
def test_the_same_bits(n: int, monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    rng = np.random.default_rng(n)
    a, b = np.tril(rng.normal(size=(n, n))) + n * np.eye(n), rng.normal(size=n)
    with_rows, without = np.zeros(n), np.zeros(n)
    solve(a, with_rows, b)
    monkeypatch.setattr(prefetch, "_is_row", lambda plan, lane: False)
    monkeypatch.setenv("NESTOR_CACHE_DIR", str(tmp_path))
    again = type(solve)(solve.function, reassociate=True)
    again(a, without, b)
    np.testing.assert_array_equal(with_rows, without)
    np.testing.assert_allclose(a @ with_rows, b, rtol=1e-10, atol=1e-10)
