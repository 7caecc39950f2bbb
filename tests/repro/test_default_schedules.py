"""Kernels whose default schedule once could not be written, or was refused."""

from __future__ import annotations

import pytest

from nestor.ir import parse_program, verify_nest, verify_program
from nestor.passes.default_schedule import VectorUnit, default_schedule
from nestor.passes.fusion import FusedKernel, partition_program
from nestor.passes.nest import apply_schedule
from nestor.passes.polyhedral import check_nest

PROGRAMS = {
    "a triangle keeps its outer loop outside": """program p {
  input x: f32[13, 13]
  output t: f32[13]
  output y: f32[13]
  statement S over { 0 <= i < 13, 0 <= j < i + 1 }
    reduce sum(f32) over j
    s0 <- x[j, i]
    t[i] = s0
  statement R over { 0 <= i < 13 }
    y[i] = t[i] * 2.0:f32
}""",
    "two triangles share rows": """program p {
  input x: f32[9, 9]
  temp t: f32[9]
  output y: f32[9]
  statement S over { 0 <= i < 9, i <= j < 9 }
    reduce sum(f32) over j
    s0 <- x[i, j]
    t[i] = s0
  statement R over { 0 <= i < 9, i <= j < 9 }
    reduce max(f32) over j
    s0 <- t[i] * x[i, j]
    y[i] = s0
}""",
    "a product over a triangle keeps its outer loop outside": """program p {
  input x: f64[7, 7]
  output y: f64[2]
  statement S over { 0 <= i < 2, i <= j < 7 }
    reduce sum(f64) over j
    s0 <- x[i, j] * x[i, j]
    y[i] = s0
}""",
    "a scan combines in the order of its own indices": """program p {
  input x: f32[4, 5]
  output y: f32[5, 4]
  statement S over { 0 <= k < 5, 0 <= i < 4 }
    scan sum(f32) over i, k
    s0 <- x[i, k]
    y[k, i] = s0
}""",
    "time is no row of a recurrence's product": """program p {
  inout h: f32[8]
  input x: f32[3, 8]
  parameter w: f32[8, 8]
  temp g: f32[8]
  seq t {
    statement G over { 0 <= t < 3, 0 <= j < 8, 0 <= k < 8 }
      reduce sum(f32) over k
      s0 <- w[j, k] * h[k]
      g[j] = s0
    statement H over { 0 <= t < 3, 0 <= j < 8 }
      h[j] = tanh(x[t, j] + g[j])
  }
}""",
    "adding step by step is one reduction": """program p {
  input x: f32[3, 8]
  inout u: f32[8]
  seq t {
    statement S over { 0 <= t < 3, 0 <= j < 8 }
      reduce sum(f32) over t into
      s0 <- x[t, j]
      u[j] = s0
  }
}""",
    "adding to a target of symbolic size": """program p(N: 1..) {
  input x: f32[3, N]
  inout u: f32[N]
  seq t {
    statement S over { 0 <= t < 3, 0 <= j < N }
      reduce sum(f32) over t into
      s0 <- x[t, j]
      u[j] = s0
  }
}""",
    "a dot product added to what is there": """program p {
  input x: f32[1, 16]
  input w: f32[4, 16]
  inout t: f32[4]
  statement S over { 0 <= m < 1, 0 <= n < 4, 0 <= k < 16 }
    reduce sum(f32) over k into
    s0 <- x[m, k] * w[n, k]
    t[n] = s0
}""",
    "an epilogue that reduces": """program p {
  parameter w: f32[5]
  input x: f32[5, 5]
  temp t: f32[5]
  output y: f32[5]
  statement S over { 0 <= m < 5, 0 <= k < 5 }
    reduce sum(f32) over k
    s0 <- w[k] * x[k, m]
    t[m] = s0
  statement R over { 0 <= j < 5, 0 <= i < 5 }
    reduce prod(f32) over i
    s0 <- t[j]
    y[j] = s0
}""",
    "rows of symbolic length stay in memory": """program p(N: 1..) {
  input x: f32[6, N]
  temp e: f32[6, N]
  output s: f32[6]
  output y: f32[6, N]
  statement E over { 0 <= i < 6, 0 <= j < N }
    e[i, j] = exp(x[i, j])
  statement S over { 0 <= i < 6, 0 <= j < N }
    reduce sum(f32) over j
    s0 <- e[i, j]
    s[i] = s0
  statement Y over { 0 <= i < 6, 0 <= j < N }
    y[i, j] = e[i, j] / s[i]
}""",
    "an alias whose base is elsewhere": """program p {
  input x: f32[2, 6]
  temp t: f32[2, 6]
  temp v: f32[3, 4] alias t
  output y: f32[4, 3]
  statement S over { 0 <= i < 2, 0 <= j < 6 }
    t[i, j] = exp(x[i, j])
  statement Y over { 0 <= i < 4, 0 <= j < 3 }
    y[i, j] = v[j, i] * 2.0:f32
}""",
    "a scatter to distinct places with a tail": """program p {
  input x: f32[40]
  input ids: i64[40]
  inout u: f32[50]
  statement S over { 0 <= i < 40 } scatter unique
    u[ids[i]] = x[i]
}""",
    "a temp that is gathered from": """program p {
  input x: f32[5]
  input ids: i64[3]
  temp t: f32[5]
  output y: f32[3, 3]
  statement T over { 0 <= m < 5 }
    t[m] = exp(x[m])
  statement Y over { 0 <= i < 3, 0 <= j < 3 }
    y[i, j] = t[ids[i]] + (t[j - 1] where {j - 1 >= 0} else 0.0:f32)
}""",
}


@pytest.mark.parametrize("bits", [256, 512])
@pytest.mark.parametrize("name", PROGRAMS)
def test_default_schedule(name: str, bits: int) -> None:
    program = parse_program(PROGRAMS[name])
    verify_program(program)
    for part in partition_program(program, l2_bytes=1 << 20).parts:
        assert isinstance(part, FusedKernel)
        nest = apply_schedule(part.kernel, default_schedule(part, VectorUnit(bits=bits)))
        verify_nest(nest)
        check_nest(part.kernel, nest)
