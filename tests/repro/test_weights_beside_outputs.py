"""Passes on weights: a temp made beside an output, and a weight of symbolic size."""

from __future__ import annotations

import numpy as np

from nestor.ir import parse_program, run_program
from nestor.passes.context import PassContext
from nestor.passes.pipeline import run_pipeline

BESIDE = """program p {
  parameter w: f32[6, 6]
  parameter v: f32[4, 4, 5]
  output t: f32[6]
  temp p: f32[6]
  output y: f32[4, 5]
  statement S0 over { 0 <= i < 6 }
    t[i] = w[i, 0] + 1.0:f32
    p[i] = w[i, 1] * 2.0:f32
  statement S1 over { 0 <= m < 4, 0 <= n < 5, 0 <= l < 4, 0 <= k < 4 }
    reduce sum(f32) over l, k
    s0 <- p[l + 1] * v[l, k, n]
    y[m, n] = s0
}"""
SYMBOLIC = """program p(N: 1..) {
  parameter c: f32[2*N]
  input x: f32[N]
  output y: f32[N]
  statement S over { 0 <= i < N }
    y[i] = x[i] * (c[0] + 1.0:f32)
}"""


def test_a_copy_of_a_weight_comes_after_what_makes_it() -> None:
    program = parse_program(BESIDE)
    rng = np.random.default_rng(0)
    inputs = {
        "w": rng.standard_normal((6, 6)).astype(np.float32),
        "v": rng.standard_normal((4, 4, 5)).astype(np.float32),
    }
    result = run_pipeline(program, PassContext())
    made = dict(inputs)
    if result.weight_program.statements:
        made.update(run_program(result.weight_program, inputs))
    names = {t.name for t in result.main.by_role("parameter", "constant", "input")}
    got = run_program(result.main, {n: a for n, a in made.items() if n in names})
    wanted = run_program(program, inputs)
    for name, value in wanted.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5)


def test_a_weight_of_symbolic_size_stays_in_the_call() -> None:
    result = run_pipeline(parse_program(SYMBOLIC), PassContext())
    assert not result.weight_program.statements
