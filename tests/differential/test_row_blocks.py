"""Products whose rows stay near the core for all tiles of columns: tails of blocks and of tiles."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import nestor
from nestor.passes.contraction_schedule import MAX_NEAR_ROWS_BYTES


class _Product(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.relu(a @ b + 1)


@pytest.mark.parametrize("target", ["x86-64-v3", "native"])
@pytest.mark.parametrize("rows, terms, columns", [(259, 1100, 64), (193, 2048, 70), (65, 4099, 33)])
@pytest.mark.parametrize("threads", [1, 2])
def test_rows_in_blocks(target: str, rows: int, terms: int, columns: int, threads: int) -> None:
    assert rows * terms * 4 > MAX_NEAR_ROWS_BYTES
    g = torch.Generator().manual_seed(rows)
    a, b = torch.randn((rows, terms), generator=g), torch.randn((terms, columns), generator=g)
    compiled = nestor.compile(_Product(), (a, b), target=target, threads=threads, strict=True)
    wanted = torch.relu(a.double() @ b.double() + 1)
    assert (compiled(a, b).double() - wanted).abs().max() < 1e-3


@pytest.mark.parametrize("size", [28, 31])
def test_images_in_blocks_of_lines(size: int) -> None:
    """Lines of an image stay near while the channels of the result are taken in turns."""
    g = torch.Generator().manual_seed(size)
    x = torch.randn((2, 160, size, size), generator=g)
    model = nn.Conv2d(160, 72, 1).eval()
    compiled = nestor.compile(model, (x,), target="x86-64-v3", strict=True)
    with torch.no_grad():
        assert torch.allclose(compiled(x), model(x), atol=1e-4)
