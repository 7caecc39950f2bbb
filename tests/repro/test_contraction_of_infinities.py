"""A broadcast factor may not leave a sum: inf*1 + inf*(-2) is NaN, inf*(1 - 2) is -inf."""

from __future__ import annotations

import numpy as np
import pytest

from nestor.ir.affine import affine
from nestor.ir.expr import Load, Var, binary
from nestor.ir.interpreter import run_program
from nestor.ir.monoid import sum_of
from nestor.ir.program import Program, Reduction, Statement, Tensor, Write, box
from nestor.ir.types import DType


@pytest.mark.parametrize("dtype", [DType.f32, DType.f64])
@pytest.mark.parametrize("large", [np.inf, 3e38])
def test_vectorised_contraction(dtype: DType, large: float) -> None:
    x = Load(tensor="x", indices=(), dtype=dtype)
    w = Load(tensor="w", indices=(affine("k"),), dtype=dtype)
    state = Var(name="s0", dtype=dtype)
    program = Program(
        name="p",
        tensors=(
            Tensor(name="x", shape=(), dtype=dtype, role="input"),
            Tensor(name="w", shape=(affine(2),), dtype=dtype, role="input"),
            Tensor(name="y", shape=(), dtype=dtype, role="output"),
        ),
        statements=(
            Statement(
                name="S", domain=box(k=2), order=(0,), writes=(Write(tensor="y", indices=()),),
                elements=(binary("mul", x, w),),
                reduction=Reduction(indices=("k",), monoid=sum_of(dtype), final=(state,)),
            ),
        ),
    )  # fmt: skip
    kind = np.float32 if dtype is DType.f32 else np.float64
    inputs = {"x": np.array(large, kind), "w": np.array([2.0, -3.0], kind)}
    fast = run_program(program, inputs)["y"]
    slow = run_program(program, inputs, exact=True)["y"]
    np.testing.assert_allclose(fast, slow, rtol=1e-12)
