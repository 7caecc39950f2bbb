"""Floats of 8 bits: values, casts, products; against PyTorch's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nestor
from nestor.ir.narrow_floats import from_bits, round_to, to_bits
from nestor.ir.types import DType
from tests.helpers.triton_cases import Of

TYPES = {DType.f8e4m3: torch.float8_e4m3fn, DType.f8e5m2: torch.float8_e5m2}
BOTH = pytest.mark.parametrize("dtype", TYPES, ids=str)


def singles() -> np.ndarray[Any, Any]:
    """Numbers of every magnitude: all values of both types, what lies halfway between two of them,
    and its neighbours."""
    exact = np.concatenate([from_bits(np.arange(128, dtype=np.uint8), t) for t in TYPES])
    exact = np.unique(exact[np.isfinite(exact)]).astype(np.float64)
    ends = [464.0, 480.0, 61440.0, 65536.0, 1e30, np.inf, np.nan, 1e-40]
    found = np.concatenate([exact, (exact[1:] + exact[:-1]) / 2, ends]).astype(np.float32)
    found = np.concatenate([found, np.nextafter(found, 0), np.nextafter(found, np.float32(np.inf))])
    rng = np.random.default_rng(0)
    drawn = np.ldexp(rng.uniform(1, 2, 4000), rng.integers(-22, 20, 4000)).astype(np.float32)
    found = np.concatenate([found, drawn])
    return np.concatenate([found, -found])


def bytes_of(x: torch.Tensor) -> torch.Tensor:
    """Bits; all NaN are the same."""
    return torch.where(x.float().isnan(), 0x7F, x.view(torch.uint8))


@BOTH
def test_values_are_those_of_pytorch(dtype: DType) -> None:
    every = np.arange(256, dtype=np.uint8)
    wanted = torch.from_numpy(every).view(TYPES[dtype]).float().numpy()
    np.testing.assert_array_equal(from_bits(every, dtype), wanted)
    x = singles()
    with np.errstate(all="ignore"):
        bits = to_bits(round_to(x, dtype), dtype)
    found = torch.from_numpy(np.asarray(bits)).view(TYPES[dtype])
    assert torch.equal(bytes_of(found), bytes_of(torch.from_numpy(x).to(TYPES[dtype])))


@BOTH
def test_casts(dtype: DType) -> None:
    eight = TYPES[dtype]
    x = torch.from_numpy(singles())
    to = nestor.compile(Of(lambda x: x.to(eight)), (x,))
    assert torch.equal(bytes_of(to(x)), bytes_of(x.to(eight)))
    every = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(eight)
    back = nestor.compile(Of(lambda x: x.float()), (every,))
    torch.testing.assert_close(back(every), every.float(), rtol=0, atol=0, equal_nan=True)
    half = nestor.compile(Of(lambda x: x.to(torch.bfloat16)), (every,))
    torch.testing.assert_close(
        half(every), every.to(torch.bfloat16), rtol=0, atol=0, equal_nan=True
    )


def operands(m: int, k: int, n: int) -> tuple[torch.Tensor, ...]:
    made = torch.Generator().manual_seed(0)
    a = torch.randn(m, k, generator=made).to(torch.float8_e4m3fn)
    b = torch.randn(n, k, generator=made).to(torch.float8_e4m3fn)
    return a, b


SCALES = {
    "whole": (torch.tensor(0.5), torch.tensor(2.5)),
    "rows": (torch.rand(32, 1) + 0.5, torch.rand(1, 48) + 0.5),
}


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("out", [torch.float32, torch.bfloat16])
def test_scaled_products(scales: str, out: torch.dtype) -> None:
    a, b = operands(32, 64, 48)
    x, y = SCALES[scales]
    bias = torch.randn(48).to(out) if out is torch.bfloat16 else None

    def product(a: torch.Tensor, b: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch._scaled_mm(a, b.t(), x, y, bias=bias, out_dtype=out)

    made = nestor.compile(Of(product), (a, b, x, y), strict=True)
    wanted = (a.double() @ b.double().t()) * x.double() * y.double()
    wanted = wanted if bias is None else wanted + bias.double()
    bound = 1e-5 if out is torch.float32 else 8e-3
    found = made(a, b, x, y).double()
    assert (found - wanted).abs().max() <= bound * wanted.abs().max()


class Narrow(nn.Module):
    """A layer whose weight has 8 bits an element."""

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.register_buffer("weight", torch.randn(40, 24).to(dtype))
        self.register_buffer("scale", torch.rand(40, 1) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight.float() * self.scale)


@BOTH
def test_weights_and_artifacts(dtype: DType, tmp_path: Path) -> None:
    module, x = Narrow(TYPES[dtype]).eval(), torch.randn(5, 24)
    made = nestor.compile(module, (x,))
    torch.testing.assert_close(made(x), module(x))
    made.save(tmp_path / "net.nst")
    loaded = nestor.load(tmp_path / "net.nst")
    torch.testing.assert_close(torch.from_numpy(loaded(x.numpy())), module(x))


@BOTH
def test_arrays_hold_bits(dtype: DType, tmp_path: Path) -> None:
    every = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(TYPES[dtype])
    made = nestor.compile(Of(lambda x: (x.float() * 2).to(TYPES[dtype])), (every,))
    made.save(tmp_path / "net.nst")
    loaded = nestor.load(tmp_path / "net.nst")
    found = loaded(every.view(torch.uint8).numpy())
    assert found.dtype == np.uint8
    wanted = (every.float() * 2).to(TYPES[dtype])
    assert torch.equal(bytes_of(torch.from_numpy(found).view(TYPES[dtype])), bytes_of(wanted))
    with pytest.raises(nestor.NestorError, match="bits as uint8"):
        loaded(every.float().numpy())
