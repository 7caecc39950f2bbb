"""The LoopNest interpreter: literal execution, garbage in buffers, illegal parallelism shown."""

from __future__ import annotations

import numpy as np
import pytest

from nestor.errors import IndexOutOfRange, IRError
from nestor.ir.interpreter import run_nest
from nestor.ir.parser import parse_nest
from nestor.ir.verifier import verify_nest
from tests.helpers import ir_nests as N


def rand(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
@pytest.mark.parametrize("m", [1, 4, 7])
def test_tiled_matmul(seed: int | None, m: int) -> None:
    nest = parse_nest(N.TILED_MATMUL)
    verify_nest(nest)
    arrays = {"A": rand(m, 6), "B": rand(6, 8), "C": np.full((m, 8), np.nan, np.float32)}
    run_nest(nest, arrays, {"M": m}, order_seed=seed)
    np.testing.assert_allclose(arrays["C"], arrays["A"] @ arrays["B"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_split_sum_merges_its_lanes(seed: int | None) -> None:
    nest = parse_nest(N.SPLIT_SUM)
    verify_nest(nest)
    arrays = {"X": rand(3, 10), "Y": np.zeros(3, np.float32)}
    run_nest(nest, arrays, order_seed=seed)
    np.testing.assert_allclose(arrays["Y"], arrays["X"].sum(1), rtol=1e-5)


def test_lanes_merge_as_a_tree_in_index_order() -> None:
    text = """
    nest order {
      input A: f32[4]
      input B: f32[4]
      output Y: f32[2]
      monoid compose noncommutative { 1.0:f32, 0.0:f32 : a0 * b0, b0 * a1 + b1 }
      alloc s: f32[2] local holds `S#0` {
        init S() { s[0] = 1.0:f32 s[1] = 0.0:f32 }
        vector l in 0 .. 4 {
          merge S() with compose { s[0] = A[l] s[1] = B[l] }
        }
        final S() { Y[0] = s[0] Y[1] = s[1] }
      }
    }"""
    a, b = rand(4), rand(4) + 1
    want = 0.0
    for k in range(4):
        want = want * a[k] + b[k]
    for seed in range(4):
        arrays = {"A": a, "B": b, "Y": np.zeros(2, np.float32)}
        run_nest(parse_nest(text), arrays, order_seed=seed)
        np.testing.assert_allclose(arrays["Y"], [a.prod(), want], rtol=1e-5)


PREFIX_SUM = """
nest prefix {{
  inout Y: i64[8]
  {kind} i in 0 .. 7 {{
    point S(i=i) {{ Y[i + 1] = Y[i] + Y[i + 1] }}
  }}
}}"""


def test_a_loop_that_carries_a_dependence_shows_when_it_is_no_longer_serial() -> None:
    def run(kind: str, seed: int | None) -> list[int]:
        arrays = {"Y": np.arange(8)}
        run_nest(parse_nest(PREFIX_SUM.format(kind=kind)), arrays, order_seed=seed)
        return arrays["Y"].tolist()

    serial = np.cumsum(np.arange(8)).tolist()
    assert run("for", None) == run("for", 3) == serial
    assert run("parallel", None) == serial
    assert any(run("parallel", seed) != serial for seed in range(3))
    assert run("vector", None) != serial
    assert run("unroll", 5) == serial


def test_a_shared_accumulator_in_a_vector_loop_loses_updates() -> None:
    text = """
    nest lost {
      inout Y: f32[1]
      vector l in 0 .. 4 {
        update S(i=l) with sum(f32) { Y[0] = 1.0:f32 }
      }
    }"""
    arrays = {"Y": np.zeros(1, np.float32)}
    run_nest(parse_nest(text), arrays)
    assert arrays["Y"][0] == 1.0


def test_buffers_are_garbage_each_time() -> None:
    text = """
    nest garbage {
      output Y: f32[3]
      output I: i32[3]
      for i in 0 .. 3 {
        alloc b: f32[1] local holds T, c: i32[1] local holds U {
          point S(i=i) { Y[i] = b[0] I[i] = c[0] }
          point T(i=i) { b[0] = 1.0:f32 c[0] = 1:i32 }
        }
      }
    }"""
    arrays = {"Y": np.zeros(3, np.float32), "I": np.zeros(3, np.int32)}
    run_nest(parse_nest(text), arrays)
    assert np.isnan(arrays["Y"]).all()
    assert (arrays["I"] == np.int32(-1414812757)).all()  # 0xABABABAB


def test_threads_have_their_own_buffers() -> None:
    text = """
    nest threads {
      input X: f32[6]
      output Y: f32[6]
      parallel i in 0 .. 6 {
        alloc b: f32[1] local holds T {
          point T(i=i) { b[0] = X[i] }
          point S(i=i) { Y[i] = b[0] + b[0] }
        }
      }
    }"""
    for seed in (None, 0, 1):
        arrays = {"X": rand(6), "Y": np.zeros(6, np.float32)}
        run_nest(parse_nest(text), arrays, order_seed=seed)
        np.testing.assert_array_equal(arrays["Y"], 2 * arrays["X"])


def test_guards_mask_lanes() -> None:
    text = """
    nest masked {
      input X: f32[5]
      output Y: f32[8]
      vector l in 0 .. 8 {
        if 4 - l >= 0 {
          point S(i=l) { Y[l] = X[l] }
        } else {
          point S(i=l) { Y[l] = -1.0:f32 }
        }
      }
    }"""
    for seed in (None, 0, 1):
        arrays = {"X": rand(5), "Y": np.zeros(8, np.float32)}
        run_nest(parse_nest(text), arrays, order_seed=seed)
        np.testing.assert_array_equal(arrays["Y"], [*arrays["X"], -1, -1, -1])


def test_values_come_before_stores() -> None:
    text = """
    nest swap {
      inout A: f32[1]
      inout B: f32[1]
      point S() { A[0] = B[0] B[0] = A[0] }
    }"""
    arrays = {"A": np.array([1], np.float32), "B": np.array([2], np.float32)}
    run_nest(parse_nest(text), arrays)
    assert arrays["A"][0] == 2 and arrays["B"][0] == 1


def test_aliases_are_views() -> None:
    text = """
    nest view {
      input X: f32[6]
      temp T: f32[6]
      temp V: f32[2, 3] alias T
      output Y: f32[2, 3]
      for i in 0 .. 6 { point S(i=i) { T[i] = X[i] } }
      for i in 0 .. 2 { for j in 0 .. 3 { point R(i=i, j=j) { Y[i, j] = V[i, j] } } }
    }"""
    arrays = {"X": rand(6), "T": rand(6), "Y": np.zeros((2, 3), np.float32)}
    run_nest(parse_nest(text), arrays)
    np.testing.assert_array_equal(arrays["Y"], arrays["X"].reshape(2, 3))


def test_accesses_stay_inside() -> None:
    text = """
    nest outside {
      input T: i64[2]
      input X: f32[4]
      output Y: f32[4]
      for i in 0 .. 2 { point S(i=i) { Y[i] = X[i + %s] } }
    }"""
    arrays = {"T": np.array([0, 7]), "X": rand(4), "Y": np.zeros(4, np.float32)}
    with pytest.raises(IRError, match=r"S \(point\): index 4 of dimension 0 of X is outside"):
        run_nest(parse_nest(text % "3"), arrays)
    gather = text.replace("X[i + %s]", "X[T[i]]")
    with pytest.raises(IndexOutOfRange, match="index 7 of dimension 0 of X"):
        run_nest(parse_nest(gather), arrays)
    with pytest.raises(IRError, match=r"tensor X is f32\[4\], given float64\[4\]"):
        run_nest(parse_nest(text % "0"), {**arrays, "X": np.zeros(4)})
