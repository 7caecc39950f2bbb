"""Literals in native code: ``max(nan, x)`` is NaN, and a large u8 is not negative."""

from __future__ import annotations

import numpy as np
import pytest

from nestor.ir import parse_program
from nestor.passes.nest import apply_schedule
from nestor.target.cpu import host_target
from tests.helpers.llvm_native import NativeNest


@pytest.mark.parametrize("op", ["max", "min"])
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_extremes_of_a_nan_literal(op: str, dtype: str) -> None:
    text = f"""program p {{
  input x: {dtype}[5]
  output y: {dtype}[5]
  output z: {dtype}[5]
  statement S over {{ 0 <= i < 5 }}
    y[i] = {op}(nan:{dtype}, x[i])
    z[i] = {op}(x[i], nan:{dtype})
}}"""
    native = NativeNest(apply_schedule(parse_program(text), ()), host_target())
    kind = np.float32 if dtype == "f32" else np.float64
    arrays = {"x": np.arange(5, dtype=kind), "y": np.zeros(5, kind), "z": np.zeros(5, kind)}
    assert native.run(arrays) == 0
    assert np.isnan(arrays["y"]).all()
    assert np.isnan(arrays["z"]).all()


@pytest.mark.parametrize("dtype", ["f32", "f64", "i32", "i64"])
def test_large_unsigned_literals(dtype: str) -> None:
    text = f"""program p {{
  input x: {dtype}[3]
  output y: {dtype}[3]
  statement S over {{ 0 <= i < 3 }}
    y[i] = x[i] + {dtype}(255:u8)
}}"""
    native = NativeNest(apply_schedule(parse_program(text), ()), host_target())
    kind = {"f32": np.float32, "f64": np.float64, "i32": np.int32, "i64": np.int64}[dtype]
    arrays = {"x": np.arange(3, dtype=kind), "y": np.zeros(3, kind)}
    assert native.run(arrays) == 0
    assert arrays["y"].tolist() == [255, 256, 257]
