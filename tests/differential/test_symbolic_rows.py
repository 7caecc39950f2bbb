"""Products whose number of rows is known at the call only: every remainder of the row tile."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import nestor


class _Pair(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a - 2 * b


@pytest.mark.parametrize("target", ["native", "x86-64-v3"])
@pytest.mark.parametrize("columns", [10, 40])
def test_every_remainder_of_a_row_tile(target: str, columns: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(70, columns), nn.GELU(), nn.Linear(columns, 9)).eval()
    rows = torch.export.Dim("rows", min=0, max=200)
    compiled = nestor.compile(
        model, (torch.randn(8, 70),), dynamic_shapes=({0: rows},), target=target, strict=True
    )
    for count in (*range(35), 100):
        x = torch.randn(count, 70)
        with torch.inference_mode():
            torch.testing.assert_close(compiled(x), model(x), atol=1e-5, rtol=1e-5)


def test_one_example_for_two_inputs() -> None:
    example = torch.randn(4, 6)
    rows = torch.export.Dim("rows", min=1, max=50)
    for shapes in (None, ({0: rows}, {0: rows})):
        compiled = nestor.compile(_Pair(), (example, example), dynamic_shapes=shapes)
        a, b = torch.randn(4, 6), torch.randn(4, 6)
        torch.testing.assert_close(compiled(a, b), a - 2 * b)
