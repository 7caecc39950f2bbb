"""Floats of 8 bits in Triton kernels, run in Triton's interpreter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nestor.ir.types import DType
from tests.differential.test_float8 import BOTH, SCALES, TYPES, bytes_of, operands, singles
from tests.differential.test_triton_models import built
from tests.helpers.triton_cases import Of


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
