"""Floats of 8 bits in Triton kernels, run in Triton's interpreter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from nestor.codegen.triton.names import literal
from nestor.ir.interpreter import run_program
from nestor.ir.narrow_floats import to_bits
from nestor.ir.parser import parse_program
from nestor.ir.program import Extern
from nestor.ir.types import DType
from nestor.passes.canonical import canonicalize_kernel
from nestor.passes.gpu_fusion import partition_for_gpu
from nestor.passes.gpu_schedule import gpu_schedule
from tests.differential.test_float8 import BOTH, SCALES, TYPES, bytes_of, operands, singles
from tests.differential.test_triton_models import built
from tests.helpers.pass_checks import random_inputs
from tests.helpers.triton_cases import Of
from tests.helpers.triton_runs import check_kernel


@BOTH
def test_casts(dtype: DType, tmp_path: Path) -> None:
    eight = TYPES[dtype]
    x = torch.from_numpy(singles())
    to = built(Of(lambda x: x.to(eight)), (x,), tmp_path)
    assert torch.equal(bytes_of(to.executable(x)), bytes_of(x.to(eight)))
    every = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(eight)
    back = built(Of(lambda x: x.float()), (every,), tmp_path)
    torch.testing.assert_close(
        back.executable(every), every.float(), rtol=0, atol=0, equal_nan=True
    )


@pytest.mark.parametrize("scales", SCALES)
def test_scaled_products(scales: str, tmp_path: Path) -> None:
    a, b = operands(32, 64, 48)
    x, y = SCALES[scales]

    def product(a: torch.Tensor, b: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch._scaled_mm(a, b.t(), x, y, out_dtype=torch.float32)

    made = built(Of(product), (a, b, x, y), tmp_path)
    assert any("dot_of_bytes" in k.triton.source for k in made._program.kernels.values())
    wanted = (a.double() @ b.double().t()) * x.double() * y.double()
    found = made.executable(a, b, x, y).double()
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_products_of_both_types(tmp_path: Path) -> None:
    a, b = operands(20, 40, 33)
    b = b.float().to(torch.float8_e5m2)
    made = built(Of(lambda a, b: a.float() @ b.float().t()), (a, b), tmp_path)
    wanted = a.double() @ b.double().t()
    assert (made.executable(a, b).double() - wanted).abs().max() <= 1e-5 * wanted.abs().max()


PADDED = """program padded {
  input a: f8e4m3[40, 36]
  input b: f8e4m3[40, 33]
  output y: f32[40, 33]
  output z: f8e4m3[40, 36]

  statement S over { 0 <= i < 40, 0 <= j < 33, 0 <= k < 40 }
    reduce sum(f32) over k
    s0 <- f32((a[i, k] where {-k + 35 >= 0} else 1.5:f8e4m3)) * f32(b[k, j])
    y[i, j] = s0
  statement T over { 0 <= i < 40, 0 <= k < 36 }
    z[i, k] = select(index(i) < 3:i64, select(index(k) < 2:i64, 0.5:f8e4m3, -2.0:f8e4m3), a[i, k])
}
"""


def test_constants_and_borders(tmp_path: Path) -> None:
    program = parse_program(PADDED)
    arrays = random_inputs(program)
    partition = partition_for_gpu(program, l2_bytes=1 << 20, processors=8)
    assert len(partition.parts) == 2
    wanted = run_program(program, arrays)
    for part in partition.parts:
        assert not isinstance(part, Extern)
        fused, names = canonicalize_kernel(part)
        given = {t.name: arrays[names[t.name]] for t in fused.kernel.by_role("input")}
        kernel = check_kernel(fused.kernel, gpu_schedule(fused), given, tmp_path)
        assert kernel.source
    assert set(np.unique(wanted["z"][:3])) == {0.5, -2.0}


def test_zero_is_no_dimension() -> None:
    for dtype in TYPES:
        assert literal(1.0, dtype) == str(int(torch.tensor(1.0).to(TYPES[dtype]).view(torch.uint8)))
        assert np.shape(to_bits(np.float32(0.5), dtype)) == ()
