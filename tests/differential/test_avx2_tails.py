"""Rows that do not fill vectors, without mask registers: nothing after them is written."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import nestor


class _Rows(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(x * 2 + 1, (1, 1))


@pytest.mark.parametrize("width", [1, 5, 7, 12, 13, 21, 28])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_tails_of_rows(width: int, dtype: torch.dtype) -> None:
    x = torch.arange(4 * width).reshape(4, width).to(dtype)
    compiled = nestor.compile(_Rows(), (x,), target="x86-64-v3", strict=True)
    assert torch.equal(compiled(x), _Rows()(x))


class _Transposed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.transpose(1, 2) * 2).contiguous()


@pytest.mark.parametrize("shape", [(1, 8, 16), (2, 13, 37), (3, 4, 21), (1, 33, 5), (2, 19, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int32, torch.int64])
def test_transposed_tiles(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.arange(shape[0] * shape[1] * shape[2]).reshape(shape).to(dtype)
    compiled = nestor.compile(_Transposed(), (x,), target="x86-64-v3", strict=True)
    assert torch.equal(compiled(x), _Transposed()(x))


@pytest.mark.parametrize("width", [1, 2, 3, 4, 8, 11, 40])
def test_tables_are_looked_up_by_any_number_of_lanes(width: int) -> None:
    x = torch.cat([torch.linspace(-5, 5, 3 * width - 1), torch.tensor([torch.nan])])
    x = x.reshape(3, width)
    compiled = nestor.compile(_Erf(), (x,), target="x86-64-v3", strict=True)
    wanted = torch.erf(x.double()).float()
    assert torch.allclose(compiled(x), wanted, rtol=2e-7, atol=0, equal_nan=True)
    assert torch.equal(compiled(torch.full_like(x, 4.0)), torch.ones_like(x))
    assert torch.equal(compiled(torch.full_like(x, -torch.inf)), -torch.ones_like(x))


class _Erf(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.erf(x)
