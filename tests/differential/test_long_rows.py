"""Rows so long that a full register tile of them would not fit on a kernel's stack."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import nestor


class _Softmax(nn.Module):
    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        return (x @ w).softmax(-1)


class _Hidden(nn.Module):
    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        return (x @ w).relu() @ w.T


class _Attention(nn.Module):
    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        return (q @ k.mT).softmax(-1) @ k


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [8192, 12000, 16384])
@pytest.mark.parametrize("model", [_Softmax(), _Hidden()])
def test_products_of_long_rows(model: nn.Module, length: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(64, 5, dtype=dtype), torch.rand(5, length, dtype=dtype)
    torch.testing.assert_close(
        nestor.compile(model, inputs)(*inputs), model(*inputs), atol=2e-2, rtol=1e-4
    )


@pytest.mark.parametrize("is_symbolic", [False, True])
@pytest.mark.parametrize(("width", "dtype"), [(2, torch.float32), (4, torch.float64)])
def test_attention_of_narrow_heads(width: int, dtype: torch.dtype, is_symbolic: bool) -> None:
    torch.manual_seed(0)
    model = _Attention()
    keys = torch.export.Dim("keys", min=2) if is_symbolic else None
    inputs = (torch.randn(2, 64, width, dtype=dtype), torch.randn(2, 40000, width, dtype=dtype))
    compiled = nestor.compile(
        model, inputs, dynamic_shapes=None if keys is None else {"q": None, "k": {1: keys}}
    )
    torch.testing.assert_close(compiled(*inputs), model(*inputs), atol=1e-4, rtol=1e-4)
